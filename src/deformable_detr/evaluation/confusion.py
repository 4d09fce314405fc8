"""Confusion matrix of the classes and the background: which class is confused with which."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deformable_detr.evaluation.matches import EvaluatedImage, match_across_classes

BACKGROUND = "background"


@dataclass(frozen=True)
class Confusion:
    """A class whose objects were detected as another class."""

    ground_truth: str
    """The class of the objects."""

    confused_with: str
    """The class of the detections."""

    count: int
    """How many objects."""

    share: float
    """Their share of all objects of the class."""


@dataclass(frozen=True, eq=False)
class ConfusionMatrix:
    """Counts of (ground truth, detection) pairs, matched one to one regardless of the class."""

    names: tuple[str, ...]
    """Of the K classes."""

    counts: np.ndarray
    """`[K + 1, K + 1]` int: row = class of the object, column = class of the detection. The last row counts detections on
    background, the last column objects without a detection; the last cell is 0."""

    def shares(self) -> np.ndarray:
        """`[K + 1, K + 1]` each row divided by its sum; empty rows are 0."""
        totals = self.counts.sum(axis=1, keepdims=True)
        return self.counts / np.maximum(totals, 1)

    def confusions(self, most: int = 10) -> list[Confusion]:
        """List the most frequent confusions of two classes, most frequent first."""
        wrong = self.counts[:-1, :-1] * ~np.eye(len(self.names), dtype=bool)
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = [divmod(int(place), len(self.names)) for place in order]
        objects = self.counts.sum(axis=1)
        return [
            Confusion(self.names[row], self.names[column], int(wrong[row, column]), float(wrong[row, column] / objects[row]))
            for row, column in pairs
            if wrong[row, column]
        ]

    def largest(self, most: int) -> "ConfusionMatrix":
        """Reduce the matrix to the classes with the most errors, in their own order; the others become one class `… others`."""
        if len(self.names) <= most:
            return self
        errors = self.counts.sum(axis=0) + self.counts.sum(axis=1) - 2 * self.counts.diagonal()
        chosen = np.sort(np.argsort(-errors[:-1], kind="stable")[: most - 1])
        place = np.full(len(self.names) + 1, most - 1)
        place[chosen], place[-1] = np.arange(most - 1), most
        counts = np.zeros((most + 1, most + 1), dtype=self.counts.dtype)
        np.add.at(counts, (place[:, None], place[None, :]), self.counts)
        names = (*(self.names[label] for label in chosen), f"{len(self.names) - most + 1} others")
        return ConfusionMatrix(names, counts)


def confusion_matrix(images: Sequence[EvaluatedImage], names: Sequence[str]) -> ConfusionMatrix:
    """Match all objects and detections at IoU .50 and count the pairs of classes.

    Args:
        images: with the detections that reach their threshold (:meth:`EvaluatedImage.above`).
        names: of the classes, in the order of the labels.
    """
    size, background = len(names) + 1, len(names)
    counts = np.zeros(size * size, dtype=np.int64)
    for image in images:
        matched = match_across_classes(image)
        is_pair = matched >= 0
        undetected = np.delete(image.true_labels, matched[is_pair])
        on_background = image.labels[~is_pair & ~image.in_crowd]
        rows = (image.true_labels[matched[is_pair]], np.full(len(on_background), background), undetected)
        columns = (image.labels[is_pair], on_background, np.full(len(undetected), background))
        counts += np.bincount(np.concatenate(rows) * size + np.concatenate(columns), minlength=size * size)
    return ConfusionMatrix(tuple(names), counts.reshape(size, size))
