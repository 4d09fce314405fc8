"""Precision over recall, and F1 over the score threshold: one line per class, as far as colours can be told apart."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deformable_detr.evaluation.analysis import Analysis
from deformable_detr.evaluation.thresholds import RECALLS, ScoreCurve
from deformable_detr.visualize.colors import class_color
from deformable_detr.visualize.figures import new_figure

MOST_COLORS = 10
SCORES = np.linspace(0, 1, 1001)
FAINT, DARK = "#b5bcc6", "#20262e"


def draw_pr_curves(analysis: Analysis) -> Figure:
    """Precision over recall at IoU .50, with a dot where the threshold of the class lies."""
    figure, axes = _axes("recall", "precision")
    for label, curve, color in _colored(analysis.curves):
        axes.plot(RECALLS, curve.interpolated_precision(), color=color, **_line(color))
        point = analysis.points[label]
        if color != FAINT and point.right:
            axes.plot(point.recall, point.precision, "o", color=color, markeredgecolor="white", markersize=7, zorder=4)
        _name(axes, color, f"{curve.name}  {curve.average_precision():.2f}")
    there = [curve.interpolated_precision() for curve in analysis.curves if curve.num_objects]
    if there:
        mean = np.mean(there, axis=0)
        axes.plot(RECALLS, mean, color=DARK, linewidth=2.6, label=f"mean  {mean.mean():.2f}")
    return _finished(figure, axes, "AP50")


def draw_f1_curves(analysis: Analysis) -> Figure:
    """F1 at IoU .50 over the score threshold, with a dot at the threshold of each class."""
    figure, axes = _axes("score threshold", "F1")
    for label, curve, color in _colored(analysis.curves):
        axes.plot(SCORES, curve.f1_at(SCORES), color=color, **_line(color))
        point = analysis.points[label]
        if color != FAINT:
            axes.plot(point.threshold, point.f1, "o", color=color, markeredgecolor="white", markersize=7, zorder=4)
        _name(axes, color, f"{curve.name}  {point.f1:.2f} at {point.threshold:.2f}")
    joint = analysis.joint_curve
    if joint.num_objects:
        axes.plot(SCORES, joint.f1_at(SCORES), color=DARK, linewidth=2.6, label="all classes together")
    return _finished(figure, axes, "F1 at the threshold")


def _axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = new_figure(5.8, 4.0)
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel, xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _colored(curves: Sequence[ScoreCurve]) -> list[tuple[int, ScoreCurve, str]]:
    """Label, curve, colour of the classes with objects: the most frequent ones in colour, and last, so that they lie on top."""
    frequent = sorted((label for label, curve in enumerate(curves) if curve.num_objects), key=lambda i: -curves[i].num_objects)
    return [
        (label, curves[label], FAINT if rank >= MOST_COLORS else class_color(rank if len(curves) > MOST_COLORS else label).as_hex())
        for rank, label in reversed(list(enumerate(frequent)))
    ]


def _line(color: str) -> dict[str, Any]:
    return {"linewidth": 0.8, "alpha": 0.6, "zorder": 1} if color == FAINT else {"linewidth": 1.6, "zorder": 2}


def _name(axes: Axes, color: str, text: str) -> None:
    if color != FAINT:
        axes.get_lines()[-1].set_label(text)


def _finished(figure: Figure, axes: Axes, title: str) -> Figure:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        hidden = sum(line.get_color() == FAINT for line in axes.get_lines())
        title += f"\n({hidden} rarer classes in grey)" if hidden else ""
        axes.legend(
            handles[::-1], labels[::-1], fontsize="small", title=title, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False
        )
    return figure
