"""A recipe applied to the dataset and batch size of a run."""

import os
from typing import Any

from deformable_detr.config import RunConfig
from deformable_detr.data.dataset import DetectionDataset, open_dataset
from deformable_detr.data.facts import data_facts
from deformable_detr.recipes import recipe_settings


def settings_of_recipe(config: RunConfig, dataset: DetectionDataset | None = None) -> dict[str, Any]:
    """What the recipe of a run chooses, by the settings' full names; explicit settings have precedence.

    Args:
        config: with a recipe; dataset, weights and the numbers that make the batch are looked at.
        dataset: the opened dataset; None opens it.

    Raises:
        ValueError: `finetune` without weights, or a damaged annotation file.
        FileNotFoundError: no such dataset or split.
    """
    if config.recipe == "finetune" and config.weights is None:
        raise ValueError(
            "recipe finetune starts from a trained detector: give --weights FILE (official, mmdetection, Hugging Face, detrex or "
            "our own weights), or take --recipe small-data, which starts from an ImageNet backbone"
        )
    train = config.train
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    together = train.target_batch_size if train.batch_size == "auto" else train.batch_size * train.accumulate * processes
    split = open_dataset(dataset or config.dataset).split(config.data.train_split).check()
    return recipe_settings(str(config.recipe), data_facts(split.annotations), together)
