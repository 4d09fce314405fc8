"""Class heads by name."""

import logging
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from deformable_detr.categories import Categories
from deformable_detr.checkpoints import load_checkpoint, load_pretrained, save_weights
from deformable_detr.checkpoints.class_mapping import map_classes
from deformable_detr.checkpoints.coco_classes import COCO_80, COCO_91

PRIOR = -math.log(0.99 / 0.01)


@pytest.fixture
def coco_file(variant, make_model, tmp_path):
    model = make_model(variant, COCO_91)
    return model, save_weights(tmp_path / "coco.safetensors", model)


def test_rows_of_common_classes_are_kept_in_every_head(coco_file, caplog):
    model, path = coco_file
    with caplog.at_level(logging.INFO, logger="deformable_detr"):
        loaded = load_checkpoint(path, classes=["Person", "drone", "DOG"])
    old, new = model.state_dict(), loaded.model.state_dict()
    heads = [name.removesuffix(".weight") for name in old if name.startswith("class_heads.") and name.endswith(".weight")]
    assert len(heads) == (2 if model.metadata.model.box_refinement else 1)
    for head in heads:
        assert new[f"{head}.weight"].shape == (3, 64)
        for row, label in ((0, 1), (2, 18)):
            assert torch.equal(new[f"{head}.weight"][row], old[f"{head}.weight"][label])
            assert new[f"{head}.bias"][row] == old[f"{head}.bias"][label]
        assert new[f"{head}.bias"][1] == pytest.approx(PRIOR)
        bound = 1 / math.sqrt(64)
        assert 0.2 * bound < new[f"{head}.weight"][1].abs().mean() < bound
    unchanged = [name for name in old if "class_head" not in name]
    assert all(torch.equal(old[name], new[name]) for name in unchanged)
    mapping, categories = loaded.class_mapping, loaded.model.metadata.categories
    assert mapping is not None and mapping.sources == (1, None, 18)
    assert mapping.kept == {"Person": "person", "DOG": "dog"} and mapping.fresh == ["drone"]
    assert categories is not None and categories.names == ("Person", "drone", "DOG")
    assert loaded.model.metadata.model.num_classes == 3
    assert "91 → 3 classes" in caplog.text and "DOG (from dog)" in caplog.text and "afresh (1): drone" in caplog.text


def test_objectness_of_the_proposals_stays(make_model, tmp_path):
    model = make_model("two-stage", COCO_91)
    path = save_weights(tmp_path / "a.safetensors", model)
    new = load_pretrained(path, classes=["drone", "dog"]).get_submodule("query_source.class_head")
    old = model.query_source.class_head
    assert isinstance(new, nn.Linear)
    assert torch.equal(new.weight[0], old.weight[0]) and new.bias[0] == old.bias[0]
    assert torch.equal(new.weight[1], old.weight[18])


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("person", 1),
        ("Pedestrian", 1),
        ("motorbike", 4),
        ("AEROPLANE", 5),
        ("traffic_light", 10),
        ("Traffic-Light", 10),
        ("diningtable", 67),
        ("pottedplant", 64),
        ("sofa", 63),
        ("tvmonitor", 72),
        ("mobile phone", 77),
        ("hair dryer", 89),
        ("drone", None),
        ("N/A", None),
    ],
)
def test_names_and_synonyms(name, label):
    assert map_classes(COCO_91, 91, Categories.from_names([name])).sources == (label,)


def test_an_exact_name_wins_over_a_synonym():
    old = Categories.from_names(["sofa", "couch"])
    assert map_classes(old, 2, Categories.from_names(["Couch", "Sofa", "settee"])).sources == (1, 0, None)


def test_from_80_to_91_and_back():
    there = map_classes(COCO_80, 80, COCO_91)
    assert there.sources[0] is None and there.sources[1] == 0 and there.sources[90] == 79
    assert sum(source is None for source in there.sources) == 11
    assert map_classes(COCO_91, 91, COCO_80).sources == COCO_80.ids


def test_80_by_number_alone(make_model, tmp_path):
    path = save_weights(tmp_path / "a.safetensors", make_model("one-stage", COCO_91))
    loaded = load_checkpoint(path, num_classes=80)
    assert loaded.class_mapping is not None and loaded.class_mapping.sources == COCO_80.ids
    assert loaded.model.metadata.categories == COCO_80


def test_a_number_alone_starts_afresh(make_model, tmp_path):
    path = save_weights(tmp_path / "a.safetensors", make_model("refine"))
    loaded = load_checkpoint(path, num_classes=7)
    assert loaded.class_mapping is not None and set(loaded.class_mapping.sources) == {None}
    assert torch.allclose(loaded.model.get_parameter("class_heads.1.bias"), torch.tensor(PRIOR))


def test_same_classes_change_nothing(make_model, tmp_path, assert_same_weights):
    model = make_model("two-stage")
    path = save_weights(tmp_path / "a.safetensors", model)
    assert_same_weights(model, load_pretrained(path, num_classes=5, classes=model.metadata.categories.names))


def test_another_order_moves_the_rows(make_model, tmp_path):
    model = make_model("one-stage")
    path = save_weights(tmp_path / "a.safetensors", model)
    new = load_pretrained(path, classes=model.metadata.categories.names[::-1])
    assert torch.equal(new.get_parameter("class_heads.0.weight"), model.class_heads[0].weight.flip(0))


def test_weights_without_names_take_as_many_new_ones(make_model, tmp_path, assert_same_weights):
    model = make_model("two-stage", None, num_classes=3)
    loaded = load_pretrained(save_weights(tmp_path / "a.safetensors", model), classes=["a", "b", "c"])
    assert_same_weights(model, loaded)
    assert loaded.metadata.categories is not None
    assert loaded.metadata.categories.names == ("a", "b", "c")


def test_weights_without_names_start_afresh(make_model, tmp_path):
    path = save_weights(tmp_path / "a.safetensors", make_model("one-stage", None, num_classes=4))
    mapping = load_checkpoint(path, classes=["a", "b"]).class_mapping
    assert mapping is not None and mapping.sources == (None, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 3, "classes": ["a", "b"]}, "num_classes is 3, but 2 classes are named"),
        ({"classes": []}, "classes is empty"),
        ({"classes": "person"}, "list of names"),
        ({"classes": ["cat", "dog", "cat"]}, "classes has 'cat' and 'cat', which are one name"),
        ({"num_classes": 0}, "at least 1"),
        (
            {"classes": ["Traffic-Light", "car", "traffic light"]},
            "classes has 'Traffic-Light' and 'traffic light', which are one name",
        ),
    ],
)
def test_contradictions(options, message, make_model, tmp_path):
    path = save_weights(tmp_path / "a.safetensors", make_model("one-stage"))
    with pytest.raises(ValueError, match=message):
        load_pretrained(path, **options)


def test_a_mapped_model_can_be_trained(make_model, batch, tmp_path):
    path = save_weights(tmp_path / "a.safetensors", make_model("two-stage", COCO_91))
    model = load_pretrained(path, classes=["dog", "drone"]).train()
    predictions = model(batch)
    (predictions.logits.sum() + predictions.encoder_logits.sum()).backward()
    weight = model.get_parameter("class_heads.0.weight")
    assert weight.grad is not None and weight.grad.shape == (2, 64)
    with torch.no_grad():
        weight.add_(1.0)  # mapped files stay as they are on the disk
    again = load_pretrained(path, classes=["dog", "drone"])
    assert not torch.equal(again.get_parameter("class_heads.0.weight")[0], weight[0])


def test_thresholds_follow_their_classes_or_go(make_model, tmp_path):
    model = make_model("one-stage")  # cell, vessel, nucleus, dust, edge
    model.metadata = replace(model.metadata, thresholds=(0.1, 0.2, 0.3, 0.4, 0.5))
    path = save_weights(tmp_path / "a.safetensors", model)
    assert load_pretrained(path).metadata.thresholds == (0.1, 0.2, 0.3, 0.4, 0.5)
    assert load_pretrained(path, classes=["Dust", "cell"]).metadata.thresholds == (0.4, 0.1)
    assert load_pretrained(path, classes=["dust", "hair"]).metadata.thresholds is None
    assert load_pretrained(path, num_classes=2).metadata.thresholds is None


def test_thresholds_between_the_layouts_of_coco(make_model, tmp_path):
    model = make_model("one-stage", COCO_80)
    model.metadata = replace(model.metadata, thresholds=tuple(label / 100 for label in range(80)))
    loaded = load_pretrained(save_weights(tmp_path / "a.safetensors", model), classes=COCO_91)
    thresholds = loaded.metadata.thresholds
    assert thresholds is not None and len(thresholds) == 91
    for label, name in enumerate(COCO_80.names):
        assert thresholds[COCO_91.names.index(name)] == label / 100
