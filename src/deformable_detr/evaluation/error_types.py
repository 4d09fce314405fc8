"""Error types and what each costs in average precision, after TIDE (Bolya et al., ECCV 2020, arXiv:2008.08115)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from deformable_detr.evaluation.matches import MATCH_IOU, EvaluatedImage, match_within_classes, ranked
from deformable_detr.evaluation.thresholds import ScoreCurve

BACKGROUND_IOU = 0.1
"""Largest IoU with any object of a detection on background."""


class ErrorType(StrEnum):
    """The six types (section 2.2 of the paper). A false positive gets the first type that fits, in this order."""

    LOCALISATION = "localisation"
    """Correct class, IoU from .1 to below .5."""

    CLASSIFICATION = "classification"
    """IoU of .5 or more with an object of another class."""

    DUPLICATE = "duplicate"
    """IoU of .5 or more with an object of its class that a higher-scored detection has matched."""

    BACKGROUND = "background"
    """IoU of at most .1 with every object."""

    BOTH = "both"
    """Location and class are wrong: IoU above .1 and below .5 with an object of another class."""

    MISSED = "missed"
    """A false negative that no localisation or classification error was aimed at."""


@dataclass(frozen=True, eq=False)
class ImageErrors:
    """The errors in one image; D detections, T objects."""

    image: EvaluatedImage
    """Its detections and ground truth."""

    matched: np.ndarray
    """`[D]` the object that a true positive matches, else -1."""

    types: tuple[ErrorType | None, ...]
    """`[D]` the error type of each false positive; None for true positives and for detections in a crowd region."""

    targets: np.ndarray
    """`[D]` the object that a localisation or classification error is aimed at, else -1."""

    detected: np.ndarray
    """`[T]` bool: a true positive matches the object; the others are false negatives."""

    missed: np.ndarray
    """`[T]` bool: missed in the sense of :class:`ErrorType`, a part of the false negatives."""

    @property
    def error_mass(self) -> float:
        """Sum of the scores of the false positives, plus 1 for each false negative."""
        false_positive = np.array([kind is not None for kind in self.types], dtype=bool)
        return float(self.image.scores[false_positive].sum() + (~self.detected).sum())

    @property
    def counts(self) -> dict[str, int]:
        """Number of false negatives, and of false positives of each error type; counts above 0."""
        counts = {"false_negatives": int((~self.detected).sum())} | {str(kind): self.types.count(kind) for kind in ErrorType}
        return {name: count for name, count in counts.items() if count}


@dataclass(frozen=True)
class ErrorTypes:
    """What each error type costs in AP50, and how often it occurs."""

    ap50: float
    """Mean over the classes of the average precision at IoU .50, as in `Metrics`."""

    gains: dict[ErrorType, float]
    """dAP: the rise of AP50 if all errors of this type, and no others, were fixed."""

    false_positive_gain: float
    """The rise of AP50 without any false positive."""

    false_negative_gain: float
    """The rise of AP50 without any false negative (their objects do not count)."""

    counts: dict[ErrorType, int]
    """Errors of each type among all detections, however low their scores."""


def classify_errors(image: EvaluatedImage) -> ImageErrors:
    """Find the true positives and false negatives of an image and the error type of each false positive."""
    matched = match_within_classes(image)
    detected = np.zeros(len(image.true_labels), dtype=bool)
    detected[matched[matched >= 0]] = True
    false_positive = (matched < 0) & ~image.in_crowd
    targets = np.full(len(matched), -1, dtype=np.int64)
    if not len(detected):
        types = tuple(ErrorType.BACKGROUND if is_false else None for is_false in false_positive)
        return ImageErrors(image, matched, types, targets, detected, detected)
    own_class = image.overlaps * image.same_class
    other_class = image.overlaps * ~image.same_class
    conditions = {
        ErrorType.LOCALISATION: (own_class.max(axis=1) >= BACKGROUND_IOU) & (own_class.max(axis=1) < MATCH_IOU),
        ErrorType.CLASSIFICATION: other_class.max(axis=1) >= MATCH_IOU,
        ErrorType.DUPLICATE: (own_class * detected).max(axis=1) >= MATCH_IOU,
        ErrorType.BACKGROUND: image.overlaps.max(axis=1) <= BACKGROUND_IOU,
        ErrorType.BOTH: np.ones(len(matched), dtype=bool),
    }
    first = np.stack(list(conditions.values())).argmax(axis=0)
    types = tuple(list(conditions)[index] if is_false else None for index, is_false in zip(first, false_positive, strict=True))
    for kind, overlaps in ((ErrorType.LOCALISATION, own_class), (ErrorType.CLASSIFICATION, other_class)):
        rows = [row for row, own in enumerate(types) if own is kind]
        targets[rows] = overlaps[rows].argmax(axis=1)
    missed = ~detected
    missed[targets[targets >= 0]] = False
    return ImageErrors(image, matched, types, targets, detected, missed)


def error_types(images: Sequence[EvaluatedImage], num_classes: int) -> ErrorTypes:
    """Count the errors of a split and measure what each type costs.

    Fixing an error means (section 2.3 of the paper): a localisation or classification error becomes a true positive of the object
    that it is aimed at, unless that object is matched already or a higher-scored such error is fixed to match it; then it is
    deleted. Duplicates, background and both are deleted. Missed objects no longer count as objects.

    Args:
        images: with all detections, however low their scores.
        num_classes: K.
    """
    ledger = _Ledger.of([classify_errors(image) for image in images], num_classes)
    ap50 = ledger.mean_ap(True, ledger.num_objects)
    occurring = np.bincount(ledger.types[ledger.types >= 0], minlength=len(ErrorType))
    gains = {kind: ledger.fixed_ap(kind) - ap50 for kind in ErrorType}
    return ErrorTypes(
        ap50=ap50,
        gains=gains,
        false_positive_gain=ledger.mean_ap(ledger.types == -1, ledger.num_objects) - ap50,
        false_negative_gain=ledger.mean_ap(True, ledger.num_detected) - ap50,
        counts=dict(zip(ErrorType, occurring.tolist(), strict=True)) | {ErrorType.MISSED: int(ledger.num_missed.sum())},
    )


_TYPES = tuple(ErrorType)


@dataclass(frozen=True, eq=False)
class _Ledger:
    """All detections of a split that count, as columns, highest score first; and numbers of objects, `[K]`."""

    scores: np.ndarray
    labels: np.ndarray
    types: np.ndarray
    """Index into ErrorType, -1 for true positives."""
    fixed_labels: np.ndarray
    """The class of the object that the detection matches once it is fixed; -1 where fixing deletes it."""
    num_objects: np.ndarray
    num_detected: np.ndarray
    num_missed: np.ndarray

    @classmethod
    def of(cls, images: Sequence[ImageErrors], num_classes: int) -> "_Ledger":
        columns: list[tuple[np.ndarray, ...]] = [(np.zeros(0), *(np.zeros(0, dtype=np.int64),) * 3)]
        totals = np.zeros((3, num_classes), dtype=np.int64)
        for errors in images:
            image = errors.image
            types = np.array([-1 if kind is None else _TYPES.index(kind) for kind in errors.types], dtype=np.int64)
            counted = (types >= 0) | (errors.matched >= 0)
            columns.append(tuple(column[counted] for column in (image.scores, image.labels, types, _fixed_labels(errors))))
            for row, chosen in enumerate((slice(None), errors.detected, errors.missed)):
                totals[row] += np.bincount(image.true_labels[chosen], minlength=num_classes)
        return cls(*ranked(columns), *totals)

    def fixed_ap(self, kind: ErrorType) -> float:
        """Mean AP50 with the errors of one type fixed."""
        if kind is ErrorType.MISSED:
            return self.mean_ap(True, self.num_objects - self.num_missed)
        of_type = self.types == _TYPES.index(kind)
        fixed = of_type & (self.fixed_labels >= 0)
        return self.mean_ap(~of_type | fixed, self.num_objects, fixed)

    def mean_ap(self, kept: np.ndarray | bool, num_objects: np.ndarray, fixed: np.ndarray | bool = False) -> float:
        """AP50 of some detections, some of them fixed: the mean over the classes with objects; NaN where there are none."""
        labels = np.where(fixed, self.fixed_labels, self.labels)
        true_positive = (self.types == -1) | fixed
        aps = []
        for label in np.flatnonzero(num_objects):
            chosen = kept & (labels == label)
            aps.append(ScoreCurve("", int(num_objects[label]), self.scores[chosen], true_positive[chosen]).average_precision())
        return float(np.mean(aps)) if aps else math.nan


def _fixed_labels(image: ImageErrors) -> np.ndarray:
    """`[D]` the class of each localisation or classification error once fixed; -1 for the others and where fixing deletes it."""
    fixed = np.full(len(image.targets), -1, dtype=np.int64)
    taken = image.detected.copy()  # an object can be gained only once
    for row in np.flatnonzero(image.targets >= 0):  # highest score first
        target = image.targets[row]
        if not taken[target]:
            fixed[row], taken[target] = image.image.true_labels[target], True
    return fixed
