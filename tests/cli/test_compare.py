import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.categories import Categories
from deformable_detr.checkpoints import save_weights
from deformable_detr.cli.__main__ import main
from deformable_detr.cli.compare import COMMAND, CompareOptions, dataset_of, names_of
from deformable_detr.config import Metadata
from deformable_detr.model import build_model


@pytest.fixture
def files(tmp_path):
    """Weights of a tiny model, and a dataset of three images."""
    torch.manual_seed(0)
    model = build_model("tiny", num_classes=1)
    metadata = Metadata(model.metadata.model, Categories(("cat",), (7,)), eval_short_side=64, max_long_side=96)
    weights = save_weights(tmp_path / "tiny.safetensors", model, metadata=metadata)
    root = tmp_path / "data"
    (root / "annotations").mkdir(parents=True)
    (root / "val").mkdir()
    for index in range(3):
        Image.fromarray(np.full((60, 90, 3), 50 * index, dtype=np.uint8)).save(root / "val" / f"{index}.png")
    content = {
        "images": [{"id": index, "file_name": f"{index}.png", "width": 90, "height": 60} for index in range(3)],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 7, "bbox": [10, 10, 40, 30], "area": 1200, "iscrowd": 0}],
        "categories": [{"id": 7, "name": "cat"}],
    }
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return str(weights), str(root)


def test_a_detector_compared_with_itself(files, tmp_path, capsys):
    weights, dataset = files
    output = tmp_path / "comparison"
    arguments = [weights, weights, dataset, "--num-workers", "0", "--device", "cpu", "--nms-iou", "0.7", "--output", str(output)]
    assert main(["compare", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "undecided" in shown and "0 images got better, 0 got worse" in shown
    assert json.loads((output / "compare.json").read_text())["verdict"] == "undecided"
    assert (output / "compare.html").is_file()


def test_what_cannot_be_compared_is_refused_before_the_evaluations(files, tmp_path, capsys, monkeypatch):
    weights, dataset = files
    monkeypatch.setattr("deformable_detr.detector.Detector.analyze", lambda *arguments, **settings: pytest.fail("evaluated"))
    model = build_model("tiny", num_classes=1)
    for name, categories, single_class, expected in (
        ("one", Categories(("object",), (1,)), True, "was trained with all classes as one"),
        ("other", Categories(("dog",), (7,)), False, "detects none of the classes"),
    ):
        metadata = replace(model.metadata, categories=categories, single_class=single_class, eval_short_side=64, max_long_side=96)
        other = save_weights(tmp_path / f"{name}.safetensors", model, metadata=metadata)
        for pair in ((weights, str(other)), (str(other), weights)):
            assert main(["compare", *pair, dataset, "--num-workers", "0", "--output", str(tmp_path / "comparison")]) == 2
            assert f"{other} {expected}" in (said := capsys.readouterr().err), said
    assert not (tmp_path / "comparison").exists()


def test_options():
    options = COMMAND.parse(["runs/a", "runs/b", "my_data", "--split", "test"])
    assert options == CompareOptions(weights="runs/a", second="runs/b", dataset="my_data", split="test")
    assert COMMAND.parse(["runs/a", "runs/b"]).dataset is None


def test_the_dataset_is_that_of_the_run(tmp_path):
    (tmp_path / "config.yaml").write_text("dataset: somewhere/data\n")
    assert dataset_of(str(tmp_path)) == "somewhere/data"
    assert main(["compare", "a", "b", "data", "--shown", "-1"]) == 2
    with pytest.raises(ValueError, match="give a dataset as the third argument"):
        dataset_of("weights.safetensors")


def test_names_tell_the_detectors_apart():
    assert names_of("runs/a", "runs/b") == ("a", "b")
    assert names_of("x/run", "y/run") == ("x/run", "y/run")
