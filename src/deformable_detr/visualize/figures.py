"""What all figures have in common: size, panels, writing to a file.

Figures are made without pyplot: nothing is shown, nothing is global, and threads do not disturb each other.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure

FORMATS = (".png", ".svg", ".pdf", ".jpg", ".webp")


@dataclass(frozen=True, eq=False)
class View:
    """Data with the figure that shows them; the data are the other fields."""

    figure: Figure

    def save(self, path: str | Path, *, dpi: int = 150) -> Path:
        """Write the figure; see :func:`save_figure`."""
        return save_figure(self.figure, path, dpi=dpi)


def save_figure(figure: Figure, path: str | Path, *, dpi: int = 150) -> Path:
    """Write a figure as PNG, SVG, PDF, JPEG or WebP (by the suffix), making the folder where needed.

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: a figure is written as {', '.join(FORMATS)}, not {path.suffix or 'without a suffix'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        figure.savefig(partial, dpi=dpi, format=path.suffix.lower()[1:])
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches that lays itself out."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def panels(figure: Figure | SubFigure, count: int, columns: int) -> list[Axes]:
    """`count` axes, row by row; the cells left over stay empty."""
    columns = min(columns, count)
    grid = figure.subplots(math.ceil(count / columns), columns, squeeze=False)
    for axes in grid.flat[count:]:
        axes.set_axis_off()
    return list(grid.flat[:count])


def panel_size(image_size: tuple[int, int], count: int, columns: int, *, side: float = 3.6) -> tuple[float, float]:
    """(width, height) in inches that `count` images of one size take, with a title above each.

    Args:
        image_size: (height, width), in any unit.
        count: panels.
        columns: at most so many beside each other.
        side: inches of an image's longer side.
    """
    height, width = (value * side / max(image_size) for value in image_size)
    columns = min(columns, count)
    return columns * (width + 0.12), math.ceil(count / columns) * (height + 0.3)
