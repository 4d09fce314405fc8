"""An image with its mistakes: what was detected beside what is there, coloured by what is wrong."""

import numpy as np
import supervision as sv
from torch import Tensor

from deformable_detr.evaluation.analysis import mistakes_of
from deformable_detr.evaluation.error_types import ErrorType, ImageErrors
from deformable_detr.visualize.drawing.detections import draw_detections
from deformable_detr.visualize.pages.error_figure import ERROR_COLORS

RIGHT_COLOR = "#1fa350"
IGNORED_COLOR = "#9aa3ad"


def draw_mistakes(errors: ImageErrors, image: Tensor, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Draw both sides of an image.

    Args:
        errors: its mistakes, at the thresholds.
        image: `[3, H, W]` uint8 RGB.
        names: of the classes.

    Returns:
        What was detected (right in green, mistakes in the colour of their kind) and what is there (found in green, not found in
        red), each `[H', W', 3]` uint8 RGB.
    """
    evaluated = errors.image
    texts = [_text(names[label], kind) for label, kind in zip(evaluated.labels, errors.kinds, strict=True)]
    colors = [_color(kind, matched >= 0) for kind, matched in zip(errors.kinds, errors.matched, strict=True)]
    found = _detections(evaluated.boxes, evaluated.labels, texts, evaluated.scores)
    truth_texts = [
        names[label] if is_found else f"{names[label]}: not found"
        for label, is_found in zip(evaluated.true_labels, errors.found, strict=True)
    ]
    truth_colors = [RIGHT_COLOR if is_found else ERROR_COLORS[ErrorType.MISSED] for is_found in errors.found]
    truth = _detections(evaluated.true_boxes, evaluated.true_labels, truth_texts)
    return (
        draw_detections(image, found, colors=[sv.Color.from_hex(color) for color in colors]),
        draw_detections(image, truth, colors=[sv.Color.from_hex(color) for color in truth_colors]),
    )


def caption(image: ImageErrors) -> str:
    """Such as `2 not found, 1 background`."""
    return ", ".join(f"{count} {name}" for name, count in mistakes_of(image).items())


def _text(name: str, kind: ErrorType | None) -> str:
    return name if kind is None else f"{name}: {kind}"


def _color(kind: ErrorType | None, is_right: bool) -> str:
    if kind is not None:
        return ERROR_COLORS[kind]
    return RIGHT_COLOR if is_right else IGNORED_COLOR


def _detections(boxes: np.ndarray, labels: np.ndarray, texts: list[str], scores: np.ndarray | None = None) -> sv.Detections:
    if not len(boxes):
        return sv.Detections.empty()
    return sv.Detections(xyxy=boxes, class_id=labels, confidence=scores, data={"class_name": np.array(texts, dtype=str)})
