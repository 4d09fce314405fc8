"""Recommendations drawn from an evaluation, in plain sentences."""

import math
from collections.abc import Iterator

from deformable_detr.evaluation.analysis import Analysis
from deformable_detr.evaluation.error_types import ErrorType

FEW_OBJECTS = 20
"""The metrics of a class with fewer objects are uncertain."""

NOTABLE = 0.02
"""Smaller differences are not mentioned."""

BIASED = 0.15
"""Mean difference of precision and score that is worth a sentence."""

MEANING: dict[ErrorType, str] = {
    ErrorType.LOCALISATION: "objects are detected, but with inaccurate boxes. Check that the annotated boxes are tight and drawn "
    "the same way everywhere; longer training and a larger input help, and so does --preset r50-refine or r50-two-stage.",
    ErrorType.CLASSIFICATION: "boxes are accurate, classes are wrong. Look at the confusion matrix: are the classes annotated "
    "consistently? If so, more examples of the confused classes help most.",
    ErrorType.DUPLICATE: "objects are detected more than once. Longer training usually removes duplicates (the queries learn to "
    "divide the work); also check that no object is annotated twice.",
    ErrorType.BACKGROUND: "there are detections where nothing is annotated. Look at the worst images first: often the object is "
    "there and its annotation is missing. Otherwise add images of such background without objects.",
    ErrorType.BOTH: "boxes overlap objects of another class only roughly. This is typical of short training; train longer before "
    "anything else.",
    ErrorType.MISSED: "objects have no detection near them. Are they small or rare? Then a larger input size "
    "(data.eval_short_side and data.train_short_sides) or more examples help; crowded images may need more queries "
    "(model.num_queries).",
}


def advise(analysis: Analysis) -> tuple[str, ...]:
    """Recommendations, the most important first; empty where nothing is conspicuous."""
    if not any(curve.num_objects for curve in analysis.curves):
        return ("This split has no objects, so nothing could be measured.",)
    if not analysis.errors.ap50:
        return (
            "There is no true positive. Check the data first (deformable-detr doctor DATA): box format, category ids and class "
            "names are the usual reasons. Detectors of this family also need many steps before AP leaves 0.",
        )
    return (*_errors(analysis), *_sizes(analysis), *_confusions(analysis), *_classes(analysis), *_thresholds(analysis))


def _errors(analysis: Analysis) -> Iterator[str]:
    for kind, gain in sorted(analysis.errors.gains.items(), key=lambda item: -item[1])[:2]:
        if gain >= NOTABLE:
            yield f"{str(kind).capitalize()} errors cost {100 * gain:.1f} points of AP50: {MEANING[kind]}"


def _sizes(analysis: Analysis) -> Iterator[str]:
    numbers = analysis.metrics
    larger = [value for value in (numbers.ap_medium, numbers.ap_large) if not math.isnan(value)]
    if larger and numbers.ap_small < 0.6 * max(larger):
        yield (
            f"Small objects (below 32 × 32 pixels) are the weak point: AP {100 * numbers.ap_small:.1f} against "
            f"{100 * max(larger):.1f} for larger ones. A larger input size helps, or prediction in tiles."
        )


def _confusions(analysis: Analysis) -> Iterator[str]:
    every = analysis.confusion.confusions(analysis.confusion.counts.size)
    notable = [confusion for confusion in every if confusion.count >= 3 and confusion.share >= 0.05]
    for confusion in notable[:2]:
        yield (
            f"The class “{confusion.ground_truth}” is confused with “{confusion.confused_with}” in {confusion.count} objects "
            f"({100 * confusion.share:.0f} %)."
        )


def _classes(analysis: Analysis) -> Iterator[str]:
    classes = [entry for entry in analysis.metrics.per_class if entry.num_objects]
    never = [entry.name for entry in classes if entry.ap50 == 0]
    if never:
        yield f"Without a true positive: {_listed(never)}. Are they in the training split, under the same name?"
    weak = [entry.name for entry in classes if 0 < entry.ap50 < 0.6 * analysis.errors.ap50]
    if weak:
        yield f"Far below the other classes: {_listed(weak)}. Look at their confusions and their images."
    few = [entry.name for entry in classes if entry.num_objects < FEW_OBJECTS]
    if few:
        yield f"Fewer than {FEW_OBJECTS} objects in this split, so that their metrics are uncertain by many points: {_listed(few)}."


def _thresholds(analysis: Analysis) -> Iterator[str]:
    point = analysis.point
    bias = analysis.calibration.bias
    if abs(bias) >= BIASED:
        yield (
            f"Scores are too {'low' if bias > 0 else 'high'}: they differ from the precision by {100 * abs(bias):.0f} points on "
            "average. Use the thresholds of the classes rather than 0.5, and do not read scores as probabilities."
        )
    best = [curve.at(threshold).f1 for curve in analysis.curves if (threshold := curve.best_threshold()) is not None]
    now = [point.f1 for point, curve in zip(analysis.points, analysis.curves, strict=True) if curve.true_positive.any()]
    if analysis.thresholds_from == "given" and sum(best) - sum(now) >= NOTABLE * len(best):
        yield (
            f"The thresholds stored with the weights give a mean F1 of {sum(now) / len(now):.2f} on this split, its best ones "
            f"{sum(best) / len(best):.2f}. If this split is closer to your use, store those: deformable-detr evaluate … "
            "--save-thresholds."
        )
    if abs(point.precision - point.recall) >= 0.15:
        side = "precise but misses many objects" if point.precision > point.recall else "sensitive but has many false positives"
        yield (
            f"At its thresholds the detector is {side} (precision {point.precision:.2f}, recall {point.recall:.2f}). predict "
            "--threshold shifts the balance: lower raises recall, higher raises precision."
        )


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
