"""The figures of a report: curves of precision, recall and F1, calibration, confusion matrix, error types."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from deformable_detr.evaluation.analysis import Analysis
from deformable_detr.evaluation.calibration import Calibration
from deformable_detr.evaluation.confusion import BACKGROUND, ConfusionMatrix
from deformable_detr.evaluation.error_types import ErrorType
from deformable_detr.evaluation.metrics import Metrics
from deformable_detr.evaluation.thresholds import RECALLS, OperatingPoint, ScoreCurve, joint_curve
from deformable_detr.visualize.colors import class_color
from deformable_detr.visualize.figures import INK, new_figure, open_frame, short_name

MOST_COLORS = 10
SCORES = np.linspace(0, 1, 1001)
FAINT = "#b5bcc6"


def draw_pr_curves(metrics: Metrics, points: Sequence[OperatingPoint] = ()) -> Figure:
    """Draw precision over recall at IoU .50, and `points` of the classes, such as those at their thresholds, as dots."""
    figure, axes = _curve_axes("recall", "precision")
    for label, color in _colored([entry.num_objects for entry in metrics.per_class]):
        entry = metrics.per_class[label]
        dot = (points[label].recall, points[label].precision) if points and points[label].true_positives else None
        _draw_curve(axes, RECALLS, entry.precision, color, f"{short_name(entry.name)}  {entry.ap50:.2f}", dot)
    curves = [entry.precision for entry in metrics.per_class if entry.num_objects]
    if curves:
        mean = np.mean(curves, axis=0)
        axes.plot(RECALLS, mean, color=INK, linewidth=2.6, label=f"mean  {mean.mean():.2f}")
    _add_legend(axes, "AP50")
    return figure


def draw_f1_curves(curves: Sequence[ScoreCurve], points: Sequence[OperatingPoint]) -> Figure:
    """Draw F1 at IoU .50 over the score threshold, and each class at its threshold as a dot."""
    figure, axes = _curve_axes("score threshold", "F1")
    for label, color in _colored([curve.num_objects for curve in curves]):
        curve, point = curves[label], points[label]
        name = f"{short_name(curve.name)}  {point.f1:.2f} at {point.threshold:.2f}"
        _draw_curve(axes, SCORES, curve.f1_at(SCORES), color, name, (point.threshold, point.f1))
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


def _curve_axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = new_figure(5.6, 4.9)
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel, xlim=(0, 1), ylim=(0, 1.02))
    open_frame(axes, grid=True)
    return figure, axes


def _draw_curve(axes: Axes, x: np.ndarray, y: ArrayLike, color: str, label: str, dot: tuple[float, float] | None) -> None:
    """The line of one class, and where it has a colour of its own a dot on it."""
    style: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.6, "zorder": 1} if color == FAINT else {"linewidth": 1.6, "zorder": 2}
    axes.plot(x, y, color=color, label=label, **style)
    if dot and color != FAINT:
        axes.plot(*dot, "o", color=color, markeredgecolor="white", markersize=7, zorder=4)


def _add_legend(axes: Axes, title: str) -> None:
    """Name the lines below the axes, in the reverse order of drawing; those of rare classes only by their number."""
    named = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_child")]
    shown = [line for line in named if line.get_color() != FAINT]
    if shown:
        title += f" ({len(named) - len(shown)} rarer classes in grey)" if len(named) > len(shown) else ""
        axes.figure.legend(handles=shown[::-1], title=title, loc="outside lower center", ncols=2, fontsize=9, frameon=False)


def draw_calibration(calibration: Calibration) -> Figure:
    """Draw the precision of the detections in each bin of scores, with the gap to the mean score, beside their number."""
    figure = new_figure(10.5, 3.4)
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    centres, widths = (calibration.edges[:-1] + calibration.edges[1:]) / 2, np.diff(calibration.edges) * 0.9
    there = calibration.counts > 0
    precision, scores = calibration.precision[there], calibration.scores[there]
    left.bar(centres[there], precision, widths[there], color="#1f77d0", label="precision")
    bottoms, heights = np.minimum(precision, scores), np.abs(precision - scores)
    left.bar(centres[there], heights, widths[there], bottom=bottoms, color="#d7302766", label="gap to the mean score")
    left.plot((0, 1), (0, 1), color=INK, linewidth=1.2, linestyle="--", label="calibrated")
    left.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="score", ylabel="precision at IoU .50")
    left.legend(fontsize=9, frameon=False, loc="upper left")
    bars = right.bar(centres, calibration.counts, widths, color="#8c96a3")
    right.bar_label(bars, [str(count) for count in calibration.counts], padding=2, fontsize=8.5)
    right.set(xlim=(0, 1), xlabel="score", ylabel="detections")
    right.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    for axes in (left, right):
        axes.set_axisbelow(True)
        open_frame(axes, grid=True)
    return figure


MOST_CLASSES = 20
CORRECT, CONFUSED, GRID = "#1a9850", "#d73027", "#8c96a340"


def draw_confusion(confusion: ConfusionMatrix) -> Figure:
    """Draw ground truth (rows) against detections (columns); at most 20 classes, those with the most errors.

    The opacity is the count as a share of its row, in the row of the background (which has no total) as a share of its column.
    """
    shown = confusion.largest(MOST_CLASSES)
    names = [short_name(name, 18) for name in (*shown.names, BACKGROUND)]
    size = len(names)
    shares = shown.shares()
    shares[-1] = shown.counts[-1] / np.maximum(shown.counts.sum(axis=0), 1)
    side = max(3.4, 1.6 + 0.42 * size)
    figure = new_figure(side + 0.6, side)
    axes = figure.add_subplot()
    colors = np.where(np.eye(size, dtype=bool)[..., None], to_rgb(CORRECT), to_rgb(CONFUSED))
    axes.imshow(np.concatenate((colors, np.clip(shares, 0, 1)[..., None] ** 0.7), axis=-1), aspect="equal")
    for (row, column), count in np.ndenumerate(shown.counts):
        if count:
            ink = "white" if shares[row, column] > 0.6 else INK
            axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(size), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_yticks(range(size), names, fontsize=9)
    axes.set(xlabel="detected as", ylabel="ground truth")
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=GRID, linewidth=0.8)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_color(GRID)
    return figure


ERROR_COLORS: Mapping[ErrorType, str] = {
    ErrorType.CLASSIFICATION: "#e0559b",
    ErrorType.LOCALISATION: "#e8a317",
    ErrorType.BOTH: "#9467d6",
    ErrorType.DUPLICATE: "#3b8fd9",
    ErrorType.BACKGROUND: "#8a5a3c",
    ErrorType.MISSED: "#d73027",
}
"""The same in all figures and images of a report."""


def draw_error_types(analysis: Analysis) -> Figure:
    """Draw the gain of fixing each error type, of fixing all false positives or negatives, and the counts at the thresholds."""
    figure = new_figure(10.5, 3.1)
    gains, totals, counts = figure.subplots(1, 3, width_ratios=(3, 2.1, 3))
    kinds, colors = list(ERROR_COLORS), list(ERROR_COLORS.values())
    errors = analysis.errors
    _bars(gains, kinds, [100 * errors.gains[kind] for kind in kinds], colors, "gain of AP50 if fixed, in points", "{:.1f}")
    both = [100 * errors.false_positive_gain, 100 * errors.false_negative_gain]
    _bars(totals, ("false\npositives", "false\nnegatives"), both, ("#6b7480", "#b5bcc6"), "all of them fixed", "{:.1f}")
    _bars(counts, kinds, [analysis.counts[kind] for kind in kinds], colors, "errors at the thresholds", "{:.0f}")
    return figure


def _bars(axes: Axes, names: Sequence[str], values: Sequence[float], colors: Sequence[str], title: str, form: str) -> None:
    values = [0.0 if math.isnan(value) else value for value in values]
    bars = axes.barh([str(name) for name in names], values, color=colors, height=0.68)
    axes.bar_label(bars, [form.format(value) for value in values], padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlim(min(0.0, *values), max(*values, 1e-9) * 1.18)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
