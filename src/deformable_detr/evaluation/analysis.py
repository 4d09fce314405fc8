"""A closer look at an evaluation than AP: curves, thresholds, confusions, kinds of mistakes, worst images; all as data."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deformable_detr.evaluation.coco_evaluator import CocoEvaluator
from deformable_detr.evaluation.confusion import ConfusionMatrix, confusion_matrix
from deformable_detr.evaluation.error_types import ErrorType, ErrorTypes, ImageErrors, classify_errors, error_types
from deformable_detr.evaluation.metrics import Metrics
from deformable_detr.evaluation.thresholds import OperatingPoint, ScoreCurve, class_thresholds, joint_curve, score_curves

ThresholdOrigin = Literal["given", "found here", "default"]
CURVE_POINTS = np.linspace(0, 1, 101)


@dataclass(frozen=True, eq=False)
class Analysis:
    """What an evaluation says about a detector. Classes are those of the annotation file, in the order of their ids."""

    metrics: Metrics
    """COCO's numbers."""

    curves: tuple[ScoreCurve, ...]
    """Precision, recall and F1 of each class over the score."""

    thresholds: tuple[float, ...]
    """The score threshold of each class at which everything below was counted."""

    thresholds_from: ThresholdOrigin
    """Where they come from: they were given (those stored with the weights), or maximise F1 on this very split."""

    confusion: ConfusionMatrix
    """At the thresholds."""

    errors: ErrorTypes
    """What each kind of mistake costs; over all detections, as AP itself."""

    images: tuple[ImageErrors, ...]
    """At the thresholds, the image with the most error mass first."""

    @property
    def joint_curve(self) -> ScoreCurve:
        """The curve of all classes together."""
        return joint_curve(self.curves)

    @property
    def points(self) -> tuple[OperatingPoint, ...]:
        """Each class at its threshold."""
        return tuple(curve.at(threshold) for curve, threshold in zip(self.curves, self.thresholds, strict=True))

    @property
    def point(self) -> OperatingPoint:
        """All classes at their thresholds, counted together; `threshold` is NaN."""
        points = self.points
        totals = (sum(getattr(point, name) for point in points) for name in ("right", "wrong", "num_objects"))
        return OperatingPoint(math.nan, *totals)

    @property
    def counts(self) -> dict[ErrorType, int]:
        """How many mistakes of each kind there are at the thresholds."""
        kinds = Counter(kind for image in self.images for kind in image.kinds)
        missed = sum(int(image.missed.sum()) for image in self.images)
        return {kind: kinds[kind] for kind in ErrorType} | {ErrorType.MISSED: missed}

    def to_dict(self) -> dict[str, Any]:
        """A plain dict, for JSON; None stands for NaN."""
        return {
            "metrics": self.metrics.to_dict(),
            "thresholds_from": self.thresholds_from,
            "all_classes": _point(self.point) | {"best_single_threshold": self.joint_curve.best_threshold()},
            "classes": [
                {"name": curve.name, **_point(point), **_curve(curve)}
                for curve, point in zip(self.curves, self.points, strict=True)
            ],
            "confusion": {"names": list(self.confusion.names), "counts": self.confusion.counts.tolist()},
            "errors": {
                "ap50": _number(self.errors.ap50),
                "gains": {str(kind): _number(gain) for kind, gain in self.errors.gains.items()},
                "false_positive_gain": _number(self.errors.false_positive_gain),
                "false_negative_gain": _number(self.errors.false_negative_gain),
                "counts": {str(kind): count for kind, count in self.errors.counts.items()},
                "counts_at_thresholds": {str(kind): count for kind, count in self.counts.items()},
            },
            "images": [
                {"image_id": image.image.image_id, "mass": round(image.mass, 4), **mistakes_of(image)}
                for image in self.images
                if image.mass > 0
            ],
        }

    def save_json(self, path: str | Path) -> None:
        """Write :meth:`to_dict` to a file, whole or not at all; its folder is made where it is missing."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(path)


def analyze(evaluator: CocoEvaluator, thresholds: Sequence[float] | None = None) -> Analysis:
    """Look closely at the detections that an evaluator has collected.

    Args:
        evaluator: after all its updates.
        thresholds: for each label of the **model** the score from which on a detection counts, such as `Metadata.thresholds`. None:
            those that maximise F1 on this split.

    Raises:
        ValueError: no image was seen, or another number of thresholds than of classes.
    """
    metrics = evaluator.compute()
    images, names = evaluator.images(), evaluator.ground_truth.categories.names
    curves = score_curves(images, names)
    limits, origin = _limits(evaluator.columns(), curves, thresholds)
    shown = [image.above(limits) for image in images]
    return Analysis(
        metrics=metrics,
        curves=curves,
        thresholds=tuple(limits.tolist()),
        thresholds_from=origin,
        confusion=confusion_matrix(shown, names),
        errors=error_types(images, len(names)),
        images=tuple(sorted(map(classify_errors, shown), key=lambda image: -image.mass)),
    )


def mistakes_of(image: ImageErrors) -> dict[str, int]:
    """How many objects of an image were not found, and how many detections are wrong in which way; counts above 0."""
    kinds = Counter(image.kinds)
    counts = {"not found": int((~image.found).sum())} | {str(kind): kinds[kind] for kind in ErrorType}
    return {name: count for name, count in counts.items() if count}


def _limits(
    columns: Sequence[int | None], curves: Sequence[ScoreCurve], thresholds: Sequence[float] | None
) -> tuple[np.ndarray, ThresholdOrigin]:
    """`[K]` of the file's classes."""
    limits = np.full(len(curves), 0.5)
    if thresholds is not None:
        if len(thresholds) != len(columns):
            raise ValueError(
                f"{len(thresholds)} thresholds for the {len(columns)} classes of the model: there must be one per class"
            )
        for column, threshold in zip(columns, thresholds, strict=True):
            if column is not None:
                limits[column] = threshold
        return limits, "given"
    found = class_thresholds(curves)
    return (limits, "default") if found is None else (np.array(found), "found here")


def _point(point: OperatingPoint) -> dict[str, Any]:
    names = ("threshold", "num_objects", "right", "wrong", "missed", "precision", "recall", "f1")
    return {name: _number(getattr(point, name)) for name in names}


def _curve(curve: ScoreCurve) -> dict[str, Any]:
    """Sampled at 101 places: precision over recall, F1 over the threshold."""
    if not curve.num_objects:
        return {"best_threshold": None, "precision_at_recall": [], "f1_at_threshold": []}
    return {
        "best_threshold": curve.best_threshold(),
        "precision_at_recall": curve.interpolated_precision().round(5).tolist(),
        "f1_at_threshold": curve.f1_at(CURVE_POINTS).round(5).tolist(),
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
