"""The keywords of the detector's methods, with their types, so that editors complete and check them."""

from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from deformable_detr.class_names import MatchBy


class EvaluationOptions(TypedDict, total=False):
    """How a split of a dataset is evaluated."""

    batch_size: int
    """Images per forward pass (1); the numbers do not depend on it."""

    num_workers: int
    """Processes that read images (2)."""

    top_k: int
    """Detections per image that count (100)."""

    match_by: MatchBy
    """What makes a class of the detector and one of the dataset the same: its `name` (as it is by itself), or its `id`."""

    results_file: str | Path | None
    """Write the detections there, in COCO's result format."""

    progress: Callable[[int, int], None] | None
    """Called after each batch with the number of images that this process has done, and has in all."""
