"""The confusion matrix as a figure: correct in green, confused in red."""

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from deformable_detr.evaluation.confusion import BACKGROUND, ConfusionMatrix
from deformable_detr.visualize.figures import INK, new_figure, short_name

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
    axes.imshow(_colors(shares), aspect="equal")
    for (row, column), count in np.ndenumerate(shown.counts):
        if count:
            axes.text(
                column, row, str(count), ha="center", va="center", fontsize=8, color="white" if shares[row, column] > 0.6 else INK
            )
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


def _colors(shares: np.ndarray) -> np.ndarray:
    """`[R, R]` in [0, 1] → RGBA `[R, R, 4]`: green on the diagonal, red elsewhere, as opaque as the share is large."""
    colors = np.where(np.eye(len(shares), dtype=bool)[..., None], to_rgb(CORRECT), to_rgb(CONFUSED))
    return np.concatenate((colors, np.clip(shares, 0, 1)[..., None] ** 0.7), axis=-1)
