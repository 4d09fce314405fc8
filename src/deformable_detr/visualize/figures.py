"""What all figures have in common: size, panels, writing to a file.

Figures are made without pyplot: nothing is shown, nothing is global, and threads do not disturb each other.
"""

import math
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.text import Text

from deformable_detr.files import atomic_file
from deformable_detr.schema import check_number, plain_numbers

INK = "#1b2230"
"""Text, axes and main lines."""

FORMATS = (".png", ".svg", ".pdf", ".jpg", ".webp")


@dataclass(frozen=True, eq=False)
class View:
    """Data with the figure that shows them; the data are the other fields."""

    figure: Figure

    def save(self, path: str | Path, *, dpi: int = 150) -> Path:
        """Write the figure; see :func:`save_figure`."""
        return save_figure(self.figure, path, dpi=dpi)


def check_format(path: str | Path) -> None:
    """See that a figure can be written under this name.

    Raises:
        ValueError: another suffix.
    """
    suffix = Path(path).suffix
    if suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: a figure is written as {', '.join(FORMATS)}, not {suffix or 'without a suffix'}")


def save_figure(figure: Figure, path: str | Path, *, dpi: int = 150) -> Path:
    """Write a figure as PNG, SVG, PDF, JPEG or WebP (by the suffix), making the folder where needed.

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    check_format(path)
    plain_text(figure)
    with atomic_file(path) as partial:
        figure.savefig(partial, dpi=dpi, format=path.suffix.lower()[1:])
    return path


def check_counts(**counts: int) -> None:
    """See that something is left to draw.

    Raises:
        ValueError: one of these numbers is below 1.
        TypeError: one is no whole number.
    """
    plain_numbers("a whole number", Integral, int, **counts)
    for name, count in counts.items():
        check_number(name, count, 1)


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """An empty figure with constrained layout and a heading; its size is in inches."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=11, fontweight="bold")
    return figure


def plain_text(figure: Figure) -> None:
    """Show every text as it is, also a class name with dollar signs, which would be a formula."""
    for text in figure.findobj(Text):
        text.set(parse_math=False)


def short_name(name: str, most: int = 24) -> str:
    """A class name as a label: long ones are cut off; one that begins with an underscore would be left out of a legend."""
    name = name if len(name) <= most else name[: most - 1] + "…"
    return f" {name}" if name.startswith("_") else name


def open_frame(axes: Axes, *, grid: bool = False) -> None:
    """Leave out the frame at the top and the right, and draw a faint grid where it helps."""
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(alpha=0.25)


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
        columns: largest number of axes per row.
        side: inches of an image's longer side.
    """
    height, width = (value * side / max(image_size) for value in image_size)
    columns = min(columns, count)
    return columns * (width + 0.12), math.ceil(count / columns) * (height + 0.3)
