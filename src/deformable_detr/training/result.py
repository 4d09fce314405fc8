"""Progress and result of a run."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from deformable_detr.training.run_folder import RunFolder

logger = logging.getLogger(__name__)

POSITION = ("step", "epoch", "lr", "train_loss")
"""What a row of the history has beside the metrics."""


@dataclass(frozen=True)
class TrainResult:
    """The result of a run."""

    output_dir: Path
    """The run's folder."""

    metrics: dict[str, float | None]
    """Of the last evaluation, such as `ap`, `ap50`; None without objects in the images; empty without a validation split."""

    best_metrics: dict[str, float | None]
    """Of the evaluation with the highest AP."""

    best_weights: Path
    """Weights with the highest AP; the last ones without a validation split."""

    last_weights: Path
    """Weights at the end."""

    steps: int
    """Optimiser steps done."""

    history: list[dict[str, Any]] = field(default_factory=list)
    """One row per evaluation: step, epoch, lr, train_loss and the metrics."""

    @classmethod
    def of(cls, folder: RunFolder, steps: int, history: list[dict[str, Any]], best: dict[str, Any] | None) -> Self:
        """The result of a finished run, from its files, steps, evaluations, and the one of these with the highest AP."""
        weights = folder.best_weights if best else folder.last_weights
        if not weights.is_file():
            logger.warning("%s is gone, and no evaluation after that was better: the last weights take its place", weights)
            weights = folder.last_weights
        rows = (history[-1] if history else {}, best or {})
        last, most = ({name: value for name, value in row.items() if name not in POSITION} for row in rows)
        return cls(folder.root, last, most, weights, folder.last_weights, steps, history)


@dataclass
class Position:
    """How far a run has come."""

    step: int = 0
    """Optimiser steps done."""

    epoch: int = 0
    """The present epoch, from 0."""

    batch: int = 0
    """Batches of the present epoch that are done."""

    epoch_done: bool = False
    """The steps of the epoch, or of the run within it, are done; the evaluation is not."""
