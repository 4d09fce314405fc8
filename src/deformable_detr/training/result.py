"""Progress and result of a run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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
    """The epoch's steps are done, its evaluation is not."""
