"""How certain AP is: the bootstrap over images (Efron and Tibshirani 1993).

Another validation set of the same kind would give another AP. Drawing as many images as there are, with replacement, imitates
that: the spread of AP over many such draws is its confidence interval. What a detection matches does not depend on which images
are drawn, so images are matched once, and a draw only says how often each image counts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from deformable_detr.evaluation.matches import EvaluatedImage, match_greedily, ranked
from deformable_detr.evaluation.thresholds import RECALLS
from deformable_detr.structures import ImageId

IOUS = np.linspace(0.5, 0.95, 10)
"""The IoU thresholds of COCO's AP."""

MANY_DETECTIONS = 100_000
DRAWS, FEWER_DRAWS = 1000, 200
"""For up to that many detections, and for more."""

CHUNK = 4_000_000
"""Largest number of entries of a table of draws by detections."""


class Interval(NamedTuple):
    """A confidence interval; NaN for a class without objects."""

    low: float
    high: float

    def to_list(self) -> list[float] | None:
        """`[low, high]` for JSON; None for NaN."""
        return None if np.isnan(self.low) else list(self)


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """AP of every class over many draws of the images."""

    image_ids: tuple[ImageId, ...]
    """The images, in the order of the draws."""

    aps: np.ndarray
    """`[B, K, 10]` of each draw, class and IoU threshold; NaN for a class without objects in the draw."""

    level: float = 0.95
    """Of the intervals."""

    @property
    def ap(self) -> Interval:
        """The interval of AP over all classes."""
        return self.interval(_mean(self.aps, (1, 2)))

    @property
    def ap50(self) -> Interval:
        """The interval of AP50 over all classes."""
        return self.interval(_mean(self.aps[..., 0], (1,)))

    @property
    def ap75(self) -> Interval:
        """The interval of AP75 over all classes."""
        return self.interval(_mean(self.aps[..., 5], (1,)))

    @property
    def per_class(self) -> tuple[Interval, ...]:
        """The interval of each class's AP."""
        return tuple(self.interval(values) for values in _mean(self.aps, (2,)).T)

    def minus(self, other: "Bootstrap") -> "Bootstrap":
        """The difference of two detectors on the same draws; its intervals say whether one is better.

        Raises:
            ValueError: not the same images in the same order, or another number of classes.
        """
        if self.image_ids != other.image_ids or self.aps.shape[1:] != other.aps.shape[1:]:
            raise ValueError("only detectors that were evaluated on the same images and classes can be compared image by image")
        draws = min(len(self.aps), len(other.aps))  # of one seed, fewer draws are the first ones of more
        return Bootstrap(self.image_ids, self.aps[:draws] - other.aps[:draws], self.level)

    def interval(self, values: np.ndarray) -> Interval:
        """The middle of `[B]` values that holds the share `level` of them (percentile method)."""
        values = values[~np.isnan(values)]
        if not len(values):
            return Interval(math.nan, math.nan)
        tail = (1 - self.level) / 2
        return Interval(*np.quantile(values, (tail, 1 - tail)).tolist())

    def to_dict(self) -> dict[str, Any]:
        """A plain dict, for JSON, without the draws."""
        intervals = {name: getattr(self, name).to_list() for name in ("ap", "ap50", "ap75")}
        return {"level": self.level, "draws": len(self.aps), **intervals}


def bootstrap(images: Sequence[EvaluatedImage], num_classes: int, *, draws: int | None = None, seed: int = 0) -> Bootstrap:
    """Draw the images of a split many times with replacement, and compute AP each time.

    Args:
        images: with all detections, however low their scores.
        num_classes: K.
        draws: B. None: 1000, or 200 where there are more than 100,000 detections.
        seed: of the draws. The same seed draws the same images for another detector.
    """
    if draws is None:
        draws = DRAWS if sum(len(image.scores) for image in images) <= MANY_DETECTIONS else FEWER_DRAWS
    generator = np.random.default_rng(seed)
    count = len(images)
    times = generator.multinomial(count, np.full(count, 1 / count), size=draws)
    return Bootstrap(tuple(image.image_id for image in images), average_precisions(images, num_classes, times))


def average_precisions(images: Sequence[EvaluatedImage], num_classes: int, times: np.ndarray) -> np.ndarray:
    """AP of each class and IoU threshold if every image stood in the split several times.

    Args:
        images: I of them, with all detections.
        num_classes: K.
        times: `[B, I]` how often each image counts, in each of B splits.

    Returns:
        `[B, K, 10]`; NaN for a class without objects.
    """
    rows, labels, matched, ignored = _ranked(images)
    objects = np.stack([np.bincount(image.true_labels, minlength=num_classes) for image in images])  # [I, K]
    totals = times @ objects  # [B, K]
    aps = np.full((len(times), num_classes, len(IOUS)), np.nan)
    for label in np.flatnonzero(totals.any(axis=0)):
        for place in range(len(IOUS)):
            counted = (labels == label) & ~ignored[:, place]
            step = max(1, CHUNK // max(counted.sum(), 1))
            for start in range(0, len(times), step):
                part = slice(start, start + step)
                of_detections = times[part][:, rows[counted]]
                aps[part, label, place] = _weighted_ap(of_detections, matched[counted, place], totals[part, label])
    return aps


def _ranked(images: Sequence[EvaluatedImage]) -> list[np.ndarray]:
    """All D detections, highest score first: `[D]` index of the image, `[D]` label, `[D, 10]` whether it is a true positive at each
    IoU threshold, and `[D, 10]` whether it is in a crowd region, and not a true positive.
    """
    parts = []
    for row, image in enumerate(images):
        overlaps = image.overlaps * image.same_class
        matched = np.stack([match_greedily(overlaps, least) >= 0 for least in IOUS], axis=1)
        ignored = np.stack([image.in_crowd_by(least) for least in IOUS], axis=1) & ~matched
        parts.append((image.scores, np.full(len(image.scores), row), image.labels, matched, ignored))
    return ranked(parts)[1:]


def _weighted_ap(times: np.ndarray, true_positive: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """`[B]` AP of one class at one IoU threshold in each of B splits; NaN without objects.

    Precision is highest, and recall rises, only at true positives, so the curve is needed there alone. Of `times`, `[B, D]`, each
    row says how often each detection counts, highest score first; `totals`, `[B]`, is the number of objects.
    """
    found = np.cumsum(times[:, true_positive], axis=1)  # [B, number of true positives]
    detected = np.cumsum(times, axis=1)[:, true_positive]
    precision = found / np.maximum(detected, 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.searchsorted(RECALLS, found / np.maximum(totals, 1)[:, None], side="right")  # so many of them
    aps = (envelope * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(RECALLS)
    return np.where(totals > 0, aps, np.nan)


def _mean(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """The mean without NaN; NaN where there is nothing else."""
    there = ~np.isnan(values)
    count = there.sum(axis=axes)
    return np.divide(np.where(there, values, 0).sum(axis=axes), count, out=np.full(count.shape, np.nan), where=count > 0)
