"""Match detections with ground-truth objects: the basis of curves, thresholds, confusion matrix and error types.

As in COCO, detections are matched in the order of their scores, each object at most once, and an unmatched detection in a crowd
region of its own class is ignored: neither a true nor a false positive.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

from deformable_detr.structures import ImageId

MATCH_IOU = 0.5
"""Smallest IoU of a match (COCO's AP50)."""


@dataclass(frozen=True, eq=False)
class EvaluatedImage:
    """The detections and the ground truth of one image. Labels count the categories of the annotation file from 0.

    D detections, T objects, R crowd regions; boxes are xyxy in pixels, float64.
    """

    image_id: ImageId
    """As in the annotation file."""

    scores: np.ndarray
    """`[D]` in [0, 1], highest first."""

    labels: np.ndarray
    """`[D]`"""

    boxes: np.ndarray
    """`[D, 4]`"""

    true_labels: np.ndarray
    """`[T]`"""

    true_boxes: np.ndarray
    """`[T, 4]`"""

    crowd_labels: np.ndarray
    """`[R]`"""

    crowd_boxes: np.ndarray
    """`[R, 4]`"""

    @cached_property
    def overlaps(self) -> np.ndarray:
        """`[D, T]` IoU of each detection with each object, whatever their classes."""
        common = _common_areas(self.boxes, self.true_boxes)
        union = _areas(self.boxes)[:, None] + _areas(self.true_boxes) - common
        return np.divide(common, union, out=np.zeros_like(common), where=union > 0)

    @cached_property
    def same_class(self) -> np.ndarray:
        """`[D, T]` whether detection and object have the same class."""
        return self.labels[:, None] == self.true_labels

    @cached_property
    def in_crowd(self) -> np.ndarray:
        """`[D]` whether half of the detection's area or more is inside a crowd region of its class."""
        return self.in_crowd_by(MATCH_IOU)

    def in_crowd_by(self, share: float) -> np.ndarray:
        """`[D]` whether at least this share of the detection's area is inside a crowd region of its class."""
        common = _common_areas(self.boxes, self.crowd_boxes)
        inside = common >= share * np.maximum(_areas(self.boxes), 1e-12)[:, None]
        return (inside & (self.labels[:, None] == self.crowd_labels)).any(axis=1)

    def above(self, thresholds: np.ndarray) -> Self:
        """Keep the detections that reach the threshold of their class.

        Args:
            thresholds: `[K]`, one per class.
        """
        kept = self.scores >= thresholds[self.labels]
        return replace(self, scores=self.scores[kept], labels=self.labels[kept], boxes=self.boxes[kept])


def match_greedily(overlaps: np.ndarray, least: float = MATCH_IOU) -> np.ndarray:
    """Match each detection with the object of the highest IoU among those that no higher-scored detection has matched.

    Args:
        overlaps: `[D, T]` IoU, highest score first; 0 where a pair must not match.
        least: smallest IoU of a match.

    Returns:
        `[D]` the index of the object, -1 for none. Among equal IoUs the last object wins, as in COCO's evaluation.
    """
    matched = np.full(len(overlaps), -1, dtype=np.int64)
    free = np.ones(overlaps.shape[1], dtype=bool)
    for row in np.flatnonzero((overlaps >= least).any(axis=1)):
        candidates = np.where(free, overlaps[row], -1.0)
        best = len(candidates) - 1 - int(candidates[::-1].argmax())
        if candidates[best] >= least:
            matched[row], free[best] = best, False
    return matched


def match_within_classes(image: EvaluatedImage) -> np.ndarray:
    """`[D]` the object of the same class that each detection matches, or -1."""
    return match_greedily(image.overlaps * image.same_class)


def match_across_classes(image: EvaluatedImage) -> np.ndarray:
    """`[D]` the object of any class that each detection matches, or -1; shows which classes are confused."""
    right_class_first = 1 + 1e-9 * image.same_class  # decides only between equal overlaps
    return match_greedily(image.overlaps * right_class_first)


def ranked(parts: Iterable[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """The columns of all parts, in the order of the first one, the scores: highest first, equal ones as they come."""
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(-columns[0], kind="stable")
    return [column[order] for column in columns]


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _common_areas(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`[A, 4]`, `[B, 4]` → `[A, B]`"""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return np.clip(high - low, 0, None).prod(axis=-1)
