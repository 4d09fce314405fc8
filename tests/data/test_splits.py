"""Divisions: sizes, shares of every class, the same ones every time, written down and kept."""

import json
import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from deformable_detr.data.cache import FOLDER
from deformable_detr.data.dataset import open_dataset
from deformable_detr.data.splits import split_sizes, stratify


@pytest.fixture
def training_only(scenes, tmp_path):
    (tmp_path / "annotations").mkdir()
    shutil.copy(scenes / "annotations" / "instances_train.json", tmp_path / "annotations")
    shutil.copytree(scenes / "train", tmp_path / "train")
    return tmp_path


def split_of(dataset, split):
    return open_dataset(dataset).split(split).check()


def images(dataset, split):
    return split_of(dataset, split).annotations.file_names.tolist()


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (10, (8, 1, 1)), (205, (165, 20, 20)), (1000, (800, 100, 100))],
)
def test_sizes(count, expected):
    assert split_sizes(count, {"val": 0.1, "test": 0.1}) == dict(zip(("train", "val", "test"), expected, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_every_class_has_its_share(seed):
    """300 images, classes from common to rare, several in an image; a plain random division leaves the rare one out of val."""
    rng = np.random.default_rng(seed)
    labels = [{label for label, share in enumerate((0.7, 0.3, 0.1)) if rng.random() < share} for _ in range(300)]
    for index in range(10):
        labels[index].add(3)
    chosen = stratify(labels, {"train": 240, "val": 30, "test": 30}, seed=seed)
    assert [chosen.count(split) for split in ("train", "val", "test")] == [240, 30, 30]
    for label in range(4):
        holders = [split for split, found in zip(chosen, labels, strict=True) if label in found]
        for split, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
            assert abs(holders.count(split) - share * len(holders)) <= 2
    assert stratify(labels, {"train": 240, "val": 30, "test": 30}, seed=seed) == chosen


def test_a_class_of_one_image_is_trained_on():
    chosen = stratify([{0}] * 9 + [{1}], {"train": 8, "val": 1, "test": 1})
    assert chosen[9] == "train"


def test_a_division_is_made_once_and_written_down(training_only, caplog):
    with caplog.at_level(logging.INFO):
        parts = {split: images(training_only, split) for split in ("train", "val", "test")}
        assert images(training_only, "valid") == parts["val"]
    assert {split: len(names) for split, names in parts.items()} == {"train": 8, "val": 1, "test": 1}
    assert sorted(name for names in parts.values() for name in names) == [f"{number:06d}.png" for number in range(1, 11)]
    assert caplog.text.count("divided: 8 train, 1 val, 1 test (stratified by class, seed 0); written down in") == 1
    written = json.loads((training_only / FOLDER / "splits.json").read_text())
    assert written == {"annotations/instances_train.json": {"seed": 0, "images": parts}}


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("written", [str.upper, str.title])
def test_upper_and_lower_case_are_the_same(training_only, split, written):
    """`Train` was all images, those of val and test among them."""
    assert images(training_only, written(split)) == images(training_only, split)


def test_new_images_are_added_and_old_ones_stay(training_only):
    before = {split: images(training_only, split) for split in ("train", "val", "test")}
    file = training_only / "annotations" / "instances_train.json"
    record = json.loads(file.read_text())
    gone = record["images"].pop(0)
    record["annotations"] = [entry for entry in record["annotations"] if entry["image_id"] != gone["id"]]
    record["images"] += [record["images"][0] | {"id": 100 + number, "file_name": f"new{number}.png"} for number in range(10)]
    file.write_text(json.dumps(record))
    after = {split: images(training_only, split) for split in ("train", "val", "test")}
    for split, names in before.items():
        assert set(names) - {gone["file_name"]} <= set(after[split])
    assert [len(after[split]) for split in ("val", "test")] == [2, 2]


def test_images_that_are_away_for_a_while_stay_in_their_split(training_only, scenes):
    """They were forgotten when others came, and a former validation image could be trained on; so was all of test, once it had a
    file of its own."""
    before = {split: images(training_only, split) for split in ("train", "val", "test")}
    file = training_only / "annotations" / "instances_train.json"
    whole = json.loads(file.read_text())
    away = {*before["val"], before["train"][0]}
    new = [whole["images"][0] | {"id": 100 + number, "file_name": f"new{number}.png"} for number in range(10)]
    entries = [entry for entry in whole["images"] if entry["file_name"] not in away] + new
    boxes = [entry for entry in whole["annotations"] if entry["image_id"] in {entry["id"] for entry in entries}]
    file.write_text(json.dumps(whole | {"images": entries, "annotations": boxes}))
    shutil.copy(scenes / "annotations" / "instances_val.json", training_only / "annotations" / "instances_test.json")
    assert not away & {*images(training_only, "train"), *images(training_only, "val")}
    file.write_text(json.dumps(whole | {"images": whole["images"] + new}))
    for split in ("train", "val"):
        assert set(before[split]) <= set(images(training_only, split))
    written = json.loads((training_only / FOLDER / "splits.json").read_text())["annotations/instances_train.json"]["images"]
    assert written["test"] == before["test"]


@pytest.mark.parametrize(
    "lists", [None, [], "1.png", {"train": "1.png"}, {"train": {"1.png": 1}}, {"train": [["1.png"]]}, {"val": [1]}]
)
def test_divisions_that_are_none(training_only, lists):
    file = training_only / FOLDER / "splits.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"annotations/instances_train.json": {"images": lists}}))
    with pytest.raises(ValueError, match=r"splits\.json: 'annotations/instances_train\.json' has no lists of images per split"):
        split_of(training_only, "train")


def test_a_division_holds_where_the_dataset_is_read_only(training_only, tmp_path_factory, monkeypatch):
    """As in a container: it was divided anew there, without what had been moved by hand, and `evaluate` took all images."""
    before = {split: images(training_only, split) for split in ("train", "val", "test")}
    file = training_only / FOLDER / "splits.json"
    written = json.loads(file.read_text())
    lists = written["annotations/instances_train.json"]["images"]
    lists["train"], lists["val"] = lists["train"][1:], lists["val"] + lists["train"][:1]
    file.write_text(json.dumps(written))
    elsewhere = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("deformable_detr.data.splits.derived_folder", lambda root: elsewhere)
    assert open_dataset(training_only).evaluation_split() == "val"
    assert set(images(training_only, "val")) == {*before["val"], before["train"][0]}
    assert images(training_only, "train") == before["train"][1:]
    annotations = training_only / "annotations" / "instances_train.json"
    record = json.loads(annotations.read_text())
    record["images"] += [record["images"][0] | {"id": 100 + number, "file_name": f"new{number}.png"} for number in range(10)]
    annotations.write_text(json.dumps(record))
    found: dict[str, list[str]] = {}
    for _ in range(2):  # written down elsewhere, and read from both
        found = {split: images(training_only, split) for split in ("train", "val", "test")}
        assert all(set(names) <= set(found[split]) for split, names in lists.items())
    added = json.loads((elsewhere / "splits.json").read_text())["annotations/instances_train.json"]["images"]
    assert {split: sorted(names) for split, names in added.items()} == {split: sorted(names) for split, names in found.items()}
    assert json.loads(file.read_text()) == written


def test_a_division_by_hand_is_kept(training_only):
    moved = images(training_only, "train")[0]
    file = training_only / FOLDER / "splits.json"
    written = json.loads(file.read_text())
    lists = written["annotations/instances_train.json"]["images"]
    lists["train"].remove(moved)
    lists["val"].append(moved)
    file.write_text(json.dumps(written))
    assert moved in images(training_only, "val")
    assert moved not in images(training_only, "train")
    lists["train"].append(moved)
    file.write_text(json.dumps(written))
    with pytest.raises(ValueError, match=rf"splits\.json: image '{moved}' stands in two lists"):
        split_of(training_only, "val")


def test_a_test_split_of_its_own_is_kept(training_only, scenes):
    shutil.copy(scenes / "annotations" / "instances_val.json", training_only / "annotations" / "instances_test.json")
    shutil.copytree(scenes / "val", training_only / "test")
    test = split_of(training_only, "test")
    assert test.annotations.path == training_only / "annotations" / "instances_test.json"
    assert test.path(0).parent == training_only / "test"
    assert [len(images(training_only, split)) for split in ("train", "val")] == [9, 1]


def test_own_splits_are_left_alone(scenes):
    for split in ("train", "val"):
        own = split_of(scenes, split)
        assert own.annotations.path == scenes / "annotations" / f"instances_{split}.json"
        assert own.path(0).parent == scenes / split
    assert not (scenes / FOLDER).exists()


def test_too_few_images(training_only):
    file = training_only / "annotations" / "instances_train.json"
    record = json.loads(file.read_text())
    record["images"], record["annotations"] = record["images"][:1], []
    file.write_text(json.dumps(record))
    assert len(images(training_only, "train")) == 1
    with pytest.raises(FileNotFoundError, match="no split 'val', and 1 images are too few to make one"):
        split_of(training_only, "val")


@pytest.mark.parametrize("name", ["YOLO", "Pascal VOC"])
def test_other_formats_are_divided_too(name, scenes, write_as, tmp_path):
    folder = write_as(name, scenes, tmp_path, ("train",))
    assert [len(images(folder, split)) for split in ("train", "val", "test")] == [8, 1, 1]


@pytest.mark.parametrize("other", ["../{0.name}/", "{0}/"], ids=["another path", "from the root"])
def test_an_image_that_is_listed_again_stays_in_one_split(other, tmp_path, monkeypatch):
    """With the very same boxes, to be seen more often, also below another path, in a dataset that is opened by a relative one."""
    monkeypatch.chdir(tmp_path.parent)
    images, boxes = [], []
    for number in range(20):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number // 2}.png")
        name = f"{other.format(tmp_path) if number % 4 == 1 else ''}{number // 2}.png"
        images.append({"id": number, "file_name": name, "width": 8, "height": 8})
        boxes.append({"id": number, "image_id": number, "category_id": 1, "bbox": [1, 1, 4, 4]})
    record = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "labels.json").write_text(json.dumps(record))
    for _ in range(2):  # divided, and read again
        dataset = open_dataset(tmp_path.name)
        found = {name: list(map(os.path.abspath, dataset.split(name).paths.tolist())) for name in ("train", "val", "test")}
        assert [(len(paths), len(set(paths))) for paths in found.values()] == [(16, 8), (2, 1), (2, 1)]
        assert len({path for paths in found.values() for path in paths}) == 10
