"""A round of labelling: predictions become a dataset, which training opens."""

import csv
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.categories import Categories
from deformable_detr.checkpoints import save_weights
from deformable_detr.cli.__main__ import main
from deformable_detr.config import Metadata
from deformable_detr.data.dataset import open_dataset
from deformable_detr.data.writing import LabelledImage, write_dataset
from deformable_detr.detector import Detector
from deformable_detr.inference.labelling import entropy, greedy_order
from deformable_detr.model import build_model

CATEGORIES = Categories(("cat", "dog"), (7, 3))


def test_entropy() -> None:
    assert entropy(np.array([0.5, 0.5, 0.25])) == pytest.approx(2 + 0.25 * 2 + 0.75 * np.log2(4 / 3))
    assert entropy(np.array([0.0, 1.0])) == pytest.approx(0, abs=1e-9)


def test_doubtful_and_unlike_the_ones_before() -> None:
    """2 is the most doubtful, 1 its twin; of the others 0 has 3 x 10 and 3 has 4 x 5; then 3 has 4 x 5, and 1 has 8 x 0."""
    features = np.array([[10.0, 0], [0, 0], [0, 0], [0, 5]])
    assert greedy_order(np.array([3.0, 8, 9, 4]), features).tolist() == [2, 0, 3, 1]


@pytest.fixture
def images(tmp_path: Path) -> list[LabelledImage]:
    made = []
    for name, folder, boxes, labels in (
        ("a.png", "x", [[1, 2, 31, 22.5], [4, 4, 60, 40]], [0, 1]),
        ("a.png", "y", [[0, 0, 64, 48]], [1]),
        ("b.png", "x", [], []),
    ):
        path = tmp_path / folder / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 48)).save(path)
        made.append(LabelledImage(path, (48, 64), np.array(boxes, dtype=float).reshape(-1, 4), np.array(labels, dtype=int)))
    return made


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are text")
@pytest.mark.parametrize("kind", ["coco", "yolo", "voc"])
def test_names_in_another_encoding(tmp_path: Path, kind: str) -> None:
    name = os.fsdecode(b"g\xe9.png")
    Image.new("RGB", (64, 48)).save(tmp_path / name)
    image = LabelledImage(tmp_path / name, (48, 64), np.array([[1.0, 2, 31, 22]]), np.array([0]))
    write_dataset(tmp_path / "out", [image], CATEGORIES, kind, {"order.csv": f"{name}\n"})
    dataset = open_dataset(tmp_path / "out")
    found = dataset.own(dataset.own_splits[0]).check()
    assert ([Path(path).name for path in found.paths.tolist()], len(found.annotations.images)) == ([name], 1)
    assert (tmp_path / "out" / "order.csv").read_text() == "g\\udce9.png\n"


@pytest.mark.parametrize("kind", ["coco", "yolo", "voc"])
def test_what_is_written_is_read_again(images: list[LabelledImage], tmp_path: Path, kind: str) -> None:
    write_dataset(tmp_path / "out", images, CATEGORIES, kind, {"note.txt": "hello"})
    dataset = open_dataset(tmp_path / "out")
    assert dataset.format.lower().split()[-1] == kind
    found = dataset.own(dataset.own_splits[0]).check()
    file = found.annotations
    by_stem = {Path(name).stem: index for index, name in enumerate(found.paths.tolist())}
    assert sorted(by_stem) == ["a", "a-2", "b"]
    for stem, image in zip(("a", "a-2", "b"), images, strict=True):
        own = file.images == by_stem[stem]
        boxes = np.concatenate((image.boxes[:, :2], image.boxes[:, 2:] - image.boxes[:, :2]), axis=1)
        assert file.boxes[own] == pytest.approx(boxes, abs=0.01)
        assert [file.categories.names[label] for label in file.labels[own]] == [CATEGORIES.names[label] for label in image.labels]
    assert (tmp_path / "out" / "note.txt").read_text() == "hello"


def test_a_box_below_a_pixel_in_voc_has_one(images: list[LabelledImage], tmp_path: Path) -> None:
    thin = replace(images[0], boxes=np.array([[3.2, 5.0, 3.9, 5.5]]), labels=np.array([0]))
    write_dataset(tmp_path / "out", [thin], CATEGORIES, "voc")
    found = open_dataset(tmp_path / "out").own("all").check()
    assert found.annotations.boxes == pytest.approx(np.array([[3.2, 5, 1, 1]]))


def test_nothing_is_overwritten(images: list[LabelledImage], tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="not an empty folder"):
        write_dataset(tmp_path, images, CATEGORIES)
    with pytest.raises(ValueError, match="unknown format 'csv'; known are coco, yolo, voc"):
        write_dataset(tmp_path / "new", images, CATEGORIES, "csv")


@pytest.mark.parametrize(
    ("names", "kind"), [(("cat", ""), "yolo"), (("cat", "cat "), "yolo"), (("cat", "cat"), "voc"), (("a", "\0"), "voc")]
)
def test_names_that_a_format_cannot_tell_apart(images: list[LabelledImage], tmp_path: Path, names: tuple, kind: str) -> None:
    with pytest.raises(ValueError, match=f"{kind} tells classes by their names"):
        write_dataset(tmp_path / "out", images, Categories(names, (7, 3)), kind)
    assert not (tmp_path / "out").exists()
    write_dataset(tmp_path / "out", images, Categories(names, (7, 3)), "coco")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.manual_seed(0)
    model = build_model("tiny", num_classes=2)
    metadata = Metadata(model.metadata.model, CATEGORIES, eval_short_side=64, max_long_side=96, thresholds=(0.0, 1.0))
    weights = str(save_weights(tmp_path / "tiny.safetensors", model, metadata=metadata))
    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for name in "abc":
        Image.fromarray(generator.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{name}.png")
    assert main(["label", weights, str(tmp_path / "photos"), "--output", str(tmp_path / "out"), "--take", "2"]) == 0
    record = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())
    predicted = Detector.load(weights, device="cpu").predict(tmp_path / "photos", 0.0)
    found = {Path(one.metadata["path"]).name: one for one in predicted}
    for image in record["images"]:
        detections = found[image["file_name"]]
        boxes = [entry["bbox"] for entry in record["annotations"] if entry["image_id"] == image["id"]]
        wanted = detections.xyxy[detections.class_id == 0]  # the other class has a threshold that nothing reaches
        assert np.array(boxes) == pytest.approx(np.concatenate((wanted[:, :2], wanted[:, 2:] - wanted[:, :2]), axis=1), abs=0.05)
    rows = list(csv.DictReader((tmp_path / "out" / "order.csv").read_text().splitlines()))
    bits = [float(row["doubt_bits"]) for row in rows]
    assert len(bits) == 2
    assert bits[0] == pytest.approx(max(entropy(one.confidence[one.confidence >= 0]) for one in found.values()), abs=0.01)
    assert open_dataset(tmp_path / "out").own_splits == ("train",)
    assert "in 2 of 3 images" in capsys.readouterr().out
    assert main(["label", weights, str(tmp_path / "photos"), "--output", str(tmp_path / "out")]) == 2
