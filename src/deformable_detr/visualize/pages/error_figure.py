"""Error types as bars: what each costs, and how often it occurs."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deformable_detr.evaluation.analysis import Analysis
from deformable_detr.evaluation.error_types import ErrorType
from deformable_detr.visualize.figures import new_figure

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
