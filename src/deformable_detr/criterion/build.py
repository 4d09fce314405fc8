"""The criterion from its settings."""

from dataclasses import asdict

from deformable_detr.config import LossConfig
from deformable_detr.criterion.criterion import SetCriterion


def build_criterion(num_classes: int, config: LossConfig | None = None) -> SetCriterion:
    """The losses of a detector with `num_classes` classes; the official weights where no settings are given."""
    return SetCriterion(num_classes, **asdict(config or LossConfig()))
