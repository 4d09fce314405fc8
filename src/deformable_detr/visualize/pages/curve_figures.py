"""Precision over recall, and F1 over the score threshold: one line per class, as far as colours can be told apart."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deformable_detr.evaluation.metrics import Metrics
from deformable_detr.evaluation.thresholds import RECALLS, OperatingPoint, ScoreCurve, joint_curve
from deformable_detr.visualize.colors import class_color
from deformable_detr.visualize.figures import INK, new_axes, short_name

MOST_COLORS = 10
SCORES = np.linspace(0, 1, 1001)
FAINT = "#b5bcc6"


def draw_pr_curves(metrics: Metrics, points: Sequence[OperatingPoint] = ()) -> Figure:
    """Draw precision over recall at IoU .50.

    Args:
        metrics: with the curve of each class.
        points: one for each class, such as those at its threshold; drawn as dots.
    """
    figure, axes = new_axes(5.6, 4.9, xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    for label, color in _colored([entry.num_objects for entry in metrics.per_class]):
        entry = metrics.per_class[label]
        axes.plot(RECALLS, entry.precision, color=color, label=f"{short_name(entry.name)}  {entry.ap50:.2f}", **_line(color))
        if points and color != FAINT and points[label].true_positives:
            _dot(axes, points[label].recall, points[label].precision, color)
    curves = [entry.precision for entry in metrics.per_class if entry.num_objects]
    if curves:
        mean = np.mean(curves, axis=0)
        axes.plot(RECALLS, mean, color=INK, linewidth=2.6, label=f"mean  {mean.mean():.2f}")
    _add_legend(axes, "AP50")
    return figure


def draw_f1_curves(curves: Sequence[ScoreCurve], points: Sequence[OperatingPoint]) -> Figure:
    """Draw F1 at IoU .50 over the score threshold.

    Args:
        curves: of all classes.
        points: each class at its threshold; drawn as dots.
    """
    figure, axes = new_axes(5.6, 4.9, xlabel="score threshold", ylabel="F1", xlim=(0, 1), ylim=(0, 1.02))
    for label, color in _colored([curve.num_objects for curve in curves]):
        curve, point = curves[label], points[label]
        name = f"{short_name(curve.name)}  {point.f1:.2f} at {point.threshold:.2f}"
        axes.plot(SCORES, curve.f1_at(SCORES), color=color, label=name, **_line(color))
        if color != FAINT:
            _dot(axes, point.threshold, point.f1, color)
    joint = joint_curve(curves)
    if joint.num_objects:
        axes.plot(SCORES, joint.f1_at(SCORES), color=INK, linewidth=2.6, label="all classes together")
    _add_legend(axes, "F1 at the threshold")
    return figure


def _colored(num_objects: Sequence[int]) -> list[tuple[int, str]]:
    """Label and colour of the classes with objects: the most frequent ones in colour, and last, so that they are drawn on top."""
    frequent = sorted((label for label, count in enumerate(num_objects) if count), key=lambda label: -num_objects[label])
    many = len(num_objects) > MOST_COLORS
    return [
        (label, FAINT if rank >= MOST_COLORS else class_color(rank if many else label).as_hex())
        for rank, label in reversed(list(enumerate(frequent)))
    ]


def _line(color: str) -> dict[str, Any]:
    return {"linewidth": 0.8, "alpha": 0.6, "zorder": 1} if color == FAINT else {"linewidth": 1.6, "zorder": 2}


def _dot(axes: Axes, x: float, y: float, color: str) -> None:
    axes.plot(x, y, "o", color=color, markeredgecolor="white", markersize=7, zorder=4)


def _add_legend(axes: Axes, title: str) -> None:
    """Name the lines below the axes, in the reverse order of drawing; those of rare classes only by their number."""
    named = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_child")]
    shown = [line for line in named if line.get_color() != FAINT]
    if shown:
        title += f" ({len(named) - len(shown)} rarer classes in grey)" if len(named) > len(shown) else ""
        axes.figure.legend(handles=shown[::-1], title=title, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
