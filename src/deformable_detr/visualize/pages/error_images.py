"""An image with its errors: the predictions beside the ground truth, coloured by error type."""

import numpy as np
import supervision as sv
from torch import Tensor

from deformable_detr.evaluation.error_types import ErrorType, ImageErrors
from deformable_detr.visualize.drawing.detections import draw_detections
from deformable_detr.visualize.pages.report_figures import ERROR_COLORS

TRUE_COLOR = "#1fa350"
IGNORED_COLOR = "#9aa3ad"


def draw_errors(errors: ImageErrors, image: Tensor, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Draw both sides of an image.

    Args:
        errors: of the image, at the thresholds.
        image: `[3, H, W]` uint8 RGB.
        names: of the classes.

    Returns:
        `predictions`: true positives in green, false positives in the colour of their error type, detections in crowd regions in
        grey; `ground_truth`: detected objects in green, false negatives in red. Each `[H', W', 3]` uint8 RGB.
    """
    evaluated = errors.image
    texts = [
        names[label] if kind is None else f"{names[label]}: {kind}"
        for label, kind in zip(evaluated.labels, errors.types, strict=True)
    ]
    colors = [_color(kind, matched >= 0) for kind, matched in zip(errors.types, errors.matched, strict=True)]
    true_texts = [
        names[label] + ("" if found else ": false negative")
        for label, found in zip(evaluated.true_labels, errors.detected, strict=True)
    ]
    true_colors = [_color(None if found else ErrorType.MISSED, True) for found in errors.detected]
    return {
        "predictions": _draw(image, evaluated.boxes, evaluated.labels, texts, colors, evaluated.scores),
        "ground_truth": _draw(image, evaluated.true_boxes, evaluated.true_labels, true_texts, true_colors),
    }


def caption(image: ImageErrors) -> str:
    """List the errors of an image, such as `false negatives: 2, background: 1`."""
    return ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in image.counts.items())


def _color(kind: ErrorType | None, is_true: bool) -> str:
    if kind is not None:
        return ERROR_COLORS[kind]
    return TRUE_COLOR if is_true else IGNORED_COLOR


def _draw(
    image: Tensor, boxes: np.ndarray, labels: np.ndarray, texts: list[str], colors: list[str], scores: np.ndarray | None = None
) -> np.ndarray:
    found = sv.Detections(
        xyxy=boxes.reshape(-1, 4), class_id=labels, confidence=scores, data={"class_name": np.array(texts, dtype=str)}
    )
    return draw_detections(image, found, colors=[sv.Color.from_hex(color) for color in colors])
