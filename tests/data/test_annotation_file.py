"""Reading an annotation file: what is kept of it, how often it is read. Its faults: test_coco.py."""

import json
from pathlib import Path

import numpy as np
import pytest

from deformable_detr.cli.train import COMMAND
from deformable_detr.data import annotation_reader, dataset
from deformable_detr.data.annotation_reader import read_annotation_file
from deformable_detr.data.dataset import Split
from deformable_detr.data.doctor.examine import quick_check
from deformable_detr.data.file_index import FileIndex
from deformable_detr.data.scenes import generate_scenes
from deformable_detr.training.preparation import open_data

RECORD = {
    "images": [
        {"id": "b", "file_name": "b.png", "height": 20, "width": 40},
        {"id": 1, "file_name": "a.png", "height": 9, "width": 8},
    ],
    "annotations": [
        {"id": 5, "image_id": 1, "category_id": 9, "bbox": [1, 2, 3, 0], "iscrowd": 1},
        {"id": 4, "image_id": "b", "category_id": 2, "bbox": [-1.5, 2, 30.25, 4]},
    ],
    "categories": [{"id": 9, "name": "cat"}, {"id": 2, "name": "dog"}],
}


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are parsed in a test, in their order."""
    names: list[str] = []
    original = annotation_reader.read_json

    def read_json(path: Path) -> dict:
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(annotation_reader, "read_json", read_json)
    return names


def write(path: Path, record: dict) -> Path:
    path.write_text(json.dumps(record))
    return path


@pytest.mark.parametrize("large", [False, True])
def test_everything_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    monkeypatch.setattr(annotation_reader, "LARGE_FILE", 1 if large else 10**9)
    path = write(tmp_path / "a.json", RECORD)
    for _ in range(2):  # parsed, then from the kept arrays
        found = read_annotation_file(path)
        assert found.image_ids == ("b", 1)
        assert found.file_names.tolist() == ["b.png", "a.png"]
        assert found.image_sizes.tolist() == [[20, 40], [9, 8]]
        assert found.annotation_ids.tolist() == [5, 4]
        assert found.images.tolist() == [1, 0]
        assert (found.categories.names, found.labels.tolist()) == (("dog", "cat"), [1, 0])
        assert found.boxes.tolist() == [[1, 2, 3, 0], [-1.5, 2, 30.25, 4]]
        assert found.crowd.tolist() == [True, False]
        assert found.annotated
    assert (tmp_path / ".deformable-detr").is_dir() == large


def test_ids_that_are_no_numbers_or_missing(tmp_path: Path) -> None:
    first, second = RECORD["annotations"]
    record = RECORD | {"annotations": [first | {"id": "x"}, {key: second[key] for key in second if key != "id"}]}
    assert read_annotation_file(write(tmp_path / "a.json", record)).annotation_ids.tolist() == ["x", "number 1"]


def test_a_large_file_that_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotation_reader, "LARGE_FILE", 1)
    path = write(tmp_path / "a.json", RECORD)
    assert len(read_annotation_file(path).boxes) == 2
    write(path, RECORD | {"annotations": []})
    assert read_annotation_file(path).boxes.shape == (0, 4)


@pytest.mark.parametrize("options", [["--recipe", "small-data"], ["--device", "cpu"]], ids=["recipe", "recipe by itself"])
def test_a_training_opens_its_dataset_once_and_reads_each_file_once(
    tmp_path: Path, parsed: list[str], monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    generate_scenes(tmp_path / "data", train=6, val=3, image_size=64)
    listed = []
    monkeypatch.setattr(dataset, "FileIndex", lambda root: listed.append(root) or FileIndex(root))
    run = COMMAND.parse([str(tmp_path / "data"), "--num-workers", "0", *options]).run
    assert run.config.recipe == "small-data"
    open_data(run.config, run.dataset)
    assert listed == [tmp_path / "data"]
    assert parsed == ["instances_train.json", "instances_val.json"]
    assert run.dataset is not None
    run.dataset.forget()
    assert len(run.dataset.split("train").paths) == 6
    assert parsed[2:] == ["instances_train.json"]


def test_a_large_file_is_checked_like_a_small_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the kept arrays, too: boxes written as corners, over the edge, without an area, and ids that stand there twice."""
    rng = np.random.default_rng(0)
    corners = np.concatenate((rng.uniform(10, 20, (30, 2)), rng.uniform(25, 39, (30, 2))), axis=1).round(1)
    boxes = {"corners": corners.tolist(), "edges": [[0, 0, 50, 10], [5, 5, 0, 3], [1, 1, 2, 2], [1, 1, 2, 2]]}
    found = {}
    for name, written in boxes.items():
        image = {"id": 1, "file_name": "a.png", "height": 40, "width": 40}
        entries = [{"id": 1 + i // 2, "image_id": 1, "category_id": 2, "bbox": box} for i, box in enumerate(written)]
        path = write(tmp_path / f"{name}.json", {**RECORD, "images": [image], "annotations": entries})
        for large_file in (10**9, 1, 1):
            monkeypatch.setattr(annotation_reader, "LARGE_FILE", large_file)
            findings = quick_check([Split.of_file(path, tmp_path, "train")], num_queries=100)
            found.setdefault(name, []).append([finding.to_dict() for finding in findings])
    for name, codes in {
        "corners": ["boxes-xyxy", "image-missing", "annotation-id-twice"],
        "edges": ["image-missing", "box-clipped", "box-degenerate", "box-twice", "annotation-id-twice"],
    }.items():
        small, *large = found[name]
        assert [finding["code"] for finding in small] == codes
        assert large == [small, small]
