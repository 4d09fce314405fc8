"""What a dataset holds, in numbers, and which settings suit it."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deformable_detr.data.doctor.classes import class_counts, training_split
from deformable_detr.data.doctor.split_data import SplitData

SMALL, LARGE = 32**2, 96**2
"""Areas in pixels between small, medium and large, as COCO has them."""

WANTED_PIXELS = 16
"""Side of the small objects in the network's input: two cells of the finest level, which has stride 8."""

LONGEST_SHORT_SIDE, SHORTEST_SHORT_SIDE = 1344, 480
MOST_ENLARGED = 2.0
QUERY_CHOICES = (100, 200, 300, 500, 900)


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
    usable = data.usable_images()
    objects = Counter(data.images.tolist())
    areas = data.boxes[:, 2] * data.boxes[:, 3]
    sized = areas[areas > 0]
    small, large = (int((sized < bound).sum()) for bound in (SMALL, LARGE))
    counts = {"small": small, "medium": large - small, "large": len(sized) - large}
    height, width = np.median(data.sizes[usable], axis=0) if usable else (0, 0)
    return SplitStatistics(
        images=len(usable),
        boxes=len(data.boxes),
        empty_images=sum(objects[image] == 0 for image in usable),
        most_objects=max(objects.values(), default=0),
        mean_objects=round(len(data.boxes) / max(len(usable), 1), 2),
        median_size=(int(width), int(height)),
        shares={name: round(count / max(len(sized), 1), 4) for name, count in counts.items()},
        classes=dict(class_counts(data).most_common()),
    )


def suggestions(splits: Sequence[SplitData]) -> list[Suggestion]:
    """An input size at which the small objects cover two cells of the finest level, and a number of queries with room to spare."""
    data = training_split(splits)
    if data is None or not len(data.boxes):
        return []
    sides = np.sqrt((data.boxes[:, 2] * data.boxes[:, 3]).clip(min=1))
    typical = float(np.percentile(sides, 10))
    short = float(np.median(data.sizes[data.usable_images()].min(axis=1)))
    most = max(Counter(other.images.tolist()).most_common(1)[0][1] for other in splits if len(other.images))
    return [_input_size(typical, short), _queries(most)]


def _input_size(typical: float, short: float) -> Suggestion:
    needed = short * WANTED_PIXELS / typical
    low, high = min(SHORTEST_SHORT_SIDE, short), min(LONGEST_SHORT_SIDE, MOST_ENLARGED * short)
    value = min(max(needed, low), high)
    side = max(32, math.ceil(value / 32) * 32)
    reason = (
        f"a small object (of ten, nine are larger) is {typical:.0f} pixels in images whose short side is {short:.0f}; "
        f"at a short side of {side} it covers {typical * side / short:.0f}, and {WANTED_PIXELS} are two cells of the finest level"
    )
    if needed < low:
        least = max(32, math.ceil(needed / 32) * 32)
        reason += f". The objects alone would allow {least}, which takes less time; the recipes go below {side} for that"
    if needed > high:
        reason += f". That would need {needed:.0f}: consider tiles, or accept that the smallest are missed"
    return Suggestion("data.eval_short_side", side, reason)


def _queries(most: int) -> Suggestion:
    value = next((choice for choice in QUERY_CHOICES if choice >= 2 * most), math.ceil(2 * most / 100) * 100)
    reason = f"at most {most} objects in one image; twice as many queries leave room (300 is the default, and what weights have)"
    return Suggestion("model.num_queries", value, reason)


def to_dict(item: SplitStatistics | Suggestion) -> dict[str, Any]:
    """Plain values, for JSON."""
    return asdict(item)
