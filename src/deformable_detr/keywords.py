"""The keywords of the detector's methods, with their types, so that editors complete and check them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypedDict

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


class PredictionOptions(TypedDict, total=False):
    """How images are predicted on."""

    batch_size: int
    """How many images go through the model at once (1)."""

    top_k: int
    """At most this many detections per image, the best ones (100)."""

    classes: str | Sequence[str] | None
    """Only objects of these classes (names). None: all."""

    nms_iou: float | None
    """Drop detections that overlap a better one of their class by more than this IoU, in (0, 1]; 1 drops none. None: the
    detector's own `nms_iou`, as stored with the weights."""

    on_error: Literal["raise", "skip"]
    """With many images, what an unreadable one does: `raise` (as it is by itself) ends with an error that names it, `skip` leaves
    it out of the list and logs a warning."""

    num_threads: int
    """Threads that read and resize the next images meanwhile (2)."""

    tiles: int | None
    """For images far larger than the model's input: divide them into squares of this many pixels, and merge the detections
    (docs/video.md). `batch_size` then counts tiles. None: do not."""

    tile_overlap: float
    """Share of a tile's side that neighbours have in common (0.2)."""
