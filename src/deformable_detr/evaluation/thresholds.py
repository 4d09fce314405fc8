"""Precision, recall and F1 of a class as functions of the score threshold, and the threshold to use."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from deformable_detr.evaluation.matches import EvaluatedImage, match_within_classes, ranked

RECALLS = np.linspace(0, 1, 101)
"""The recalls at which COCO reads precision."""

TOLERANCE = 0.01
"""Thresholds whose F1 is within this share of the best are equally good."""


@dataclass(frozen=True)
class OperatingPoint:
    """The counts of a class at one score threshold, at IoU .50."""

    threshold: float
    """Detections with this score or more count."""

    true_positives: int
    """Detections that matched an object."""

    false_positives: int
    """Detections that did not, duplicates included."""

    num_objects: int
    """Ground-truth objects, crowd regions not counted."""

    @property
    def false_negatives(self) -> int:
        """Objects without a matching detection."""
        return self.num_objects - self.true_positives

    @property
    def precision(self) -> float:
        """TP / (TP + FP); NaN without detections."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """TP / (TP + FN); NaN without objects."""
        return _ratio(self.true_positives, self.num_objects)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN): the harmonic mean of precision and recall; NaN without detections and objects."""
        return _ratio(2 * self.true_positives, self.true_positives + self.false_positives + self.num_objects)


@dataclass(frozen=True, eq=False)
class ScoreCurve:
    """All detections of one class in a split, highest score first, and which of them are true positives at IoU .50."""

    name: str
    """Of the class."""

    num_objects: int
    """Ground-truth objects, crowd regions not counted."""

    scores: np.ndarray
    """`[D]` highest first."""

    true_positive: np.ndarray
    """`[D]` bool: the detection matched an object."""

    @cached_property
    def precision(self) -> np.ndarray:
        """`[D]` precision of the detections up to each one."""
        return np.cumsum(self.true_positive) / np.arange(1, len(self.scores) + 1)

    @cached_property
    def recall(self) -> np.ndarray:
        """`[D]` recall of the detections up to each one; NaN without objects."""
        return np.cumsum(self.true_positive) / (self.num_objects or np.nan)

    @cached_property
    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct scores, highest first, and the F1 of all thresholds between the next lower score and each one."""
        last = np.append(np.diff(self.scores) != 0, True)[: len(self.scores)]  # of each run of equal scores
        true_positives = np.cumsum(self.true_positive)[last]
        detections = np.flatnonzero(last) + 1
        return self.scores[last], 2 * true_positives / np.maximum(detections + self.num_objects, 1)

    def interpolated_precision(self) -> np.ndarray:
        """`[101]` the highest precision at recall 0, .01 … 1 or any higher recall, as COCO defines it."""
        envelope = np.append(np.maximum.accumulate(self.precision[::-1])[::-1], 0.0)
        return envelope[np.searchsorted(self.recall, RECALLS, side="left")]

    def average_precision(self) -> float:
        """AP50; NaN without objects."""
        return float(self.interpolated_precision().mean()) if self.num_objects else math.nan

    def f1_at(self, thresholds: np.ndarray) -> np.ndarray:
        """F1 at many thresholds at once; 0 above the highest score."""
        scores, f1 = self.steps
        number = np.searchsorted(-scores, -thresholds, side="right")
        return np.append(0.0, f1)[number]

    def at(self, threshold: float) -> OperatingPoint:
        """The counts at one threshold."""
        kept = self.scores >= threshold
        true_positives = int(self.true_positive[kept].sum())
        return OperatingPoint(threshold, true_positives, int(kept.sum()) - true_positives, self.num_objects)

    def best_threshold(self) -> float | None:
        """The threshold with the best F1: the middle of the widest range of thresholds that are practically as good.

        All thresholds whose F1 is within 1 % of the maximum count as equally good, so that a single lucky score does not decide. In
        the middle of their widest uninterrupted range a small shift of the scores changes F1 least.

        Returns:
            A score within that range, six digits of it where they suffice, or None without a true positive.
        """
        scores, f1 = self.steps
        if not self.true_positive.any():
            return None
        below = np.append(scores[1:], 0.0)  # f1[i] holds for thresholds in (below[i], scores[i]]
        good = f1 >= (1 - TOLERANCE) * f1.max()
        edges = np.flatnonzero(np.diff(np.concatenate(([False], good, [False]))))
        highest, lowest = scores[edges[::2]], below[edges[1::2] - 1]
        widest = int((highest - lowest).argmax())
        low, high = float(lowest[widest]), float(highest[widest])
        middle = (low + high) / 2
        return next((found for found in (float(f"{middle:.6g}"), middle) if low < found <= high), high)


def score_curves(images: Sequence[EvaluatedImage], names: Sequence[str]) -> tuple[ScoreCurve, ...]:
    """Rank the detections of each class over a split.

    Args:
        images: detections and ground truth.
        names: of the classes, in the order of the labels.
    """
    nothing = (np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool))
    scores, labels, true_positive = ranked([nothing, *(_counted(image) for image in images)])
    true_labels = np.concatenate([np.zeros(0, dtype=np.int64), *(image.true_labels for image in images)])
    num_objects = np.bincount(true_labels, minlength=len(names))
    return tuple(
        ScoreCurve(name, int(num_objects[label]), scores[labels == label], true_positive[labels == label])
        for label, name in enumerate(names)
    )


def joint_curve(curves: Sequence[ScoreCurve]) -> ScoreCurve:
    """Rank the detections of all classes together; a true positive still matches an object of its own class."""
    nothing = (np.zeros(0), np.zeros(0, dtype=bool))
    scores, true_positive = ranked([nothing, *((curve.scores, curve.true_positive) for curve in curves)])
    return ScoreCurve("all classes", sum(curve.num_objects for curve in curves), scores, true_positive)


def class_thresholds(curves: Sequence[ScoreCurve]) -> tuple[float, ...] | None:
    """Find the threshold of each class that maximises its F1.

    A class without a true positive, or without objects in the split, gets the best threshold of all classes together.

    Returns:
        One score per curve, or None without any true positive.
    """
    common = joint_curve(curves).best_threshold()
    if common is None:
        return None
    own = (curve.best_threshold() for curve in curves)
    return tuple(common if threshold is None else threshold for threshold in own)


def _counted(image: EvaluatedImage) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score, label and whether it is a true positive, of each detection that counts."""
    true_positive = match_within_classes(image) >= 0
    counted = true_positive | ~image.in_crowd
    return image.scores[counted], image.labels[counted], true_positive[counted]


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
