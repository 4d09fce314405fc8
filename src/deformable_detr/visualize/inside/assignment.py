"""The Hungarian matching of one image: the cost of every pair of target and query, its parts, and the matched pairs.

Paper, section 4; DETR, section 3.1. `matching.py` compares matchings of layers, checkpoints and epochs.
"""

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from deformable_detr.criterion.matcher import HungarianMatcher
from deformable_detr.criterion.targets import FlatTargets
from deformable_detr.structures import Target
from deformable_detr.visualize.figures import View, check_counts, new_figure, open_frame, panels
from deformable_detr.visualize.inside.canvas import draw_box, show_image
from deformable_detr.visualize.inside.inside import Inside
from deformable_detr.visualize.inside.matching import UNMATCHED, query_of_each

PARTS = {"class_cost": ("class", "#0072b2"), "bbox_cost": ("L1", "#e69f00"), "giou_cost": ("GIoU", "#7f4f9c")}
"""Weight of the matcher → name and colour of the part; distinguishable with colour blindness."""

TARGET_COLORS = ("#56b4e9", "#e69f00", "#cc79a7", "#f0e442", "#0fb58b", "#d55e00")
RIVALS = 3
"""Queries that were not matched, drawn beside the one that was."""


@dataclass(frozen=True, eq=False)
class AssignmentView(View):
    """T targets of one image and Q queries."""

    queries: Tensor
    """`[T]` int64: the query that each target is matched with; -1 where there are more targets than queries."""

    costs: Tensor
    """`[3, T, Q]`: class, L1 and GIoU, each times its weight; the matching minimises their sum."""


def view_assignment(
    inside: Inside,
    target: Target,
    matcher: HungarianMatcher | None = None,
    *,
    layer: int = -1,
    num_targets: int = 6,
    num_queries: int = 20,
) -> AssignmentView:
    """Draw which query each target of an image is matched with, and its cost beside the other queries.

    ```python
    dataset = build_dataset("my_data", "val", DataConfig(), training=False, categories=detector.metadata.categories)
    view_assignment(look_inside(detector, dataset.image(7)), dataset.target(7)).save("matching.png")
    ```

    Args:
        inside: of the image, from :func:`look_inside`.
        target: its ground truth, boxes cxcywh in [0, 1] of the whole image, labels of the model.
        matcher: as in training. None: with the official costs.
        layer: which decoder layer's predictions.
        num_targets: largest number of targets that are drawn, the first ones.
        num_queries: largest number of columns of the cost table: the queries with the lowest cost for one of the targets.

    Raises:
        ValueError: the image has no targets, or invalid ones; `num_targets` or `num_queries` is below 1.
    """
    check_counts(num_targets=num_targets, num_queries=num_queries)
    if len(target) == 0:
        raise ValueError("this image has no targets, so that nothing is matched; choose one with objects")
    matcher = matcher or HungarianMatcher()
    logits, boxes = (values[layer][None].float() for values in (inside.predictions.logits, inside.predictions.boxes))
    queries = query_of_each(matcher(logits, boxes, [target]), 0, len(target))
    flat = FlatTargets.from_targets([target], boxes.device, boxes.dtype)
    costs = torch.stack([_alone(matcher, part).costs(logits, boxes, flat)[0] for part in PARTS])
    return AssignmentView(_draw(inside, target, queries, costs, layer, num_targets, num_queries), queries, costs)


def _alone(matcher: HungarianMatcher, part: str) -> HungarianMatcher:
    """The same matcher with one part of the cost."""
    alone = deepcopy(matcher)
    for name in PARTS.keys() - {part}:
        setattr(alone, name, 0.0)
    return alone


def _draw(inside: Inside, target: Target, queries: Tensor, costs: Tensor, layer: int, num_targets: int, num_queries: int) -> Figure:
    """The image beside the cost table; below, the cost parts of the cheapest queries of each target."""
    count, total = min(len(target), num_targets), costs.sum(0)
    names = [f"{inside.categories.names[label]} {number}" for number, label in enumerate(target.labels[:count].tolist())]
    rows = -(-count // 3)
    number = range(len(inside.decoder))[layer] + 1
    figure = new_figure(11, 4.0 + 1.9 * rows, f"The query of each target, matched by decoder layer {number}")
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(4.0, 1.9 * rows))[:, 0]
    image, table = top.subplots(1, 2, width_ratios=(1, 2.2))
    _draw_pairs(image, inside, target, queries[:count], layer)
    _draw_costs(table, names, queries[:count], total[:count], _columns(queries[:count], total[:count], num_queries))
    axes = panels(bottom, count, 3)
    for index, place in enumerate(axes):
        _draw_parts(place, names[index], int(queries[index]), costs[:, index])
        place.sharex(axes[0])
    handles: list[Artist] = [Rectangle((0, 0), 1, 1, color=color, label=f"{name} cost") for name, color in PARTS.values()]
    handles += axes[0].plot([], [], "D", color="black", markersize=5, label="sum")
    bottom.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _columns(queries: Tensor, total: Tensor, count: int) -> list[int]:
    """The matched queries, then those with the lowest cost for one of the targets; `count` of them, or more if more are matched."""
    cheapest = total.amin(0).argsort().tolist()
    given = [query for query in queries.tolist() if query != UNMATCHED]
    return sorted(list(dict.fromkeys([*given, *cheapest]))[: max(count, len(given))])


def _draw_pairs(axes: Axes, inside: Inside, target: Target, queries: Tensor, layer: int) -> None:
    """The ground truth dashed, the box of the matched query solid, in one colour for each target."""
    show_image(axes, inside.image, fade=0.6)
    boxes, true_boxes = inside.boxes_in_image(inside.predictions.boxes[layer, 0]), inside.boxes_in_image(target.boxes)
    for index, query in enumerate(queries.tolist()):
        color = TARGET_COLORS[index % len(TARGET_COLORS)]
        draw_box(axes, true_boxes[index].tolist(), color, width=1.4, style=(0, (3, 2)))  # type: ignore[arg-type]
        if query != UNMATCHED:
            draw_box(axes, boxes[query].tolist(), color, label=f"query {query}", width=2.0)
    axes.set_title("dashed: target, solid: box of its query", fontsize=9.5)


def _draw_costs(axes: Axes, names: list[str], queries: Tensor, total: Tensor, columns: list[int]) -> None:
    """The sum of the costs, targets by queries; dark is low, the matched pairs are framed."""
    values = total[:, columns].numpy()
    axes.imshow(values, cmap="viridis", aspect="auto")
    middle = (values.min() + values.max()) / 2
    for (row, column), value in np.ndenumerate(values):
        color = "black" if value > middle else "white"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=7.5, color=color)
    for row, query in enumerate(queries.tolist()):
        if query != UNMATCHED:
            place = (columns.index(query) - 0.5, row - 0.5)
            axes.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor="#ff3b00", linewidth=2.6, clip_on=False, zorder=3))
    axes.set(xticks=range(len(columns)), xticklabels=columns, yticks=range(len(names)), yticklabels=names, xlabel="query")
    axes.tick_params(labelsize=8.5, length=0)
    for label, color in zip(axes.get_yticklabels(), TARGET_COLORS * len(names), strict=False):
        label.set_bbox({"facecolor": color, "edgecolor": "none", "boxstyle": "round,pad=0.2", "alpha": 0.75})
    axes.set_title("cost of each pair; framed: the matching with the lowest sum", fontsize=9.5)


def _draw_parts(axes: Axes, name: str, given: int, costs: Tensor) -> None:
    """The cost parts of the matched query and of the cheapest others: negative to the left, positive to the right."""
    total = costs.sum(0)
    others = [query for query in total.argsort().tolist() if query != given][:RIVALS]
    shown = others if given == UNMATCHED else [given, *others]
    for row, query in enumerate(shown):
        ends = {True: 0.0, False: 0.0}  # of the bars to the left and to the right
        for value, (_, color) in zip(costs[:, query].tolist(), PARTS.values(), strict=True):
            axes.barh(row, value, left=ends[value < 0], color=color, height=0.68)
            ends[value < 0] += value
        axes.plot(float(total[query]), row, "D", color="black", markeredgecolor="white", markersize=6)
    axes.axvline(0, color="#59636e", linewidth=0.8)
    labels = [f"query {query}" for query in shown]
    axes.set(yticks=range(len(shown)), yticklabels=labels, ylim=(len(shown) - 0.4, -0.6))
    if given != UNMATCHED:
        axes.get_yticklabels()[0].set_fontweight("bold")
    axes.set_title(f"{name} → {'no query' if given == UNMATCHED else f'query {given}'}", fontsize=9.5)
    open_frame(axes)
    axes.tick_params(labelsize=8.5)
