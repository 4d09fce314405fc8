"""What stands beside the weights: settings, classes, thresholds and sizes, in the forms in which people store them."""

import argparse
import json

import numpy as np
import pytest
import torch
import yaml

from deformable_detr.categories import Categories
from deformable_detr.checkpoints import load_checkpoint
from deformable_detr.checkpoints.side_records import read_classes, read_side_records

NAMES = ("cell", "vessel", "nucleus", "dust", "edge")
NUMBERED = dict(enumerate(NAMES))
CLASS_FORMS = {
    "list": list(NAMES),
    "tuple": NAMES,
    "dict by number": NUMBERED,
    "dict by text": {str(label): name for label, name in NUMBERED.items()},
    "dict by name": {name: label for label, name in NUMBERED.items()},
    "coco": [{"id": label, "name": name, "supercategory": "x"} for label, name in NUMBERED.items()],
    "coco from 1": [{"id": label + 1, "name": name} for label, name in NUMBERED.items()],
    "commas": ", ".join(NAMES),
    "json": json.dumps(NUMBERED),
    "yaml": yaml.safe_dump(list(NAMES)),
    "numpy": np.array(NAMES),
    "numpy objects": np.array(NAMES, dtype=object),
}
PLACES = {
    "top": lambda value: {"classes": value},
    "meta": lambda value: {"meta": {"dataset_meta": {"CLASSES": value}}},
    "args": lambda value: {"args": argparse.Namespace(class_names=value, lr=1e-4)},
    "dict of args": lambda value: {"hyper_parameters": {"data": {"names": value}}},
}


@pytest.fixture
def load(make_model, tmp_path):
    def load(beside, variant="one-stage", **options):
        torch.save({"model": make_model(variant).state_dict()} | beside, tmp_path / "x.pth")
        return load_checkpoint(tmp_path / "x.pth", **options)

    return load


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", CLASS_FORMS)
def test_class_names(form, place, load):
    categories = load(PLACES[place](CLASS_FORMS[form])).model.metadata.categories
    assert categories.names == NAMES
    assert categories.ids == (tuple(range(1, 6)) if form == "coco from 1" else tuple(range(5)))


def test_class_names_in_yaml_and_json_texts(load):
    for text in (yaml.safe_dump({"data": {"names": NUMBERED}}), json.dumps({"data": {"names": NUMBERED}})):
        assert load({"config": text}).model.metadata.categories.names == NAMES


def test_numbers_with_holes():
    first, second = read_classes({0: "a", 3: "b"}, 4), read_classes({1: "a", 2: "b"}, 3)
    assert isinstance(first, Categories) and first.names == ("a", "N/A", "N/A", "b")
    assert isinstance(second, Categories) and second.names == ("N/A", "a", "b")
    holes = read_classes({7: "b", 2: "a"}, 2)  # more than there are rows: the rows are in their order
    assert isinstance(holes, Categories)
    assert holes.names == ("a", "b") and holes.ids == (2, 7)
    assert read_classes(["a", "b"], 3) == "it names 2 classes, but the heads have 3 rows"
    assert read_classes({"a": {"b": 1}}, 3) is None and read_classes(5, 3) is None


def test_class_names_that_do_not_fit_are_said(load):
    loaded = load({"classes": ["a", "b"]})
    assert loaded.model.metadata.categories is None
    assert "classes not used: it names 2 classes, but the heads have 5 rows" in loaded.report.notes


THRESHOLDS = (0.1, 0.2, 0.35, 0.4, 0.55)


@pytest.mark.parametrize(
    "form",
    [
        list(THRESHOLDS),
        dict(enumerate(THRESHOLDS)),
        dict(zip(NAMES, THRESHOLDS, strict=True)),
        {str(label): value for label, value in enumerate(THRESHOLDS)},
        torch.tensor(THRESHOLDS),
        np.array(THRESHOLDS),
        json.dumps(THRESHOLDS),
    ],
    ids=["list", "by label", "by name", "by text", "tensor", "numpy", "json"],
)
def test_thresholds(form, load):
    found = load({"thresholds": form, "classes": list(NAMES)}).model.metadata.thresholds
    assert found == pytest.approx(THRESHOLDS, abs=1e-7)


@pytest.mark.parametrize("value", [[0.5, 0.5], [0.5, 0.5, 0.5, 0.5, 1.5], {"cell": 0.5}, "high"])
def test_thresholds_that_do_not_fit_are_said(value, load):
    loaded = load({"thresholds": value, "classes": list(NAMES)})
    assert loaded.model.metadata.thresholds is None
    assert any(note.startswith("thresholds not used") for note in loaded.report.notes)


def test_sizes_normalisation_and_settings(load):
    beside = {
        "args": argparse.Namespace(nheads=4, enc_n_points=8, dec_n_points=8, dropout=0.3),
        "preprocessing": {"shortest_edge": 480, "longest_edge": 640, "mean": [127.5] * 3, "std": np.array([51.0] * 3)},
    }
    metadata = load(beside).model.metadata
    assert (metadata.eval_short_side, metadata.max_long_side) == (480, 640)
    assert (metadata.mean, metadata.std) == ((0.5,) * 3, (0.2,) * 3)
    assert (metadata.model.num_heads, metadata.model.num_encoder_points, metadata.model.dropout) == (4, 8, 0.3)


MMENGINE_CONFIG = """
_base_ = ['../_base_/default_runtime.py']
model = dict(
    type='DeformableDETR',
    num_queries=12,
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_levels=4, embed_dims=64, num_heads=8))))
train_pipeline = [dict(type='Resize', scale=(2000, 1200), keep_ratio=True)]
test_pipeline = [dict(type='LoadImageFromFile', backend_args=None), dict(type='Resize', scale=(1000, 600), keep_ratio=True)]
load_from = some_call('x')
"""


def test_the_config_text_of_mmengine(load):
    loaded = load({"meta": {"cfg": MMENGINE_CONFIG, "dataset_meta": {"classes": NAMES}}}, "two-stage")
    metadata = loaded.model.metadata
    assert metadata.model.num_queries == 12
    assert (metadata.eval_short_side, metadata.max_long_side) == (600, 1000)
    assert metadata.mean == pytest.approx((0.485, 0.456, 0.406))
    assert metadata.categories.names == NAMES


def test_what_is_not_used_is_said(load):
    loaded = load({"epoch": 3, "best_map": 0.5, "optimizer": {"state": {}}, "classes": list(NAMES)})
    assert "beside the weights and not used: epoch, best_map" in loaded.report.notes
    assert "training state left behind: optimizer" in loaded.report.notes


def test_our_own_record(make_model, load):
    metadata = make_model("one-stage").metadata
    for form in (metadata.to_dict(), json.dumps(metadata.to_dict())):
        assert load({"metadata": form}).model.metadata == metadata


def test_the_original_arguments_that_this_network_has_not(load):
    with pytest.raises(ValueError, match=r"args.position_embedding is 'learned': only 'sine' is known"):
        load({"args": argparse.Namespace(position_embedding="learned")})


@pytest.mark.parametrize("value", [None, [], {}, "x" * 10, {"a": {"b": [1, {"c": None}]}}, [[1]], "a: [b", "{", object])
def test_anything_may_lie_beside(value):
    records = read_side_records({"note": value, "args": {"deep": value}}, 5)
    assert records.settings == {} and records.details == {}
