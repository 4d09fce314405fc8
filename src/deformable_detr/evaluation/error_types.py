"""What kinds of mistakes cost how much average precision, in the manner of TIDE (Bolya et al., ECCV 2020, arXiv:2008.08115)."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from deformable_detr.evaluation.matches import MATCH_IOU, EvaluatedImage, match_within_classes
from deformable_detr.evaluation.thresholds import ScoreCurve

BACKGROUND_IOU = 0.1
"""Up to this overlap with every object a detection lies on background."""


class ErrorType(StrEnum):
    """The six kinds (section 2.2 of the paper); a wrong detection is of the first one that fits, in this order."""

    LOCALISATION = "localisation"
    """The right class, but the box overlaps its object by .1 to .5 only."""

    CLASSIFICATION = "classification"
    """A good box (IoU .5 or more) with the wrong class."""

    DUPLICATE = "duplicate"
    """An object that a better-scored detection has found already."""

    BACKGROUND = "background"
    """Nothing is there: no object overlaps by more than .1."""

    BOTH = "both"
    """A box that overlaps an object of another class by .1 to .5: place and class are wrong."""

    MISSED = "missed"
    """An object that was not found, and that no localisation or classification error would find if it were put right."""


@dataclass(frozen=True, eq=False)
class ImageErrors:
    """The mistakes in one image; D detections, T objects."""

    image: EvaluatedImage
    """The image."""

    matched: np.ndarray
    """`[D]` the object that a right detection found, else -1."""

    kinds: tuple[ErrorType | None, ...]
    """`[D]` None for what is right, and for what lies in a crowd region."""

    targets: np.ndarray
    """`[D]` for localisation and classification errors the object that was meant, else -1."""

    found: np.ndarray
    """`[T]` bool: a right detection found the object."""

    missed: np.ndarray
    """`[T]` bool: missed in the sense of :class:`ErrorType`; fewer than those not found."""

    @property
    def mass(self) -> float:
        """How bad the image is: the scores of all wrong detections, and 1 for each object that was not found."""
        wrong = np.array([kind is not None for kind in self.kinds], dtype=bool)
        return float(self.image.scores[wrong].sum() + (~self.found).sum())


@dataclass(frozen=True)
class ErrorTypes:
    """What each kind of mistake costs in AP50, and how often it occurs."""

    ap50: float
    """Mean over the classes of the average precision at IoU .50, as in `Metrics`."""

    gains: dict[ErrorType, float]
    """dAP: by how much AP50 rises when all mistakes of this kind alone are put right."""

    false_positive_gain: float
    """By how much it rises without any wrong detection."""

    false_negative_gain: float
    """By how much it rises if the objects that were not found had not been there."""

    counts: dict[ErrorType, int]
    """How many mistakes of each kind there are among all detections, however low their scores."""


def classify_errors(image: EvaluatedImage) -> ImageErrors:
    """Say of every detection whether it is right, and if not, what is wrong with it."""
    matched = match_within_classes(image)
    found = np.zeros(len(image.true_labels), dtype=bool)
    found[matched[matched >= 0]] = True
    wrong = (matched < 0) & ~image.in_crowd
    targets = np.full(len(matched), -1, dtype=np.int64)
    if not len(found):
        kinds = tuple(ErrorType.BACKGROUND if is_wrong else None for is_wrong in wrong)
        return ImageErrors(image, matched, kinds, targets, found, found)
    right_class = image.overlaps * image.same_class
    other_class = image.overlaps * ~image.same_class
    conditions = {
        ErrorType.LOCALISATION: (right_class.max(axis=1) >= BACKGROUND_IOU) & (right_class.max(axis=1) < MATCH_IOU),
        ErrorType.CLASSIFICATION: other_class.max(axis=1) >= MATCH_IOU,
        ErrorType.DUPLICATE: (right_class * found).max(axis=1) >= MATCH_IOU,
        ErrorType.BACKGROUND: image.overlaps.max(axis=1) <= BACKGROUND_IOU,
        ErrorType.BOTH: np.ones(len(matched), dtype=bool),
    }
    first = np.stack(list(conditions.values())).argmax(axis=0)
    kinds = tuple(list(conditions)[index] if is_wrong else None for index, is_wrong in zip(first, wrong, strict=True))
    for kind, overlaps in ((ErrorType.LOCALISATION, right_class), (ErrorType.CLASSIFICATION, other_class)):
        rows = [row for row, its_kind in enumerate(kinds) if its_kind is kind]
        targets[rows] = overlaps[rows].argmax(axis=1)
    missed = ~found
    missed[targets[targets >= 0]] = False
    return ImageErrors(image, matched, kinds, targets, found, missed)


def error_types(images: Sequence[EvaluatedImage], num_classes: int) -> ErrorTypes:
    """Count the mistakes of a split and measure what each kind costs.

    Putting right means: a localisation or classification error becomes a right detection of the object that was meant, if that
    is still to be had and no better-scored such error is put right with it, and is deleted otherwise; duplicates, background and
    both are deleted; missed objects are taken off the number of objects (section 2.3 of the paper).

    Args:
        images: with all detections, however low their scores.
        num_classes: K.
    """
    ledger = _Ledger.of([classify_errors(image) for image in images], num_classes)
    ap50 = ledger.mean_ap(ledger.kinds >= -1, ledger.num_objects)
    gains = {kind: ledger.fixed_ap(kind) - ap50 for kind in ErrorType}
    return ErrorTypes(
        ap50=ap50,
        gains=gains,
        false_positive_gain=ledger.mean_ap(ledger.right, ledger.num_objects) - ap50,
        false_negative_gain=ledger.mean_ap(ledger.kinds >= -1, ledger.num_found) - ap50,
        counts=ledger.counts(),
    )


_KINDS = tuple(ErrorType)


@dataclass(frozen=True, eq=False)
class _Ledger:
    """All detections of a split that count, in one row of arrays, best first."""

    scores: np.ndarray
    labels: np.ndarray
    kinds: np.ndarray
    """Place in ErrorType, -1 for right ones."""
    fixed_labels: np.ndarray
    """The class of the object that the detection finds once it is put right; -1 where it is deleted then."""
    num_objects: np.ndarray
    """`[K]`"""
    num_found: np.ndarray
    """`[K]`"""
    num_missed: np.ndarray
    """`[K]`"""

    @classmethod
    def of(cls, images: Sequence[ImageErrors], num_classes: int) -> "_Ledger":
        columns: list[tuple[np.ndarray, ...]] = [(np.zeros(0), *(np.zeros(0, dtype=np.int64),) * 3)]
        totals = np.zeros((3, num_classes), dtype=np.int64)
        for errors in images:
            image = errors.image
            kinds = np.array([-1 if kind is None else _KINDS.index(kind) for kind in errors.kinds], dtype=np.int64)
            counted = (kinds >= 0) | (errors.matched >= 0)
            columns.append(tuple(column[counted] for column in (image.scores, image.labels, kinds, _fixed_labels(errors))))
            for row, chosen in enumerate((slice(None), errors.found, errors.missed)):
                totals[row] += np.bincount(image.true_labels[chosen], minlength=num_classes)
        arrays = [np.concatenate(column) for column in zip(*columns, strict=True)]
        order = np.argsort(-arrays[0], kind="stable")
        return cls(*(array[order] for array in arrays), *totals)

    @property
    def right(self) -> np.ndarray:
        return self.kinds == -1

    def fixed_ap(self, kind: ErrorType) -> float:
        """Mean AP50 with the mistakes of one kind put right."""
        if kind is ErrorType.MISSED:
            return self.mean_ap(self.kinds >= -1, self.num_objects - self.num_missed)
        of_kind = self.kinds == _KINDS.index(kind)
        mended = of_kind & (self.fixed_labels >= 0)
        return self.mean_ap(~of_kind | mended, self.num_objects, mended)

    def mean_ap(self, kept: np.ndarray, num_objects: np.ndarray, mended: np.ndarray | None = None) -> float:
        """The mean over the classes with objects; NaN where there are none."""
        mended = np.zeros_like(kept) if mended is None else mended
        labels = np.where(mended, self.fixed_labels, self.labels)
        right = self.right | mended
        aps = []
        for label in np.flatnonzero(num_objects):
            chosen = kept & (labels == label)
            aps.append(ScoreCurve("", int(num_objects[label]), self.scores[chosen], right[chosen]).average_precision())
        return float(np.mean(aps)) if aps else float("nan")

    def counts(self) -> dict[ErrorType, int]:
        found = {kind: int((self.kinds == place).sum()) for place, kind in enumerate(_KINDS)}
        return found | {ErrorType.MISSED: int(self.num_missed.sum())}


def _fixed_labels(image: ImageErrors) -> np.ndarray:
    """`[D]` the class that a mistake has once it is put right, -1 where it is deleted: an object can be gained only once."""
    fixed = np.full(len(image.targets), -1, dtype=np.int64)
    gained = image.found.copy()
    for row in np.flatnonzero(image.targets >= 0):  # best score first
        target = image.targets[row]
        if not gained[target]:
            fixed[row], gained[target] = image.image.true_labels[target], True
    return fixed
