"""The refinement of a box from layer to layer (paper, app. A.4), with its class scores."""

from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from torch import Tensor
from torchvision.ops import box_iou

from deformable_detr.visualize.figures import View, new_figure, open_frame, short_name
from deformable_detr.visualize.inside.canvas import draw_box, draw_reference, focus, show_image
from deformable_detr.visualize.inside.inside import Inside


@dataclass(frozen=True, eq=False)
class RefinementView(View):
    """One query through the N decoder layers."""

    boxes: Tensor
    """`[N + 1, 4]` xyxy in pixels: the reference, then the box of each layer."""

    scores: Tensor
    """`[N, K]` in [0, 1] of each layer."""

    overlaps: Tensor
    """`[N + 1]`: IoU of each of the boxes with the last one."""


def view_refinement(inside: Inside, query: int) -> RefinementView:
    """Draw the boxes of one query, from its reference to the last layer, beside its class scores and the IoU with the last box.

    Args:
        inside: from :func:`look_inside`.
        query: in [0, Q).

    Raises:
        ValueError: there is no such query.
    """
    found = inside.detection_of(query)
    boxes, scores = inside.boxes_per_layer(query), inside.scores_per_layer(query)
    figure = new_figure(8.8, 4.4, f"Query {query} from layer to layer: {found.name} {found.score:.2f}")
    left, right = figure.subplots(1, 2)
    draw_refinement(left, inside, query)
    draw_scores(right, inside, query)
    return RefinementView(figure, boxes, scores, _overlaps(boxes))


def draw_scores(axes: Axes, inside: Inside, query: int) -> None:
    """Draw the scores of the highest-scored classes after each layer, and the IoU of each box with the last one."""
    boxes, scores = inside.boxes_per_layer(query), inside.scores_per_layer(query)
    layers = list(range(len(boxes)))
    for rank, label in enumerate(scores[-1].topk(min(4, scores.shape[1])).indices.tolist()):
        style = {"linewidth": 2.4 if rank == 0 else 1.3, "color": ("#1f6feb", "#8b949e", "#b1bac4", "#d0d7de")[rank]}
        axes.plot(
            layers[1:], scores[:, label].tolist(), marker="o", label=f"score {short_name(inside.categories.names[label])}", **style
        )
    axes.plot(layers, _overlaps(boxes).tolist(), marker="s", color="#e8590c", linestyle="--", label="IoU with the last box")
    axes.set(ylim=(0, 1.03), xticks=layers, xticklabels=["reference", *map(str, layers[1:])], xlabel="decoder layer")
    open_frame(axes, grid=True)
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4.8, ncols=3)


def _overlaps(boxes: Tensor) -> Tensor:
    return box_iou(boxes, boxes[-1:])[:, 0]


def draw_refinement(axes: Axes, inside: Inside, query: int) -> None:
    """Draw the boxes of all layers on the image, from violet (first) to yellow (last), and the reference green and dashed.

    For a small object only its surroundings are shown.
    """
    boxes = inside.boxes_per_layer(query)
    show_image(axes, inside.image, fade=0.5)
    left, top, right, bottom = boxes[0].tolist()
    reference = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
    draw_reference(axes, boxes.new_tensor(reference if right > left else reference[:2]))
    for layer, box in enumerate(boxes[1:].tolist(), 1):
        last = layer == len(boxes) - 1
        color = to_hex(matplotlib.colormaps["plasma"](0.35 + 0.6 * (layer - 1) / max(len(boxes) - 2, 1)))
        draw_box(axes, box, color, label=f"layer {layer}" if last else "", width=2.4 if last else 1.5)
    if float((boxes[1:, 2:] - boxes[1:, :2]).max()) < 0.3 * max(inside.image_size):
        focus(axes, boxes.reshape(-1, 2), least=0.1 * max(inside.image_size))
