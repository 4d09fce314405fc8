"""What a dataset holds, in numbers, and which settings suit it."""

from dataclasses import dataclass

import numpy as np

from deformable_detr.data.doctor.classes import class_counts
from deformable_detr.data.doctor.split_data import SplitData
from deformable_detr.data.facts import measure
from deformable_detr.recipes import QUERIES_PER_OBJECT, SMALLEST_OBJECT, eval_short_side, num_queries

SMALL, LARGE = 32**2, 96**2
"""Areas in pixels between small, medium and large, as COCO has them."""


@dataclass(frozen=True)
class SplitStatistics:
    """The numbers of a split."""

    images: int
    boxes: int
    empty_images: int
    most_objects: int
    """In one image."""

    mean_objects: float
    """Per image."""

    median_size: tuple[int, int]
    """(width, height) of the images in pixels."""

    shares: dict[str, float]
    """Of small, medium and large boxes."""

    classes: dict[str, int]
    """Boxes per class, the most frequent first."""


@dataclass(frozen=True)
class Suggestion:
    """A setting that suits the data, and why."""

    setting: str
    value: int
    reason: str


def split_statistics(data: SplitData) -> SplitStatistics:
    """Count a split."""
    objects = np.bincount(data.images, minlength=len(data.image_ids))
    areas = data.boxes[:, 2] * data.boxes[:, 3]
    sized = areas[areas > 0]
    small, large = (int((sized < bound).sum()) for bound in (SMALL, LARGE))
    counts = {"small": small, "medium": large - small, "large": len(sized) - large}
    height, width = np.median(data.sizes, axis=0) if len(objects) else (0, 0)
    return SplitStatistics(
        images=len(objects),
        boxes=len(data.boxes),
        empty_images=int((objects == 0).sum()),
        most_objects=int(objects.max(initial=0)),
        mean_objects=round(len(data.boxes) / max(len(objects), 1), 2),
        median_size=(int(width), int(height)),
        shares={name: round(count / max(len(sized), 1), 4) for name, count in counts.items()},
        classes=dict(class_counts(data).most_common()),
    )


def suggestions(training: SplitData) -> list[Suggestion]:
    """The input size and the number of queries that the recipe `small-data` chooses for these training images.

    Args:
        training: the images that would be trained on.
    """
    try:
        facts = measure(training.sizes, training.images, training.boxes)
    except ValueError:  # not one box
        return []
    side, queries = eval_short_side(facts), num_queries(facts)
    small = facts.small_object * facts.short_side
    size_reason = (
        f"of ten objects nine are wider than {small:.0f} pixels in images whose short side is {facts.short_side}; at a short side "
        f"of {side} that is {facts.small_object * side:.0f}, and {SMALLEST_OBJECT} are nearly two cells of the finest level"
    )
    if (needed := SMALLEST_OBJECT / facts.small_object) > side + 16:
        size_reason += f". That would need {needed:.0f}: consider tiles, or accept that the smallest are missed"
    query_reason = (
        f"at most {facts.most_objects} objects in one image, and several queries learn each: {QUERIES_PER_OBJECT} for each, "
        "at least 100 (300 is the default, and what weights have)"
    )
    return [Suggestion("data.eval_short_side", side, size_reason), Suggestion("model.num_queries", queries, query_reason)]
