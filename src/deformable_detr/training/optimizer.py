"""AdamW with the official parameter groups, and the learning-rate schedules, counted in optimiser steps (paper, app. A.2)."""

import math
from collections.abc import Callable
from typing import Any, Literal

from torch import nn
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer

SAMPLING_LAYERS = ("sampling_offsets", "reference_points")
"""Names of the layers that say where to look: they learn at a reduced rate, since a small change moves all sampling points."""

Schedule = Callable[[int], float]
"""Number of finished optimiser steps → what the learning rates are multiplied by in the next one."""


def parameter_groups(
    model: nn.Module, *, lr: float = 2e-4, backbone_lr_scale: float = 0.1, sampling_lr_scale: float = 0.1
) -> list[dict[str, Any]]:
    """The trainable parameters as groups `transformer`, `backbone` and `sampling`, each with its learning rate.

    Args:
        model: a network with a `backbone`; its layers in `SAMPLING_LAYERS` make the group `sampling`.
        lr: learning rate of everything else.
        backbone_lr_scale: the backbone's rate as a share of lr; 0 leaves the backbone out.
        sampling_lr_scale: the sampling layers' rate as a share of lr.

    Raises:
        ValueError: a negative rate, or nothing to train.
    """
    for name, value in (("lr", lr), ("backbone_lr_scale", backbone_lr_scale), ("sampling_lr_scale", sampling_lr_scale)):
        if not 0 <= value < math.inf:
            raise ValueError(f"optimizer.{name} must be a number of at least 0, not {value}")
    scales = {"transformer": 1.0, "backbone": backbone_lr_scale, "sampling": sampling_lr_scale}
    members: dict[str, list[Parameter]] = {name: [] for name in scales}
    group_of = _group_of_parameters(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            members[group_of.get(parameter, "transformer")].append(parameter)
    groups = [{"params": members[name], "lr": lr * scales[name], "name": name} for name in scales]
    groups = [group for group in groups if group["params"] and not (group["name"] == "backbone" and backbone_lr_scale == 0)]
    if not groups:
        raise ValueError("the model has no parameter to train: all of them have requires_grad=False")
    return groups


def _group_of_parameters(model: nn.Module) -> dict[Parameter, str]:
    """The group of every parameter that is not an ordinary one."""
    group_of: dict[Parameter, str] = {}
    for name, module in model.named_modules():
        if name == "backbone":
            group_of.update(dict.fromkeys(module.parameters(), "backbone"))
        elif name.rpartition(".")[2] in SAMPLING_LAYERS:
            group_of.update(dict.fromkeys(module.parameters(), "sampling"))
    return group_of


def build_optimizer(
    model: nn.Module,
    *,
    lr: float = 2e-4,
    backbone_lr_scale: float = 0.1,
    sampling_lr_scale: float = 0.1,
    weight_decay: float = 1e-4,
) -> AdamW:
    """AdamW with the official groups: the backbone and the sampling layers at a tenth of the rate, decay on everything.

    Args:
        model: the network; parameters with `requires_grad=False` are left out.
        lr: learning rate.
        backbone_lr_scale: the backbone's rate as a share of lr.
        sampling_lr_scale: the rate of sampling offsets and reference points as a share of lr.
        weight_decay: decoupled weight decay, also on biases and norms, as in the official recipe.

    Raises:
        ValueError: a negative value, or nothing to train.
    """
    if weight_decay < 0:
        raise ValueError(f"optimizer.weight_decay must be at least 0, not {weight_decay}")
    groups = parameter_groups(model, lr=lr, backbone_lr_scale=backbone_lr_scale, sampling_lr_scale=sampling_lr_scale)
    on = {parameter.device.type for group in groups for parameter in group["params"]}
    fused = True if on <= {"cpu", "cuda"} else None  # one pass over all parameters: a step of r50 takes a third of the time
    return AdamW(groups, lr=lr, weight_decay=weight_decay, fused=fused)


def build_schedule(
    total_steps: int,
    *,
    schedule: Literal["step", "cosine"] = "step",
    drop_at: float = 0.8,
    drop_factor: float = 0.1,
    warmup_steps: int = 0,
) -> Schedule:
    """The factor on the learning rates as a function of the number of finished steps.

    Args:
        total_steps: optimiser steps of the whole training.
        schedule: `step`: multiply by drop_factor from step `drop_at * total_steps` on (official: epoch 40 of 50).
            `cosine`: half a cosine from 1 after the warm-up to 0 at the end.
        drop_at: when to drop, as a share of the training in [0, 1]; 1: never.
        drop_factor: what the rate is multiplied by at the drop.
        warmup_steps: the first steps take the shares 1/n, 2/n … n/n of the rate.

    Raises:
        ValueError: a value out of its range.
    """
    if total_steps < 1:
        raise ValueError(f"the training must have at least 1 step, not {total_steps}")
    if not 0 <= drop_at <= 1:
        raise ValueError(f"optimizer.drop_at is a share of the training and must be in [0, 1], not {drop_at}")
    if drop_factor < 0 or warmup_steps < 0:
        raise ValueError(f"optimizer.drop_factor ({drop_factor}) and warmup_steps ({warmup_steps}) must be at least 0")
    drop_step = round(drop_at * total_steps)

    def step_factor(step: int) -> float:
        return drop_factor if step >= drop_step and drop_at < 1 else 1.0

    def cosine_factor(step: int) -> float:
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))

    shapes: dict[str, Schedule] = {"step": step_factor, "cosine": cosine_factor}
    if schedule not in shapes:
        raise ValueError(f"unknown optimizer.schedule {schedule!r}; known are {', '.join(shapes)}")
    shape = shapes[schedule]
    return lambda step: shape(step) * (min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0)


def set_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Set the learning rate of every group to `factor` times the rate it was built with."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * factor
