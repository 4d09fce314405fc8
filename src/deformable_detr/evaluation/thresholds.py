"""Precision, recall and F1 of a class over the score threshold, and the threshold to use."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from deformable_detr.evaluation.matches import EvaluatedImage, match_within_classes

RECALLS = np.linspace(0, 1, 101)
"""Where COCO reads precision off."""

TOLERANCE = 0.01
"""Thresholds whose F1 is within this share of the best are equally good."""


@dataclass(frozen=True)
class OperatingPoint:
    """What a class looks like at one threshold."""

    threshold: float
    """Detections with this score or more count."""

    right: int
    """Detections that found an object."""

    wrong: int
    """Detections that did not."""

    num_objects: int
    """Objects that are there."""

    @property
    def missed(self) -> int:
        """Objects that no detection found."""
        return self.num_objects - self.right

    @property
    def precision(self) -> float:
        """right / (right + wrong); NaN without detections."""
        return _ratio(self.right, self.right + self.wrong)

    @property
    def recall(self) -> float:
        """right / num_objects; NaN without objects."""
        return _ratio(self.right, self.num_objects)

    @property
    def f1(self) -> float:
        """2 right / (2 right + wrong + missed): the harmonic mean of precision and recall; NaN where there is nothing."""
        return _ratio(2 * self.right, 2 * self.right + self.wrong + self.missed)


@dataclass(frozen=True, eq=False)
class ScoreCurve:
    """All detections of one class over a split, best first, with what has become of them at IoU .50."""

    name: str
    """Of the class."""

    num_objects: int
    """How many there are, crowd regions not counted."""

    scores: np.ndarray
    """`[D]` best first."""

    right: np.ndarray
    """`[D]` bool: the detection found an object."""

    @cached_property
    def precision(self) -> np.ndarray:
        """`[D]` of the detections up to each."""
        return np.cumsum(self.right) / np.arange(1, len(self.right) + 1)

    @cached_property
    def recall(self) -> np.ndarray:
        """`[D]` of the detections up to each; NaN without objects."""
        return np.cumsum(self.right) / (self.num_objects or np.nan)

    @cached_property
    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """The different scores, best first, and the F1 that holds for thresholds from the next lower score up to each."""
        last = np.append(np.diff(self.scores) != 0, True)[: len(self.scores)]  # of detections with equal scores
        found = np.cumsum(self.right)[last]
        detected = np.flatnonzero(last) + 1
        return self.scores[last], 2 * found / np.maximum(detected + self.num_objects, 1)

    def interpolated_precision(self) -> np.ndarray:
        """`[101]` the highest precision at recall 0, .01 … 1 or more, as COCO defines it."""
        envelope = np.append(np.maximum.accumulate(self.precision[::-1])[::-1], 0.0)
        return envelope[np.searchsorted(self.recall, RECALLS, side="left")]

    def average_precision(self) -> float:
        """AP50; NaN without objects."""
        return float(self.interpolated_precision().mean()) if self.num_objects else float("nan")

    def f1_at(self, thresholds: np.ndarray) -> np.ndarray:
        """F1 at many thresholds at once; 0 above the best score."""
        scores, f1 = self.steps
        number = np.searchsorted(-scores, -thresholds, side="right")
        return np.append(0.0, f1)[number]

    def at(self, threshold: float) -> OperatingPoint:
        """The numbers at one threshold."""
        kept = self.scores >= threshold
        right = int(self.right[kept].sum())
        return OperatingPoint(threshold, right, int(kept.sum()) - right, self.num_objects)

    def best_threshold(self) -> float | None:
        """The threshold with the best F1, as the middle of the widest range that is practically as good.

        A single lucky score should not decide: all thresholds whose F1 lies within 1 % of the maximum count as equally good, and
        the middle of their widest uninterrupted range is taken, where a little shift of the scores changes least.

        Returns:
            A score in (0, 1), or None where nothing right was detected.
        """
        scores, f1 = self.steps
        if not self.right.any():
            return None
        below = np.append(scores[1:], 0.0)  # f1[i] holds for thresholds in (below[i], scores[i]]
        good = f1 >= (1 - TOLERANCE) * f1.max()
        edges = np.flatnonzero(np.diff(np.concatenate(([False], good, [False]))))
        highest, lowest = scores[edges[::2]], below[edges[1::2] - 1]
        widest = int((highest - lowest).argmax())
        return float(f"{(highest[widest] + lowest[widest]) / 2:.6g}")


def score_curves(images: Sequence[EvaluatedImage], names: Sequence[str]) -> tuple[ScoreCurve, ...]:
    """The curve of each class.

    Args:
        images: detections and truth.
        names: of the classes; labels count them.
    """
    nothing = (np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool))
    rows = [nothing, *(_counted(image) for image in images)]
    scores, labels, right = (np.concatenate(column) for column in zip(*rows, strict=True))
    true_labels = np.concatenate([np.zeros(0, dtype=np.int64), *(image.true_labels for image in images)])
    num_objects = np.bincount(true_labels, minlength=len(names))
    order = np.argsort(-scores, kind="stable")
    scores, labels, right = scores[order], labels[order], right[order]
    return tuple(
        ScoreCurve(name, int(num_objects[label]), scores[labels == label], right[labels == label])
        for label, name in enumerate(names)
    )


def joint_curve(curves: Sequence[ScoreCurve], name: str = "all classes") -> ScoreCurve:
    """The detections of all classes in one ranking; each still has to have found an object of its own class."""
    scores = np.concatenate([np.zeros(0), *(curve.scores for curve in curves)])
    right = np.concatenate([np.zeros(0, dtype=bool), *(curve.right for curve in curves)])
    order = np.argsort(-scores, kind="stable")
    return ScoreCurve(name, sum(curve.num_objects for curve in curves), scores[order], right[order])


def class_thresholds(curves: Sequence[ScoreCurve]) -> tuple[float, ...] | None:
    """For each class the threshold that maximises its F1.

    A class of which nothing right was detected, or that the split does not have, gets the best one of all classes together.

    Returns:
        One score per curve, or None where nothing right was detected at all.
    """
    common = joint_curve(curves).best_threshold()
    if common is None:
        return None
    own = (curve.best_threshold() for curve in curves)
    return tuple(common if threshold is None else threshold for threshold in own)


def _counted(image: EvaluatedImage) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels and rightness of the detections that count."""
    right = match_within_classes(image) >= 0
    counted = right | ~image.in_crowd
    return image.scores[counted], image.labels[counted], right[counted]


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
