"""The analysis behind AP, as data: its certainty, curves, thresholds, calibration, confusion matrix, error types, worst images."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deformable_detr.evaluation.bootstrap import Bootstrap, bootstrap
from deformable_detr.evaluation.calibration import Calibration, calibrate
from deformable_detr.evaluation.coco_evaluator import CocoEvaluator
from deformable_detr.evaluation.confusion import ConfusionMatrix, confusion_matrix
from deformable_detr.evaluation.error_types import ErrorType, ErrorTypes, ImageErrors, classify_errors, error_types
from deformable_detr.evaluation.metrics import Metrics, record_of, without_nan
from deformable_detr.evaluation.thresholds import OperatingPoint, ScoreCurve, class_thresholds, joint_curve, score_curves
from deformable_detr.files import write_json

ThresholdOrigin = Literal["given", "found here", "default"]
POINT = ("threshold", "num_objects", "true_positives", "false_positives", "false_negatives", "precision", "recall", "f1")
CURVE_POINTS = np.linspace(0, 1, 101)


@dataclass(frozen=True, eq=False)
class Analysis:
    """A detailed evaluation. Classes are those of the annotation file, in the order of their ids."""

    metrics: Metrics
    """COCO's AP and AR."""

    curves: tuple[ScoreCurve, ...]
    """Precision, recall and F1 of each class as functions of the score threshold."""

    thresholds: tuple[float, ...]
    """The score threshold of each class, used by `confusion` and `images`."""

    thresholds_from: ThresholdOrigin
    """Whether they were given (such as those stored with the weights), or maximise F1 on this very split."""

    bootstrap: Bootstrap
    """How certain AP is: its confidence intervals."""

    calibration: Calibration
    """Calibration of the scores of all classes together."""

    confusion: ConfusionMatrix
    """At the thresholds."""

    errors: ErrorTypes
    """What each error type costs; counts all detections, as AP does."""

    images: tuple[ImageErrors, ...]
    """At the thresholds, the image with the largest error mass first."""

    @property
    def joint_curve(self) -> ScoreCurve:
        """The curve of all classes in one ranking."""
        return joint_curve(self.curves)

    @property
    def points(self) -> tuple[OperatingPoint, ...]:
        """The counts of each class at its threshold."""
        return tuple(curve.at(threshold) for curve, threshold in zip(self.curves, self.thresholds, strict=True))

    @property
    def point(self) -> OperatingPoint:
        """The counts of all classes at their thresholds, added up; `threshold` is NaN."""
        points = self.points
        totals = (sum(getattr(point, name) for point in points) for name in ("true_positives", "false_positives", "num_objects"))
        return OperatingPoint(math.nan, *totals)

    @property
    def counts(self) -> dict[ErrorType, int]:
        """Errors of each type at the thresholds."""
        types = Counter(kind for image in self.images for kind in image.types)
        missed = sum(int(image.missed.sum()) for image in self.images)
        return {kind: types[kind] for kind in ErrorType} | {ErrorType.MISSED: missed}

    def to_dict(self) -> dict[str, Any]:
        """A plain dict, for JSON; NaN becomes None."""
        return {
            "metrics": self.metrics.to_dict(),
            "thresholds_from": self.thresholds_from,
            "all_classes": record_of(self.point, POINT) | {"best_single_threshold": self.joint_curve.best_threshold()},
            "intervals": self.bootstrap.to_dict(),
            "calibration": self.calibration.to_dict(),
            "classes": [
                {"name": curve.name, "ap_interval": interval.to_list(), **record_of(point, POINT), **_curve(curve)}
                for curve, point, interval in zip(self.curves, self.points, self.bootstrap.per_class, strict=True)
            ],
            "confusion": {"names": list(self.confusion.names), "counts": self.confusion.counts.tolist()},
            "errors": without_nan(asdict(self.errors) | {"counts_at_thresholds": self.counts}),
            "images": [
                {"image_id": image.image.image_id, "error_mass": round(image.error_mass, 4), "counts": image.counts}
                for image in self.images
                if image.error_mass > 0
            ],
        }

    def save_json(self, path: str | Path) -> None:
        """Write :meth:`to_dict` to a file."""
        write_json(path, self.to_dict(), indent=1)


def analyze(evaluator: CocoEvaluator, thresholds: Sequence[float] | None = None) -> Analysis:
    """Analyse the detections that an evaluator has collected.

    Args:
        evaluator: after all its updates.
        thresholds: the smallest score of a detection that counts, for each label of the **model**, such as `Metadata.thresholds`.
            None: those that maximise F1 on this split.

    Raises:
        ValueError: no image was evaluated, the number of thresholds is not that of the classes, or one is not in [0, 1].
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
        bootstrap=bootstrap(images, len(names)),
        calibration=calibrate(joint_curve(curves)),
        confusion=confusion_matrix(shown, names),
        errors=error_types(images, len(names)),
        images=tuple(sorted(map(classify_errors, shown), key=lambda image: -image.error_mass)),
    )


def _limits(
    columns: Sequence[int | None], curves: Sequence[ScoreCurve], thresholds: Sequence[float] | None
) -> tuple[np.ndarray, ThresholdOrigin]:
    """The thresholds `[K]` of the file's classes, and where they come from."""
    limits = np.full(len(curves), 0.5)
    if thresholds is not None:
        if len(thresholds) != len(columns):
            raise ValueError(
                f"{len(thresholds)} thresholds for the {len(columns)} classes of the model: there must be one per class"
            )
        if wrong := [threshold for threshold in thresholds if not 0 <= threshold <= 1]:
            raise ValueError(f"thresholds must lie in [0, 1], not {wrong[0]}")
        for column, threshold in zip(columns, thresholds, strict=True):
            if column is not None:
                limits[column] = threshold
        return limits, "given"
    found = class_thresholds(curves)
    return (limits, "default") if found is None else (np.array(found), "found here")


def _curve(curve: ScoreCurve) -> dict[str, Any]:
    """Precision at 101 recalls and F1 at 101 thresholds."""
    if not curve.num_objects:
        return {"best_threshold": None, "precision_at_recall": [], "f1_at_threshold": []}
    return {
        "best_threshold": curve.best_threshold(),
        "precision_at_recall": curve.interpolated_precision().round(5).tolist(),
        "f1_at_threshold": curve.f1_at(CURVE_POINTS).round(5).tolist(),
    }
