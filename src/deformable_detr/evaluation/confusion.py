"""Confusion matrix with background: what the objects were taken for, and what the detections really are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deformable_detr.evaluation.matches import EvaluatedImage, match_across_classes

BACKGROUND = "background"


@dataclass(frozen=True)
class Confusion:
    """Objects of one class that were taken for another."""

    truth: str
    """The class of the objects."""

    detected: str
    """The class that they were taken for."""

    count: int
    """How many."""

    share: float
    """Of all objects of their class."""


@dataclass(frozen=True, eq=False)
class ConfusionMatrix:
    """Counts of (truth, detected), matched one to one whatever the class."""

    names: tuple[str, ...]
    """Of the K classes."""

    counts: np.ndarray
    """`[K + 1, K + 1]` int: row = class of the object, column = class of the detection. The last row are detections where there is
    nothing (background), the last column objects that were not detected; the last cell is 0."""

    def shares(self) -> np.ndarray:
        """`[K + 1, K + 1]` each row as shares of its sum; rows without anything are 0."""
        totals = self.counts.sum(axis=1, keepdims=True)
        return self.counts / np.maximum(totals, 1)

    def confusions(self, most: int = 10) -> list[Confusion]:
        """The most frequent mistakes between two classes, then by name."""
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
        """The matrix of the classes with the most mistakes, in their own order; the others are one class `others`."""
        if len(self.names) <= most:
            return self
        mistakes = self.counts.sum(axis=0) + self.counts.sum(axis=1) - 2 * self.counts.diagonal()
        chosen = np.sort(np.argsort(-mistakes[:-1], kind="stable")[: most - 1])
        place = np.full(len(self.names) + 1, most - 1)
        place[chosen], place[-1] = np.arange(most - 1), most
        counts = np.zeros((most + 1, most + 1), dtype=self.counts.dtype)
        np.add.at(counts, (place[:, None], place[None, :]), self.counts)
        names = (*(self.names[label] for label in chosen), f"{len(self.names) - most + 1} others")
        return ConfusionMatrix(names, counts)


def confusion_matrix(images: Sequence[EvaluatedImage], names: Sequence[str]) -> ConfusionMatrix:
    """Count what became of every object and every detection at IoU .50.

    Args:
        images: with only those detections that reach their threshold (:meth:`EvaluatedImage.above`).
        names: of the classes; labels count them.
    """
    size, background = len(names) + 1, len(names)
    counts = np.zeros(size * size, dtype=np.int64)
    for image in images:
        matched = match_across_classes(image)
        found = matched >= 0
        missed = np.ones(len(image.true_labels), dtype=bool)
        missed[matched[found]] = False
        invented = image.labels[~found & ~image.in_crowd]
        truth = (image.true_labels[matched[found]], np.full(len(invented), background), image.true_labels[missed])
        detected = (image.labels[found], invented, np.full(missed.sum(), background))
        counts += np.bincount(np.concatenate(truth) * size + np.concatenate(detected), minlength=size * size)
    return ConfusionMatrix(tuple(names), counts.reshape(size, size))
