"""What a run is still to be told, by its data and its machine: the recipe, and the length that fits into its budget."""

import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from deformable_detr.config import RunConfig
from deformable_detr.data.dataset import DetectionDataset, open_dataset
from deformable_detr.data.facts import data_facts
from deformable_detr.data.findings import REPLACED
from deformable_detr.recipes import RECIPES, SMALL_DATA, DataFacts, recipe_settings
from deformable_detr.settings import SETTINGS, asked_settings, build_config
from deformable_detr.training.budget import Speed, fit_run, measure_speed

logger = logging.getLogger(__name__)

_SAYS_NOTHING = {name for name in SETTINGS if name.startswith("train.")} - {"train.ema_decay", "train.nms_iou"}
_SAYS_NOTHING |= {"dataset", "output_dir", "recipe", "resume", "model.pretrained_backbone", "data.train_split", "data.val_split"}
_SAYS_NOTHING |= {"data.num_workers", "data.on_bad_image", "data.bit_depth"}
_SAYS_NOTHING |= {"data.horizontal_flip", "data.vertical_flip", "data.transpose"}
"""Settings beside which the recipe may still be taken by itself: they do not say how the network is built or learns."""

_NETWORK = ("hidden_dim", "ffn_dim", "num_encoder_layers", "num_decoder_layers", "look_forward_twice")
"""What a recipe says about the network, and does not where a preset was asked for by its name."""

_SIZES = ("data.eval_short_side", "data.train_short_sides", "data.max_long_side")


def plan_run(
    options: Mapping[str, Any], file: str | Path | None = None, *, measure: Callable[[RunConfig], Speed] | None = None
) -> tuple[RunConfig, DetectionDataset | None]:
    """All settings of a run: what was asked for, over what its recipe chooses by the dataset, fitted into its budget.

    Args:
        options: as for :func:`~deformable_detr.settings.asked_settings`.
        file: likewise.
        measure: times steps for the budget; None: real ones.

    Returns:
        The settings, and the opened dataset; None where nothing depends on it and it cannot be opened, or a run is resumed.

    Raises:
        ValueError: settings that make no sense, `finetune` without weights, a damaged annotation file, or such a budget.
        FileNotFoundError: no such file, dataset or split.
    """
    asked = asked_settings(options, file)
    config = build_config(asked)
    if config.resume:
        return config, None
    _check_weights(config)
    try:
        dataset = open_dataset(config.dataset)
    except (OSError, ValueError):
        if config.recipe in RECIPES or config.train.budget is not None:
            raise
        return config, None  # the training says what is wrong with the dataset
    facts = _facts_of_small_data(dataset, config, asked) if config.recipe is None else None
    if facts is not None:
        asked = {**asked, "recipe": "small-data"}
        config = build_config(asked)
    has_recipe = config.recipe in RECIPES
    choose = _chooser(config, asked, facts or _facts(dataset, config)) if has_recipe else lambda **_: {}
    if config.train.budget is None:
        return build_config({**choose(), **asked}), dataset
    if length := [name for name in ("train.steps", "train.epochs") if asked.get(name) is not None]:
        raise ValueError(f"train.budget and {length[0]} both say how long the run is: give one of them")
    resizable = has_recipe and not any(name in asked for name in _SIZES)
    return _fitted(asked, choose, resizable=resizable, measure=measure or partial(measure_speed, dataset=dataset)), dataset


def _facts_of_small_data(dataset: DetectionDataset, config: RunConfig, asked: Mapping[str, Any]) -> DataFacts | None:
    """About the data, where nothing says how to train, they are few, and only a backbone is there to begin with; a line says so."""
    if config.weights is not None or not config.model.pretrained_backbone or not asked.keys() <= _SAYS_NOTHING:
        return None
    try:
        facts = _facts(dataset, config)
    except (FileNotFoundError, ValueError):
        return None  # the training says what is wrong with the dataset
    if facts.num_images > SMALL_DATA:
        return None
    logger.info(
        "%d training images and no weights of a detector: taking --recipe small-data (docs/recipes.md; --recipe none for the "
        "official settings, --budget 30m for a run of that time)",
        facts.num_images,
    )
    return facts


def _check_weights(config: RunConfig) -> None:
    if config.recipe == "finetune" and config.weights is None:
        raise ValueError(
            "recipe finetune starts from a trained detector: give --weights FILE (official, mmdetection, Hugging Face, detrex or "
            "our own weights), or take --recipe small-data, which starts from an ImageNet backbone"
        )


def _facts(dataset: DetectionDataset, config: RunConfig) -> DataFacts:
    return data_facts(dataset.split(config.data.train_split).check(but=REPLACED).annotations)


def _images_per_step(config: RunConfig) -> int:
    train = config.train
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return train.target_batch_size if train.batch_size == "auto" else train.batch_size * train.accumulate * processes


def _chooser(config: RunConfig, asked: Mapping[str, Any], facts: DataFacts) -> Callable[..., dict[str, Any]]:
    """The recipe as a function of the number of steps and the input size, for the length that was asked for.

    Args:
        config: with a recipe.
        asked: what was asked for, by full names.
        facts: about the training split.
    """
    images, steps = _images_per_step(config), config.train.steps
    if steps is None and "train.epochs" in asked:
        steps = config.train.epochs * max(1, facts.num_images // images)
    left_out = {f"model.{name}" for name in _NETWORK} if "preset" in asked else set()
    left_out |= {"model.suppressor"} if config.model.one_to_many_queries else set()  # H-DETR learns one-to-many by a branch
    side = config.data.eval_short_side if "data.eval_short_side" in asked else None  # the others follow it

    def choose(**length: int) -> dict[str, Any]:
        chosen = recipe_settings(str(config.recipe), facts, images, **{"steps": steps, "short_side": side, **length})
        return {name: value for name, value in chosen.items() if name not in left_out}

    return choose


def _fitted(
    asked: Mapping[str, Any],
    choose: Callable[..., dict[str, Any]],
    *,
    resizable: bool,
    measure: Callable[[RunConfig], Speed],
) -> RunConfig:
    """The settings with the number of steps in place of the budget, and what a recipe makes depend on it."""

    def resized(side: int) -> RunConfig:
        return build_config({**choose(short_side=side), **asked})

    config = build_config({**choose(), **asked})
    fit, config = fit_run(config, resized if resizable else None, measure)
    chosen = choose(steps=fit.steps, short_side=config.data.eval_short_side)
    fitted = {"train.steps": fit.steps, "train.seconds": round(fit.budget, 1), "train.budget": None}
    return build_config({**chosen, "train.evaluate_every": fit.evaluate_every, **asked, **fitted})
