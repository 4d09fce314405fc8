"""The proposals of a two-stage model's encoder, and which of them become queries (paper, app. A.4)."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.image import AxesImage
from torch import Tensor

from deformable_detr.visualize.colors import level_color
from deformable_detr.visualize.figures import View, check_counts, new_figure, panel_size, panels
from deformable_detr.visualize.inside.canvas import draw_box, level_legend, show_image
from deformable_detr.visualize.inside.inside import Inside, Proposals


@dataclass(frozen=True, eq=False)
class ProposalsView(View):
    """The proposals of one image."""

    proposals: Proposals
    """All proposals."""

    levels: Tensor
    """`[Q]` int64: the level that each taken proposal comes from."""


def view_proposals(inside: Inside, *, num_boxes: int = 30) -> ProposalsView:
    """Draw the objectness of every position, level by level, with the taken ones marked, and the best proposals as boxes.

    Args:
        inside: from :func:`look_inside`, of a two-stage model.
        num_boxes: number of the taken proposals that are drawn as boxes, best first.

    Raises:
        ValueError: the model has learned queries and no proposals, or `num_boxes` is below 1.
    """
    check_counts(num_boxes=num_boxes)
    found = inside.proposals
    if found is None:
        raise ValueError("this model has learned queries; only a two-stage model has proposals (presets ending in -two-stage)")
    levels = found.taken.new_tensor([inside.level_and_cell(position)[0] for position in found.taken.tolist()])
    count = len(inside.spatial_shapes) + 1
    columns = count if count <= 5 else 4
    width, height = panel_size(inside.image_size, count, columns, side=3.1)
    title = f"{int(found.can_propose.sum())} positions propose a box, the best {len(found.taken)} by objectness become queries"
    figure = new_figure(max(width, 5.4) + 0.5, height + 0.8, title)
    first, *others = panels(figure, count, columns)
    _draw_boxes(first, inside, found, num_boxes)
    drawn = min(num_boxes, len(found.taken))
    first.set_title("the taken proposals" if drawn == len(found.taken) else f"the best {drawn} of the taken", fontsize=9.5)
    top = float(found.objectness.max())
    for level, axes in enumerate(others):
        shown = _draw_objectness(axes, inside, found, level, top)
        axes.set_title(f"objectness on level {level}: {int((levels == level).sum())} taken", fontsize=9.5)
        if level == len(others) - 1:
            figure.colorbar(ScalarMappable(shown.norm, shown.cmap), ax=axes, shrink=0.75, aspect=18).ax.tick_params(labelsize=8)
    level_legend(figure, inside.spatial_shapes)
    return ProposalsView(figure, found, levels)


def _draw_boxes(axes: Axes, inside: Inside, found: Proposals, num_boxes: int) -> None:
    """The best taken proposals as boxes in the colour of their level, with an opacity that grows with the objectness."""
    show_image(axes, inside.image, fade=0.55)
    best = found.taken[:num_boxes].tolist()
    top = float(found.objectness[best[0]])
    for position in reversed(best):
        strength = float(found.objectness[position]) / max(top, 1e-12)
        color = level_color(inside.level_and_cell(position)[0])
        draw_box(axes, found.boxes[position].tolist(), color, width=0.9 + 1.3 * strength, alpha=0.3 + 0.7 * strength)


def _draw_objectness(axes: Axes, inside: Inside, found: Proposals, level: int, top: float) -> AxesImage:
    """The objectness map of one level over the image (0 dark, `top` bright) with rings at the taken positions."""
    (h, w), start = inside.spatial_shapes[level], inside.level_start_index[level]
    height, width = inside.image_size
    ratio_x, ratio_y = inside.valid_ratios[0, level].tolist()
    show_image(axes, inside.image, fade=1.0)
    values, can_propose = (part[start : start + h * w].view(h, w).numpy() for part in (found.objectness, found.can_propose))
    extent = (0, width / ratio_x, height / ratio_y, 0)
    opacity = np.where(can_propose, 0.35 + 0.6 * np.sqrt(values / top), 0.0)
    shown = axes.imshow(values, extent=extent, cmap="inferno", vmin=0, vmax=top, alpha=opacity, interpolation="nearest")
    cells = [divmod(position - start, w) for position in found.taken.tolist() if start <= position < start + h * w]
    if cells:
        rows, columns = np.array(cells).T
        x, y = (columns + 0.5) / w * width / ratio_x, (rows + 0.5) / h * height / ratio_y
        axes.scatter(x, y, s=26, facecolors="none", edgecolors=level_color(level), linewidths=1.5, zorder=4)
    axes.set(xlim=(0, width), ylim=(height, 0))
    return shown
