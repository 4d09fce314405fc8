"""AdamW with the official parameter groups, and the learning-rate schedules, counted in optimiser steps (paper, app. A.2)."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

from timm.models import group_parameters
from torch import nn
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer

from deformable_detr.schema import known

SAMPLING_LAYERS = ("sampling_offsets", "reference_points")
"""Names of the layers that say where to look: they have a reduced learning rate, since a small change moves all sampling points."""

PARTS = {name: name for name in ("backbone", "neck", "encoder", "decoder", "class_heads")} | {"queries": "query_source"}
"""What may be frozen, and the module of the model that it is."""

Schedule = Callable[[float], float]
"""Number of finished optimiser steps, or a place between two → what the learning rates are multiplied by in the next one."""


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Keep the weights of some parts as they are.

    Args:
        model: a detector.
        parts: names in :data:`PARTS`.

    Raises:
        ValueError: an unknown part.
    """
    for part in parts:
        model.get_submodule(PARTS[known(part, "part to freeze", PARTS)]).requires_grad_(False)


def _group_of_parameters(model: nn.Module, *, separate_sampling: bool) -> dict[Parameter, str]:
    """The group of every parameter that is not an ordinary one."""
    group_of: dict[Parameter, str] = {}
    for name, module in model.named_modules():
        if name == "backbone":
            group_of.update(dict.fromkeys(module.parameters(), "backbone"))
        elif separate_sampling and name.rpartition(".")[2] in SAMPLING_LAYERS:
            group_of.update(dict.fromkeys(module.parameters(), "sampling"))
    return group_of


def _backbone_layers(model: nn.Module) -> dict[Parameter, int]:
    """The number of the layer of each parameter of a plain ViT, as timm counts them: 0 is the embedding."""
    network: Any = getattr(getattr(getattr(model, "backbone", None), "body", None), "model", None)
    if not hasattr(network, "group_matcher"):
        raise ValueError("optimizer.backbone_layer_decay is for plain ViT backbones; timm does not order the layers of this one")
    numbers = cast(dict[str, int], group_parameters(network, network.group_matcher(coarse=False), reverse=True))
    return {parameter: numbers[name] for name, parameter in network.named_parameters()}


def build_optimizer(
    model: nn.Module,
    *,
    lr: float = 2e-4,
    backbone_lr_scale: float = 0.1,
    sampling_lr_scale: float = 0.1,
    backbone_layer_decay: float = 1.0,
    weight_decay: float = 1e-4,
) -> AdamW:
    """AdamW with the official groups: the backbone and the sampling layers at a tenth of the learning rate, decay on everything.

    The groups are called `transformer`, `backbone` and `sampling`. A sampling learning rate equal to lr makes no group of its own
    (DINO has two groups, H-DETR three).

    Args:
        model: with a `backbone`; its layers in :data:`SAMPLING_LAYERS` make the group `sampling`. Parameters with
            `requires_grad=False` are left out.
        lr: learning rate of everything else.
        backbone_lr_scale: the backbone's learning rate as a share of lr.
        sampling_lr_scale: the sampling layers' learning rate as a share of lr.
        backbone_layer_decay: each layer of a plain ViT learns at this share of the rate of the layer after it, in a group
            `backbone.0`, `backbone.1`, … of its own; the last one has the backbone's learning rate.
        weight_decay: decoupled weight decay, also on biases and norms, as in the official recipe.

    Raises:
        ValueError: a value out of range, a layer decay for a backbone without such layers, or nothing to train.
    """
    shares = {"backbone_lr_scale": backbone_lr_scale, "sampling_lr_scale": sampling_lr_scale}
    for name, value in {"lr": lr, **shares, "weight_decay": weight_decay}.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"optimizer.{name} must be a number of at least 0, not {value}")
    if not 0 < backbone_layer_decay <= 1:
        raise ValueError(f"optimizer.backbone_layer_decay must lie in (0, 1], not {backbone_layer_decay}")
    scales = {"transformer": 1.0, "backbone": backbone_lr_scale, "sampling": sampling_lr_scale}
    group_of = _group_of_parameters(model, separate_sampling=sampling_lr_scale != 1)
    if backbone_layer_decay < 1:
        layer_of = _backbone_layers(model)
        last = max(layer_of.values())
        scales |= {f"backbone.{layer}": backbone_lr_scale * backbone_layer_decay ** (last - layer) for layer in range(last + 1)}
        group_of |= {parameter: f"backbone.{layer}" for parameter, layer in layer_of.items()}
    members: dict[str, list[Parameter]] = {name: [] for name in scales}
    for parameter in model.parameters():
        if parameter.requires_grad:
            members[group_of.get(parameter, "transformer")].append(parameter)
    groups = [{"params": members[name], "lr": lr * scales[name], "name": name} for name in scales if members[name]]
    if not groups:
        raise ValueError("the model has no parameter to train: all of them have requires_grad=False")
    on = {parameter.device.type for group in groups for parameter in group["params"]}
    fused = True if on <= {"cpu", "cuda"} else None  # one pass over all parameters: a step of r50 takes a third of the time
    return AdamW(groups, lr=lr, weight_decay=weight_decay, fused=fused)


def build_schedule(
    total_steps: int,
    *,
    schedule: Literal["step", "cosine", "flat-cosine"] = "step",
    drop_at: float = 0.8,
    drop_factor: float = 0.1,
    warmup_steps: int = 0,
) -> Schedule:
    """The factor on the learning rates as a function of the number of finished steps.

    Args:
        total_steps: optimiser steps of the whole training.
        schedule: `step`: multiply by drop_factor from step `drop_at * total_steps` on (official: epoch 40 of 50).
            `cosine`: half a cosine from 1 after the warm-up to 0 at the end. `flat-cosine`: 1 for the first half of the training,
            then half a cosine to 0.
        drop_at: when to drop, as a share of the training in [0, 1]; 1: never.
        drop_factor: what the learning rate is multiplied by at the drop.
        warmup_steps: the first steps take the shares 1/n, 2/n … n/n of the learning rate.

    Raises:
        ValueError: a value out of its range.
    """
    if total_steps < 1:
        raise ValueError(f"the training must have at least 1 step, not {total_steps}")
    if not 0 <= drop_at <= 1:
        raise ValueError(f"optimizer.drop_at is a share of the training and must be in [0, 1], not {drop_at}")
    if not 0 <= drop_factor < math.inf or warmup_steps < 0:
        raise ValueError(f"optimizer.drop_factor ({drop_factor}) and warmup_steps ({warmup_steps}) must be at least 0")
    drop_step = round(drop_at * total_steps)

    def step_factor(step: float) -> float:
        return drop_factor if step >= drop_step and drop_at < 1 else 1.0

    def cosine_factor(step: float) -> float:
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))

    def flat_cosine_factor(step: float) -> float:
        return 0.5 * (1 - math.cos(2 * math.pi * min(1.0, max(0.5, step / total_steps))))

    shapes: dict[str, Schedule] = {"step": step_factor, "cosine": cosine_factor, "flat-cosine": flat_cosine_factor}
    if schedule not in shapes:
        raise ValueError(f"unknown optimizer.schedule {schedule!r}; known are {', '.join(shapes)}")
    shape = shapes[schedule]
    return lambda step: shape(step) * (min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0)


def set_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Set the learning rate of every group to `factor` times the learning rate it was built with."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * factor
