"""Calibration as a figure: precision against score, and how many detections each score has."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deformable_detr.evaluation.calibration import Calibration
from deformable_detr.visualize.figures import INK, new_figure, open_frame

COLOR, GAP = "#1f77d0", "#d7302766"


def draw_calibration(calibration: Calibration) -> Figure:
    """Draw the precision of the detections in each bin of scores, with the gap to the mean score, beside their number."""
    figure = new_figure(10.5, 3.4)
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    centres, widths = (calibration.edges[:-1] + calibration.edges[1:]) / 2, np.diff(calibration.edges) * 0.9
    there = calibration.counts > 0
    precision, scores = calibration.precision[there], calibration.scores[there]
    left.bar(centres[there], precision, widths[there], color=COLOR, label="precision")
    bottoms, heights = np.minimum(precision, scores), np.abs(precision - scores)
    left.bar(centres[there], heights, widths[there], bottom=bottoms, color=GAP, label="gap to the mean score")
    left.plot((0, 1), (0, 1), color=INK, linewidth=1.2, linestyle="--", label="calibrated")
    left.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="score", ylabel="precision at IoU .50")
    left.legend(fontsize=9, frameon=False, loc="upper left")
    bars = right.bar(centres, calibration.counts, widths, color="#8c96a3")
    right.bar_label(bars, [str(count) for count in calibration.counts], padding=2, fontsize=8.5)
    right.set(xlim=(0, 1), xlabel="score", ylabel="detections")
    right.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        open_frame(axes)
    return figure
