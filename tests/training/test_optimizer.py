import math
from typing import cast

import pytest
import timm
import torch
from torch import nn

from deformable_detr.model import build_model
from deformable_detr.training.optimizer import PARTS, build_optimizer, build_schedule, freeze, set_learning_rates


@pytest.mark.parametrize(
    ("preset", "trainable"),
    [("r50", 39_847_265), ("r50-refine", 40_627_260), ("r50-two-stage", 40_959_129), ("r50-single-scale", 33_844_193)],
)
def test_the_groups_are_the_official_ones(preset: str, trainable: int) -> None:
    """The official recipe picks them by parts of names; ours must come to the same."""
    with torch.device("meta"):
        model = build_model(preset, num_classes=91, pretrained_backbone=False)
    groups = {group["name"]: group for group in build_optimizer(model, lr=2e-4).param_groups}

    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    backbone = {name for name in named if name.startswith("backbone.")}
    sampling = {name for name in named if "sampling_offsets" in name or "reference_points" in name}
    expected = {"backbone": backbone, "sampling": sampling, "transformer": named.keys() - backbone - sampling}
    for name, names in expected.items():
        assert {id(parameter) for parameter in groups[name]["params"]} == {id(named[key]) for key in names}
    assert {name: group["lr"] for name, group in groups.items()} == pytest.approx(
        {"transformer": 2e-4, "backbone": 2e-5, "sampling": 2e-5}
    )
    assert sum(parameter.numel() for group in groups.values() for parameter in group["params"]) == trainable
    # 6 encoder and 6 decoder layers of Linear(256, heads * levels * points * 2); r50 has Linear(256, 2) for the references
    offsets = 12 * (256 + 1) * 8 * (1 if "single" in preset else 4) * 4 * 2
    references = 0 if "two-stage" in preset else (256 + 1) * 2
    assert sum(parameter.numel() for parameter in groups["sampling"]["params"]) == offsets + references


def test_weight_decay_is_on_everything_and_the_rates_are_settings() -> None:
    model = build_model("tiny", pretrained_backbone=False)
    optimizer = build_optimizer(model, lr=1e-3, backbone_lr_scale=1.0, sampling_lr_scale=0.5, weight_decay=0.03)
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {
        "transformer": 1e-3,
        "backbone": 1e-3,
        "sampling": 5e-4,
    }
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.03}


def test_what_is_frozen_is_left_out() -> None:
    model = build_model("tiny", pretrained_backbone=False)
    model.backbone.requires_grad_(False)
    assert [group["name"] for group in build_optimizer(model).param_groups] == ["transformer", "sampling"]
    groups = build_optimizer(build_model("tiny"), backbone_lr_scale=0).param_groups  # theirs is cleared with all other gradients
    assert {group["name"]: group["lr"] for group in groups}["backbone"] == 0
    with pytest.raises(ValueError, match="no parameter to train"):
        build_optimizer(model.requires_grad_(False))


@pytest.mark.parametrize("name", ["lr", "backbone_lr_scale", "sampling_lr_scale", "weight_decay"])
def test_negative_settings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"optimizer.{name} must be"):
        build_optimizer(nn.Linear(2, 2), **{name: -1.0})


def test_the_step_schedule_drops_once() -> None:
    factor = build_schedule(50, schedule="step", drop_at=0.8)  # official, counted in epochs: 40 of 50
    assert [factor(step) for step in (0, 39, 40, 49)] == [1, 1, 0.1, 0.1]
    assert build_schedule(50, drop_at=1.0)(49) == 1
    assert build_schedule(1000, drop_at=0.5, drop_factor=0.25)(500) == 0.25


def test_the_cosine_schedule_with_warmup() -> None:
    factor = build_schedule(104, schedule="cosine", warmup_steps=4)
    assert [factor(step) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert factor(54) == pytest.approx(0.5)  # half of the 100 steps after the warm-up
    assert factor(79) == pytest.approx((1 - math.sqrt(0.5)) / 2)  # three quarters
    assert factor(103) == pytest.approx(0.000247, abs=1e-6)
    assert factor(104) == 0


def test_the_rates_are_set_from_those_at_the_start() -> None:
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([{"params": [first], "lr": 0.2}, {"params": [second], "lr": 0.02}])
    for factor in (0.5, 0.1):  # not cumulative
        set_learning_rates(optimizer, factor)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.002])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_steps": 0}, "at least 1 step"),
        ({"total_steps": 9, "drop_at": 1.2}, "drop_at is a share"),
        ({"total_steps": 9, "warmup_steps": -1}, "warmup_steps"),
        ({"total_steps": 9, "schedule": "linear"}, "unknown optimizer.schedule 'linear'"),
    ],
)
def test_schedules_that_make_no_sense(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_schedule(**settings)


def test_dino_has_two_groups_and_h_detr_three() -> None:
    with torch.device("meta"):
        dino, hybrid = (build_model(name, pretrained_backbone=False) for name in ("r50-dino", "r50-hdetr"))
    groups = {group["name"]: group["lr"] for group in build_optimizer(dino, lr=1e-4, sampling_lr_scale=1.0).param_groups}
    assert groups == pytest.approx({"transformer": 1e-4, "backbone": 1e-5})
    groups = {group["name"]: group["lr"] for group in build_optimizer(hybrid, lr=2e-4).param_groups}
    assert groups == pytest.approx({"transformer": 2e-4, "backbone": 2e-5, "sampling": 2e-5})


def test_layers_of_a_plain_vit_learn_the_slower_the_earlier_they_come() -> None:
    model = nn.Module()
    model.backbone, model.head = nn.Module(), nn.Linear(2, 2)
    model.backbone.body = timm.create_model(
        "vit_tiny_patch16_224", features_only=True, out_indices=(-1,), pretrained=False, depth=3
    )
    model.backbone.norm = nn.LayerNorm(4)  # beside the ViT
    groups = {
        group["name"]: group
        for group in build_optimizer(model, lr=1.0, backbone_lr_scale=0.1, backbone_layer_decay=0.5).param_groups
    }
    assert {name: group["lr"] for name, group in groups.items()} == pytest.approx(
        {"transformer": 1, "backbone": 0.1, "backbone.0": 0.1 / 8, "backbone.1": 0.1 / 4, "backbone.2": 0.1 / 2, "backbone.3": 0.1}
    )
    blocks = cast(nn.Sequential, model.get_submodule("backbone.body.model.blocks"))
    for layer in range(3):
        assert set(groups[f"backbone.{layer + 1}"]["params"]) >= set(blocks[layer].parameters())
    grouped = [parameter for group in groups.values() for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(list(model.parameters()))
    with pytest.raises(ValueError, match="for plain ViT backbones"):
        build_optimizer(build_model("tiny"), backbone_layer_decay=0.5)
    with pytest.raises(ValueError, match=r"backbone_layer_decay must lie in \(0, 1\]"):
        build_optimizer(model, backbone_layer_decay=0.0)


def test_the_flat_cosine_schedule_stays_for_half_of_the_training() -> None:
    factor = build_schedule(100, schedule="flat-cosine", warmup_steps=4)
    assert [factor(step) for step in (0, 3, 20, 50)] == pytest.approx([0.25, 1, 1, 1])
    assert factor(75) == pytest.approx(0.5) and factor(100) == pytest.approx(0)


def test_frozen_parts_are_left_out() -> None:
    model = build_model("tiny", pretrained_backbone=False)
    before = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    freeze(model, ["backbone", "encoder"])
    after = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert before - after == {name for name in before if name.startswith(("backbone.", "encoder."))}
    groups = build_optimizer(model, sampling_lr_scale=1).param_groups
    assert [group["name"] for group in groups] == ["transformer"]
    assert sum(len(group["params"]) for group in groups) == len(after)


def test_every_weight_belongs_to_a_part_that_can_be_frozen() -> None:
    model = build_model("tiny", pretrained_backbone=False, denoising_queries=10)
    freeze(model, list(PARTS))
    left = {name.partition(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert left <= {"flatten", "suppressor", "denoising"}  # the level embedding, and what training alone has
    with pytest.raises(ValueError, match="unknown part to freeze 'enc'; did you mean 'encoder'"):
        freeze(model, ["enc"])
