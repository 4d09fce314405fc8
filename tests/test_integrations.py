"""The examples of docs/integrations.md, as they stand there, with a small detector."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr import Detector
from deformable_detr.checkpoints import save_weights
from deformable_detr.data.dataset import open_dataset
from deformable_detr.model import build_model
from deformable_detr.settings import asked_settings, build_config

PAGE = (Path(__file__).parents[1] / "docs" / "integrations.md").read_text(encoding="utf-8")


def example(library: str) -> str:
    """The code below a heading."""
    section = re.split(r"^### ", PAGE.split(f"\n### {library}\n")[1], flags=re.MULTILINE)[0]
    return "\n".join(re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL))


def run(library: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(example(library), f"integrations.md: {library}", "exec"), names)
    return names


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the examples name: a run, an image."""
    torch.manual_seed(0)
    model = build_model("tiny", num_classes=3, pretrained_backbone=False)
    for name, parameter in model.named_parameters():
        if re.fullmatch(r"class_heads\.\d\.bias", name):
            torch.nn.init.constant_(parameter, 0.5)
    model.metadata = replace(model.metadata, eval_short_side=96, max_long_side=128)
    save_weights(tmp_path / "runs" / "first" / "weights" / "best.safetensors", model)
    pixels = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    for name in ("street.jpg", "photos/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `Detector.train` was asked for, checked; nothing is trained. The AP is best at the learning rate 2e-4."""
    asked = []

    def train(dataset, callbacks=(), **settings):
        asked.append({"dataset": dataset, **settings})
        config = build_config(asked_settings({"dataset": dataset, **settings}))
        metrics = SimpleNamespace(ap=1 - abs(np.log10(config.optimizer.lr / 2e-4)))
        for callback in callbacks:
            callback.on_evaluation(SimpleNamespace(position=SimpleNamespace(epoch=0)), metrics)
        return SimpleNamespace(result=SimpleNamespace(best_metrics={"ap": metrics.ap}))

    monkeypatch.setattr(Detector, "train", train)
    return asked


def test_supervision(here: Path) -> None:
    found = run("supervision")
    assert len(found["detections"]) and found["drawn"].shape == (120, 160, 3)


def test_sahi(here: Path) -> None:
    pytest.importorskip("sahi", reason="make test-others")
    found = run("sahi")
    whole = found["model"]
    whole.perform_inference(np.array(Image.open("street.jpg")))
    whole.convert_original_predictions()
    expected = Detector.load("runs/first").predict("street.jpg", 0.3)
    boxes = [prediction.bbox.to_xyxy() for prediction in whole.object_prediction_list]
    np.testing.assert_allclose(boxes, expected.xyxy, atol=1e-3)
    assert [prediction.category.name for prediction in whole.object_prediction_list] == list(expected.data["class_name"])
    assert found["result"].object_prediction_list


def test_fiftyone(here: Path, trainings: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the library: labels are left, top, width, height as shares of the image."""

    class Sample(dict):
        filepath, saved = "photos/1.jpg", False

        def save(self) -> None:
            self.saved = True

    class Dataset(list):
        @classmethod
        def from_images_dir(cls, folder: str) -> "Dataset":
            return cls(Sample() for _ in Path(folder).iterdir())

        def export(self, folder: str, dataset_type: Any, label_field: str) -> None:
            assert dataset_type == "coco" and label_field in self[0]
            record = {
                "images": [{"id": 1, "file_name": "1.jpg", "width": 160, "height": 120}],
                "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40], "area": 1200, "iscrowd": 0}],
                "categories": [{"id": 1, "name": "class 0"}],
            }
            (Path(folder) / "data").mkdir(parents=True)
            (Path(folder) / "labels.json").write_text(json.dumps(record))
            shutil.copy("photos/1.jpg", Path(folder) / "data")

    fiftyone: Any = ModuleType("fiftyone")
    fiftyone.Detection, fiftyone.Detections, fiftyone.Dataset = SimpleNamespace, SimpleNamespace, Dataset
    fiftyone.types = SimpleNamespace(COCODetectionDataset="coco")
    monkeypatch.setitem(sys.modules, "fiftyone", fiftyone)
    (sample,) = run("FiftyOne")["dataset"]
    expected = Detector.load("runs/first").predict("photos/1.jpg", 0.3)
    assert sample.saved
    for one, box, name in zip(sample["deformable_detr"].detections, expected.xyxy, expected.data["class_name"], strict=True):
        left, top, width, height = one.bounding_box
        assert one.label == name
        assert [160 * left, 120 * top, 160 * (left + width), 120 * (top + height)] == pytest.approx(box.tolist(), abs=1e-3)
    split = open_dataset(trainings[0]["dataset"]).split("all").check(boxes_required=True)
    assert split.path(0).is_file() and split.annotations.boxes.tolist() == [[1, 2, 30, 40]]


def test_optuna(here: Path, trainings: list) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = run("Optuna")["study"]
    assert len(trainings) == len(study.trials) == 20
    assert abs(np.log10(study.best_params["lr"] / 2e-4)) == pytest.approx(1 - study.best_value)


def test_timm(here: Path, trainings: list) -> None:
    found = run("timm")
    images = torch.rand(1, 3, 96, 128)
    network = found["network"].eval()
    for ours, theirs in zip(network(images), found["features"].eval()(images), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    file = trainings[0]["pretrained_backbone"]
    again = build_model("tiny", num_classes=2, pretrained_backbone=file).get_submodule("backbone.body").eval()
    for ours, theirs in zip(again(images), network(images), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
