"""Class names: what counts as the same class, and that everybody who asks gets the same answer."""

import json
import logging

import pytest
import torch
from PIL import Image

from deformable_detr.categories import Categories
from deformable_detr.checkpoints.class_mapping import map_classes
from deformable_detr.class_names import match_classes, normalise_name
from deformable_detr.data.annotation_reader import read_annotation_file
from deformable_detr.data.annotations import target_annotations
from deformable_detr.evaluation import CocoEvaluator


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Traffic-Light", "traffic light", True),
        ("traffic_light", "TrafficLight", True),
        (" cat", "cat\t", True),
        ("café", "cafe\u0301", True),
        ("ｃａｔ", "cat", True),
        ("Straße", "STRASSE", True),
        ("ﾊﾟﾝ", "パン", True),
        ("m²", "m2", False),
        ("cat", "cats", False),
        ("type 1", "type 2", False),
        ("-", "_", False),
        ("-", "", False),
        ("", "", True),
    ],
)
def test_normalisation(one, other, same):
    assert (normalise_name(one) == normalise_name(other)) == same


def names(*entries):
    return Categories.from_names(entries)


@pytest.mark.parametrize(
    ("wanted", "known", "expected"),
    [
        (names("b", "a"), names("a", "b"), [1, 0]),
        (names("A", "a"), names("a", "A"), [1, 0]),  # identical names go first
        (names("A", "a"), names("a"), [None, 0]),
        (names("sofa", "couch"), names("couch"), [None, 0]),  # a synonym does not take what another has by name
        (names("sofa"), names("couch", "chair"), [0]),
        (names("person", "pedestrian"), names("pedestrian", "person"), [1, 0]),
        (names("N/A"), names("N/A"), [None]),
        (Categories(("c", "c"), (4, 7)), Categories(("c", "d", "c"), (7, 5, 4)), [2, 0]),  # the id tells them apart
        (Categories(("c",), (9,)), Categories(("c", "c"), (7, 4)), [0]),
    ],
)
def test_matching(wanted, known, expected):
    assert match_classes(wanted, known) == expected


def test_by_id_and_shared():
    assert match_classes(Categories(("x", "y"), (3, 8)), Categories(("y", "z"), (8, 4)), by="id") == [None, 0]
    assert match_classes(names("Sofa", "settee", "couch"), names("couch"), unique=False) == [0, None, 0]


def test_differences_are_said(caplog):
    with caplog.at_level(logging.INFO):
        match_classes(names("Traffic-Light", "sofa", "cat"), names("traffic light", "couch", "cat"), what="val")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "val: class names that are written differently count as the same: 'Traffic-Light' = 'traffic light'"),
        ("WARNING", "val: class names that are synonyms count as the same: 'sofa' = 'couch'"),
    ]


@pytest.mark.parametrize(("written", "same"), [("Traffic-Light", True), ("traffic lights", False)])
def test_training_evaluation_and_class_heads_agree(written, same, tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "1.png")
    record = {
        "images": [{"id": 1, "file_name": "1.png", "width": 20, "height": 20}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 5, "bbox": [2, 2, 8, 8]}],
        "categories": [{"id": 4, "name": "cat"}, {"id": 5, "name": written}],
    }
    path = tmp_path / "val.json"
    path.write_text(json.dumps(record))
    model = Categories.from_names(["traffic light", "cat"])
    assert map_classes(model, 2, Categories.from_names([written])).sources == ((0,) if same else (None,))
    evaluator = CocoEvaluator(path, model)
    found = {"scores": torch.tensor([0.9]), "labels": torch.tensor([0]), "boxes": torch.tensor([[2.0, 2, 10, 10]])}
    evaluator.update([1], [found])
    assert evaluator.compute().ap == (1.0 if same else 0.0)
    if same:
        assert target_annotations(read_annotation_file(path), model).labels.tolist() == [0]
    else:
        with pytest.raises(ValueError, match="do not know: 'traffic lights'"):
            target_annotations(read_annotation_file(path), model)


def test_an_unknown_way_to_match():
    with pytest.raises(ValueError, match="unknown way to match classes 'ids'; did you mean 'id'"):
        match_classes(names("cat"), names("cat"), by="ids")  # type: ignore[arg-type]
