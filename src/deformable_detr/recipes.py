"""Settings for a user's own images, chosen by their number and sizes; the reason for each value is in docs/recipes.md."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deformable_detr.schema import known


@dataclass(frozen=True)
class DataFacts:
    """What a recipe looks at."""

    num_images: int
    """Training images."""

    short_side: int
    """Median short side of the images (pixels)."""

    aspect: float
    """Largest long side over short side of an image, the rarest 2 % left out."""

    small_object: float
    """Short side of an object that is smaller than nine of ten, as a share of its image's short side, in (0, 1]."""

    most_objects: int
    """Objects in the fullest image."""


PRESETS = {"finetune": "r50-two-stage", "small-data": "r18-fast"}
"""The network of each recipe, where none is named."""

STEPS = {"finetune": 1500, "small-data": 2000}
"""Length of each recipe, where neither steps nor a time are given (optimiser steps)."""

SMALL_DATA = 2000
"""With more training images than this, the recipe `small-data` takes a larger transformer, and is not taken by itself."""

SMALLEST_OBJECT = 14
"""Wanted width, in the network's input, of an object smaller than nine of ten (pixels): nearly two cells of the finest level."""

GRID = 64
"""Input sizes are multiples of this, the stride of the coarsest level. At others its last cells reach beyond the image, and a place
means other pixels there than on the finer levels; docs/recipes-measured.md has what that costs (pixels)."""

SHORT_SIDES = (256, 768)
"""Smallest and largest input size that is chosen."""

QUERIES_PER_OBJECT = 3.5
"""Several queries of each object learn."""

EVALUATIONS = 12
"""About so many evaluations in a run: each costs time, and the last weights are nearly always the best ones."""


def recipe_settings(
    name: str, facts: DataFacts, images_per_step: int, *, steps: int | None = None, short_side: int | None = None
) -> dict[str, Any]:
    """The settings of a recipe by their full names, such as `optimizer.lr`.

    Args:
        name: `finetune` or `small-data`.
        facts: about the training split.
        images_per_step: batch_size x accumulate x processes.
        steps: optimiser steps of the run; None: those of :data:`STEPS`.
        short_side: input size in pixels; None: as the objects need it.

    Raises:
        ValueError: an unknown recipe.
    """
    choose = RECIPES[known(name, "recipe", RECIPES)]
    return {
        **_sizes(facts, short_side or eval_short_side(facts)),
        **_course(facts, images_per_step, steps or STEPS[name]),
        **choose(facts, images_per_step),
        "data.color_jitter": 0.5,
        "model.frozen_backbone_stages": 2,
    }


def _finetune(facts: DataFacts, images_per_step: int) -> dict[str, Any]:
    """From the weights of a detector: nearly everything is learned already, so few steps at a low learning rate."""
    del facts
    return {
        "optimizer.lr": _learning_rate(1e-4, images_per_step),
        "optimizer.backbone_lr_scale": 0.1,
        "optimizer.sampling_lr_scale": 0.1,
    }


def _small_data(facts: DataFacts, images_per_step: int) -> dict[str, Any]:
    """From an ImageNet backbone: neck and transformer are learned from these images alone, so they are small, and each object
    teaches several queries, in matching and by denoising; a suppressor learns which of them is to speak."""
    small = facts.num_images <= SMALL_DATA
    return {
        "optimizer.lr": _learning_rate(1.4e-3, images_per_step),
        "optimizer.backbone_lr_scale": 0.2,
        "optimizer.sampling_lr_scale": 1.0,
        "optimizer.clip_grad_norm": 0.5,
        "loss.encoder_copies": 4,
        "data.vertical_flip": "auto",
        "data.transpose": "auto",
        "model.hidden_dim": 128 if small else 256,
        "model.ffn_dim": 512 if small else 1024,
        "model.num_encoder_layers": 2 if small else 3,
        "model.num_decoder_layers": 3,
        "model.look_forward_twice": True,
        "model.suppressor": True,
        "model.dropout": 0.0,
        "model.num_queries": num_queries(facts),
    }


RECIPES: dict[str, Callable[[DataFacts, int], dict[str, Any]]] = {"finetune": _finetune, "small-data": _small_data}


def eval_short_side(facts: DataFacts) -> int:
    """About the input size at which the small objects keep :data:`SMALLEST_OBJECT` pixels; at most 1.5 times the images' own, both
    within :data:`SHORT_SIDES` (pixels)."""
    low, high = SHORT_SIDES
    return on_grid(min(high, max(low, min(SMALLEST_OBJECT / facts.small_object, 1.5 * facts.short_side))))


def num_queries(facts: DataFacts) -> int:
    """:data:`QUERIES_PER_OBJECT` for each object of the fullest image, 100 to 900 in all: unused ones cost time."""
    return min(900, max(100, 20 * math.ceil(QUERIES_PER_OBJECT * facts.most_objects / 20)))


def _learning_rate(at_four: float, images_per_step: int) -> float:
    """The square-root rule of Adam: gradient noise falls with the root of the batch size, so the learning rate may rise with it."""
    return float(f"{at_four * math.sqrt(min(images_per_step, 64) / 4):.2g}")


def _course(facts: DataFacts, images_per_step: int, steps: int) -> dict[str, Any]:
    """What goes with the length of the run: evaluations, average of the weights, warm-up, fall of the rate."""
    epochs = math.ceil(steps / max(1, facts.num_images // images_per_step))
    return {
        "train.steps": steps,
        "train.evaluate_every": max(1, round(epochs / EVALUATIONS)),
        "train.ema_decay": round(max(0.9, min(0.9997, 1 - 10 / steps)), 5),
        "optimizer.schedule": "cosine",
        "optimizer.warmup_steps": max(1, min(500, steps // 20)),
    }


def _sizes(facts: DataFacts, short: int) -> dict[str, Any]:
    """The input size, and smaller ones beside it as augmentation: larger ones would cost more and are not needed."""
    around = sorted({on_grid(short * factor) for factor in (0.75, 0.875, 1.0)})
    return {
        "data.eval_short_side": short,
        "data.train_short_sides": tuple(around),
        "data.crop_short_sides": (),
        "data.max_long_side": GRID * math.ceil(max(short, *around) * min(3.0, facts.aspect) / GRID),
        "data.pad_size_divisor": GRID,
    }


def on_grid(side: float) -> int:
    """The nearest multiple of :data:`GRID`, at least one (pixels)."""
    return max(GRID, GRID * round(side / GRID))
