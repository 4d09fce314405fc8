"""The boxes of each query over many images (as figure 7 of DETR shows them for learned queries)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from deformable_detr.inference.predictor import Predictor
from deformable_detr.inference.sources import Source
from deformable_detr.model import DeformableDETR
from deformable_detr.visualize.figures import View, check_counts, new_figure, open_frame, panels
from deformable_detr.visualize.inside.level_attention import look_inside_many

KINDS: dict[str, dict[str, Any]] = {
    "small box": {"marker": "o", "color": "#0072b2", "s": 11, "linewidths": 0},
    "large and wide": {"marker": "_", "color": "#d55e00", "s": 36, "linewidths": 1.6},
    "large and tall": {"marker": "|", "color": "#8a3d78", "s": 36, "linewidths": 1.6},
}
"""How each kind of box is drawn; the shape of the marker carries the same information as the colour."""

LARGE = 0.15
"""A box is small if its width and height are below this share of the image's."""


@dataclass(frozen=True, eq=False)
class QueryUsageView(View):
    """The boxes of all Q queries in I images."""

    boxes: Tensor
    """`[I, Q, 4]` cxcywh in [0, 1] of each image."""

    scores: Tensor
    """`[I, Q]` in [0, 1]: of the highest-scored class."""

    labels: Tensor
    """`[I, Q]` int64: the highest-scored class."""

    usage: Tensor
    """`[Q]`: the share of the images in which the query's score reaches the threshold."""


def view_query_usage(
    model: DeformableDETR | Predictor,
    source: Source,
    *,
    threshold: float = 0.3,
    limit: int | None = 500,
    num_queries: int = 20,
) -> QueryUsageView:
    """Collect every query's boxes over many images and draw the box centres of the most used queries.

    A learned query is the same in every image and specialises on a region and a size. A query of a two-stage model is a rank:
    query 0 is the best proposal, at whatever position.

    Args:
        model: any variant, or a detector.
        source: images as :meth:`Predictor.predict` takes them.
        threshold: smallest score at which a query counts as used.
        limit: largest number of images. None: all.
        num_queries: number of queries that are drawn, the most used first.

    Raises:
        FileNotFoundError: there are no images.
        ValueError: `num_queries` is below 1.
    """
    check_counts(num_queries=num_queries)
    boxes, scores, labels, kind = [], [], [], ""
    for inside in look_inside_many(model, source, limit=limit):
        best = inside.predictions.logits[-1, 0].float().sigmoid().max(-1)  # [Q]
        boxes.append(inside.predictions.boxes[-1, 0].float())
        scores.append(best.values)
        labels.append(best.indices)
        kind = "learned queries" if inside.query_source == "learned" else "queries are ranks of proposals"
    if not boxes:
        raise FileNotFoundError("there are no images")
    count = min(len(item) for item in boxes)  # a tiny image may have fewer proposals than others
    all_boxes, all_scores, all_labels = (torch.stack([item[:count] for item in items]) for items in (boxes, scores, labels))
    usage = (all_scores >= threshold).float().mean(0)
    figure = _draw(all_boxes, all_scores, usage, threshold, num_queries, kind)
    return QueryUsageView(figure, all_boxes, all_scores, all_labels, usage)


def _draw(boxes: Tensor, scores: Tensor, usage: Tensor, threshold: float, num_queries: int, kind: str):
    shown = usage.argsort(descending=True, stable=True)[:num_queries].tolist()
    columns = min(5, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(10.0, 1.9 * rows + 2.6)
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.9 * rows + 0.6, 1.9))[:, 0]
    title = f"Box centres of the {len(shown)} most used queries ({len(boxes)} images, {kind})"
    top.suptitle(title, fontsize=11, fontweight="bold")
    for axes, query in zip(panels(top, len(shown), columns), shown, strict=True):
        used = scores[:, query] >= threshold
        axes.scatter(*boxes[~used, query, :2].T, s=3, color="#b5bcc6", linewidths=0)
        found = boxes[used, query]
        small = (found[:, 2:] < LARGE).all(-1)
        wide = ~small & (found[:, 2] >= found[:, 3])
        for members, style in zip((small, wide, ~small & ~wide), KINDS.values(), strict=True):
            axes.scatter(found[members, 0], found[members, 1], **style)
        axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")
        axes.set_title(f"query {query}: {float(usage[query]):.0%}", fontsize=8.5)
    axes = bottom.subplots()
    axes.bar(np.arange(len(usage)), usage.numpy(), color="#0072b2", width=0.84 if len(usage) <= 60 else 1.0)
    axes.set(xlim=(-0.6, len(usage) - 0.4), xlabel="query", ylabel=f"images with\na score ≥ {threshold:g}")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=21, integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    open_frame(axes)
    axes.tick_params(labelsize=8.5)
    handles = [axes.scatter([], [], label=kind, **style) for kind, style in KINDS.items()]
    handles.append(axes.scatter([], [], s=8, color="#b5bcc6", linewidths=0, label=f"score below {threshold:g}"))
    top.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure
