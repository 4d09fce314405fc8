"""An explanation as one figure, for slides and documents."""

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deformable_detr.visualize.figures import new_figure
from deformable_detr.visualize.inside.canvas import draw_box, level_legend, show_image
from deformable_detr.visualize.inside.inside import Detection, Inside
from deformable_detr.visualize.inside.refinement import draw_refinement, draw_scores
from deformable_detr.visualize.inside.sampling import draw_layer

MOST_LAYERS = 6


def draw_found(axes: Axes, inside: Inside, detection: Detection, *, threshold: float = 0.3) -> None:
    """Draw the image with all detections, the explained one emphasised."""
    show_image(axes, inside.image)
    for other in inside.detections(threshold):
        if other.query != detection.query:
            draw_box(axes, other.box, "#d0d7de", width=1.1)
    draw_box(axes, detection.box, "#ffd400", label=f"{detection.name} {detection.score:.2f}", width=2.6)


def found_figure(inside: Inside, detection: Detection) -> Figure:
    """:func:`draw_found` alone."""
    height, width = (value * 5.0 / max(inside.image_size) for value in inside.image_size)
    figure = new_figure(width + 0.1, height + 0.1)
    draw_found(figure.subplots(), inside, detection)
    return figure


def summary_figure(
    inside: Inside, detection: Detection, title: str, origin: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> Figure:
    """Draw image, refinement and scores; below, the sampling points of each layer; at the bottom a table.

    Args:
        inside: from :func:`look_inside`.
        detection: what is explained.
        title: heading.
        origin: what the query starts from, in words.
        columns: names of the table's columns.
        rows: its rows.
    """
    layers = list(range(len(inside.decoder)))[-MOST_LAYERS:]
    share = min(max(inside.image_size[0] / inside.image_size[1], 0.6), 1.0)
    figure = new_figure(12.6, 4.0 * share + 12.6 / max(len(layers), 3) + 0.21 * len(rows) + 2.3)
    figure.suptitle(f"{title}\n", fontsize=14, fontweight="bold")
    heights = (4.0 * share, min(12.6 / max(len(layers), 3), 3.9), 0.21 * len(rows) + 0.4)
    top, middle, bottom = figure.add_gridspec(3, 1, height_ratios=heights)
    first, second, third = (figure.add_subplot(cell) for cell in top.subgridspec(1, 3))
    draw_found(first, inside, detection)
    draw_refinement(second, inside, detection.query)
    draw_scores(third, inside, detection.query)
    first.set_title("\n".join(textwrap.wrap(origin, 62)), fontsize=8, loc="left")
    second.set_title("refinement of the box", fontsize=9.5)
    third.set_title("class scores, and IoU with the last box", fontsize=9.5)
    cells = middle.subgridspec(1, max(len(layers), 3))
    for column, layer in enumerate(layers):
        axes = figure.add_subplot(cells[column])
        largest = draw_layer(axes, inside, layer, detection.query)
        axes.set_title(f"layer {layer + 1}: largest weight {largest:.2f}", fontsize=9)
    _draw_table(figure.add_subplot(bottom), columns, rows)
    level_legend(figure, inside.spatial_shapes, box="box after the layer")
    return figure


def _draw_table(axes: Axes, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    axes.set_axis_off()
    table = axes.table(
        [list(row) for row in rows], colLabels=list(columns), loc="upper center", edges="horizontal", cellLoc="center"
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    axes.set_title("strongest points of the last layer", fontsize=9.5)
