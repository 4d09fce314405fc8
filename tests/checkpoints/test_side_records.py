"""What stands beside the weights: settings, classes, thresholds and sizes, in the forms in which people store them."""

import argparse
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from deformable_detr.categories import Categories
from deformable_detr.checkpoints import load_checkpoint
from deformable_detr.checkpoints.coco_classes import COCO_NAMES
from deformable_detr.checkpoints.report import Report
from deformable_detr.checkpoints.side_records import read_classes, read_side_records
from deformable_detr.checkpoints.weights import Weights

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


def read(beside):
    """What is said of weights with five classes."""
    weights = Weights({"class_heads.0.bias": torch.zeros(5)}, Report("official"))
    read_side_records(weights, beside)
    return weights


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


@pytest.mark.parametrize("form", ["in a row", "from 1", "by id", "a list"])
def test_coco_s_80_names_stand_at_its_ids_in_heads_of_91_rows(form):
    """Rows 0, 12, 26 … of 91 are no class: the 80 names, numbered in a row, would each stand on another one's channel."""
    names = list(COCO_NAMES.values())
    forms = {"in a row": dict(enumerate(names)), "from 1": dict(enumerate(names, 1)), "by id": COCO_NAMES, "a list": names}
    found = read_classes(forms[form], 91)
    assert isinstance(found, Categories)
    assert [found.names[row] for row in (0, 1, 12, 13, 90)] == ["N/A", "person", "N/A", "stop sign", "toothbrush"]
    own = [f"part {number}" for number in range(80)]
    found = read_classes(own, 91)  # not COCO's: the first rows, as everywhere
    assert isinstance(found, Categories) and found.names[0] == "part 0"


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


def test_of_bare_weights_nothing_is_called_unused(make_model, tmp_path):
    torch.save(make_model("one-stage").state_dict() | {"epoch": 3, "n_averaged": torch.tensor(5)}, tmp_path / "x.pth")
    notes = load_checkpoint(tmp_path / "x.pth").report.notes
    assert [note for note in notes if "not used" in note] == ["beside the weights and not used: epoch"]


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
    records = read({"note": value, "args": {"deep": value}})
    assert records.settings == {} and records.details == {}


REFUSED = {
    "caffe": ("backbone=dict(depth=50, style='caffe')", "style is 'caffe'"),
    "dilated": ("backbone=dict(depth=50, dilations=(1, 1, 1, 2))", r"dilations are .1, 1, 1, 2"),
    "softmax": ("bbox_head=dict(loss_cls=dict(use_sigmoid=False))", "use_sigmoid is False: only True"),
    "gelu": ("decoder=dict(layer_cfg=dict(ffn_cfg=dict(act_cfg=dict(type='GELU'))))", "GELU is no activation"),
    "default of the neck": ("neck=dict(type='ChannelMapper')", "ChannelMapper has an activation"),
    "groups": ("neck=dict(type='ChannelMapper', act_cfg=None, norm_cfg=dict(type='GN', num_groups=16))", "num_groups is 16"),
    "eps": ("encoder=dict(norm_cfg=dict(type='LN', eps=1e-3))", "eps is 0.001: only 1e-5"),
    "default of positions": ("positional_encoding=dict(num_feats=128)", "positions are not normalised"),
    "other positions": ("positional_encoding=dict(type='LearnedPositionalEncoding')", "only SinePositionalEncoding is"),
    "one dilation": ("backbone=dict(dilations=2)", "dilations are 2"),
    "positions": ("positional_encoding=dict(num_feats=128, normalize=False)", "normalize is False"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_config_of_mmdetection_that_computes_something_else_is_refused(case):
    text, reason = REFUSED[case]
    beside = read({"meta": {"cfg": f"model = dict({text})\n"}})
    assert [sentence for sentence in beside.refused if re.search(reason, sentence)], beside.refused


def test_the_usual_config_of_mmdetection_is_not_refused():
    text = (
        "model = dict(backbone=dict(depth=50, style='pytorch', norm_cfg=dict(type='BN', requires_grad=False), "
        "dilations=(1, 1, 1, 1)), neck=dict(type='ChannelMapper', act_cfg=None, norm_cfg=dict(type='GN', num_groups=32)), "
        "encoder=dict(layer_cfg=dict(ffn_cfg=dict(act_cfg=dict(type='ReLU', inplace=True)))), "
        "positional_encoding=dict(num_feats=128, normalize=True, offset=-0.5), bbox_head=dict(loss_cls=dict(use_sigmoid=True)))"
    )
    beside = read({"meta": {"cfg": text}})
    assert not beside.refused
    assert (beside.settings["position_offset"], beside.settings["position_temperature"]) == (0.5, 10_000)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"pre_norm": True}, "args.pre_norm is True: only False is known"),
        ({"pe_temperatureH": 20, "pe_temperatureW": 40}, "pe_temperatureH and pe_temperatureW differ"),
        ({"decoder_sa_type": "ca_label"}, "only 'sa' is known"),
    ],
)
def test_arguments_of_dino_that_compute_something_else_are_refused(arguments, reason):
    assert reason in read({"args": argparse.Namespace(**arguments)}).refused[0]


CAFFE = "data_preprocessor=dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)"


@pytest.mark.parametrize(
    "beside",
    [
        {"meta": {"cfg": f"model = dict({CAFFE})"}},
        {"meta": {"cfg": "img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)"}},
        {"cfg": "INPUT: {FORMAT: BGR}\nMODEL: {PIXEL_MEAN: [103.53, 116.28, 123.675], PIXEL_STD: [1.0, 1.0, 1.0]}\n"},
    ],
)
def test_a_network_of_bgr_channels_takes_rgb(beside, load, make_model):
    """x in RGB from 0 to 1 goes through theirs as conv(flip(255 x) - mean); ours must see the same."""
    model = load(beside).model
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    stem = make_model("one-stage").state_dict()["backbone.body.conv1.weight"]
    theirs = F.conv2d(255 * x.flip(1) - torch.tensor([103.53, 116.28, 123.675])[:, None, None], stem)
    mean, std = (torch.tensor(values)[:, None, None] for values in (model.metadata.mean, model.metadata.std))
    ours = F.conv2d((x - mean) / std, model.state_dict()["backbone.body.conv1.weight"])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-2)


def test_what_mmdetection_does_otherwise_with_images_is_said():
    text = "test_pipeline = [dict(type='Resize', scale=(640, 480), keep_ratio=False)]\n"
    beside = read({"meta": {"cfg": text}})
    assert "images are stretched" in beside.report.lossy[0]
    assert (beside.details["eval_short_side"], beside.details["max_long_side"]) == (480, 640)
    assert read({"test_pipeline": [{"type": "Resize", "scale": 640}]}).details["max_long_side"] == 640


def test_the_normalisation_of_the_test_pipeline_counts():
    pipelines = {"train_pipeline": ([0, 0, 0], [255, 255, 255]), "test_pipeline": ([1, 2, 3], [1, 1, 1])}
    record = {name: [{"type": "Normalize", "mean": mean, "std": std}] for name, (mean, std) in pipelines.items()}
    details = read({"meta": {"cfg": record}}).details
    assert (details["mean"], details["std"]) == ((1 / 255, 2 / 255, 3 / 255), (1 / 255,) * 3)


@pytest.mark.parametrize("value", [{"a": 0, "b": 1, "c": 1}, [{"id": "x0", "name": "a"}], [{"id": 1, "name": "a"}] * 2])
def test_numbers_of_classes_that_stand_twice_or_are_none_make_no_classes(value):
    assert read_classes(value, 3) is None
