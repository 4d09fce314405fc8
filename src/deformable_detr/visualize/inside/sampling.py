"""The sampling points of a query on the image, sized by attention weight (paper, figure 6 and app. A.6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from matplotlib.axes import Axes
from torch import Tensor

from deformable_detr.visualize.figures import View, new_figure, panel_size, panels
from deformable_detr.visualize.inside.canvas import (
    LARGEST_AREA,
    count_outside,
    draw_box,
    draw_points,
    draw_reference,
    focus,
    level_legend,
    show_image,
    widen,
)
from deformable_detr.visualize.inside.inside import Inside, LayerSampling, Look

Split = Literal["layer", "head", "level"]
SMALL_AREA = 70.0
"""Area of the circle of the largest weight in a panel of a larger figure."""


@dataclass(frozen=True, eq=False)
class SamplingView(View):
    """Sampling points of one query; A layers are shown."""

    layers: tuple[int, ...]
    """Which layers, from 0."""

    points: Tensor
    """`[A, M, L, P, 2]` (x, y) in pixels of the image."""

    weights: Tensor
    """`[A, M, L, P]`: of the whole layer, so they sum to 1 over all levels and points of a head."""

    references: Tensor
    """`[A, 2 | 4]`: (x, y) or (cx, cy, w, h) in pixels of the image."""


def view_sampling(
    inside: Inside,
    query: int | None = None,
    *,
    position: int | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    levels: Sequence[int] | None = None,
    split: Split = "layer",
    zoom: bool | None = None,
) -> SamplingView:
    """Draw the sampling points of a decoder query or an encoder position.

    The area of a circle is its attention weight, its colour the level, the cross the reference point. Take the `query` of a
    detection (`inside.detections()[0].query`) or any other; a `position` of the encoder comes from `inside.position_at(x, y)`.

    Args:
        inside: from :func:`look_inside`.
        query: in [0, Q), for the cross-attention of the decoder.
        position: in [0, S), for the self-attention of the encoder, instead of `query`.
        layers: from 0, negative ones from the end. None: all with `split="layer"`, else the last.
        heads: only these. None: all.
        levels: only these. None: all.
        split: one panel per layer, per head or per level.
        zoom: show the surroundings of the object instead of the whole image. None: if the object is small.

    Raises:
        ValueError: neither or both of query and position, or a number out of range.
    """
    stack, index = _stack(inside, query, position)
    chosen = _chosen(layers, len(stack), "layer", default=range(len(stack)) if split == "layer" else (len(stack) - 1,))
    each = [inside.look(stack[layer], index) for layer in chosen]
    looks = Look(*(torch.stack(parts) for parts in zip(*each, strict=True)))
    shown = _shown(heads, levels, looks.weights)
    largest = float(looks.weights[:, shown].max())
    cells = _cells(split, chosen, shown)
    columns = 4 if len(cells) > 3 else 3
    zoom = query is not None and _is_small(inside, query) if zoom is None else zoom
    size = (1, 1) if zoom else inside.image_size
    width, height = panel_size(size, len(cells), columns)
    figure = new_figure(max(width, 5.4), height + (0.75 if width > 8.5 else 0.95), _title(inside, query, position))
    for axes, cell in zip(panels(figure, len(cells), columns), cells, strict=True):
        _draw_cell(axes, inside, looks, cell, largest, query, zoom)
    level_legend(figure, inside.spatial_shapes, largest=largest, box="" if query is None else "box after the layer")
    return SamplingView(figure, tuple(chosen), *looks)


def draw_layer(axes: Axes, inside: Inside, layer: int, query: int) -> float:
    """Draw one panel of :func:`view_sampling`: all heads and levels of a decoder layer.

    Returns:
        The largest weight.
    """
    look = inside.look(inside.decoder[layer], query)
    looks = Look(*(part[None] for part in look))
    cell = _Cell("", 0, layer, torch.ones(look.weights.shape[:2], dtype=torch.bool, device="cpu"))
    largest = float(look.weights.max())
    _draw_cell(axes, inside, looks, cell, largest, query, _is_small(inside, query), area=SMALL_AREA)
    return largest


class _Cell(NamedTuple):
    title: str
    row: int  # which of the shown layers
    layer: int
    shown: Tensor  # [M, L] bool


def _draw_cell(
    axes: Axes,
    inside: Inside,
    looks: Look,
    cell: _Cell,
    largest: float,
    query: int | None,
    zoom: bool,
    area: float = LARGEST_AREA,
) -> None:
    points, weights, reference = (part[cell.row] for part in looks)
    show_image(axes, inside.image, fade=0.55)
    if query is not None:
        draw_box(axes, inside.boxes_per_layer(query)[cell.layer + 1].tolist(), "#ffffff", width=1.5)
    draw_reference(axes, reference)
    draw_points(axes, points, weights, shown=cell.shown, largest=largest, area=area)
    if zoom:
        strong = looks.points[looks.weights > 0.02 * looks.weights.max()]  # of all panels, so that they show the same
        corners = [strong, looks.reference[:, :2]]
        if query is not None:
            corners.append(inside.boxes_per_layer(query)[1:].reshape(-1, 2))
        focus(axes, torch.cat(corners), least=0.1 * max(inside.image_size))
    else:
        widen(axes, looks.points)
    outside = count_outside(axes, points[cell.shown])
    axes.set_title(f"{cell.title} ({outside} outside)" if outside else cell.title, fontsize=9.5)


def _is_small(inside: Inside, query: int) -> bool:
    left, top, right, bottom = inside.detection_of(query).box
    return max(right - left, bottom - top) < 0.3 * max(inside.image_size)


def _stack(inside: Inside, query: int | None, position: int | None) -> tuple[tuple[LayerSampling, ...], int]:
    if (query is None) == (position is None):
        raise ValueError("give either a query (of the decoder) or a position (of the encoder)")
    if query is not None:
        inside.detection_of(query)  # says so where there is no such query
        return inside.decoder, query
    assert position is not None
    if not inside.encoder:
        raise ValueError("the encoder was not captured: call look_inside without encoder=False")
    if not 0 <= position < inside.memory.shape[1]:
        raise ValueError(f"there is no position {position}: the sequence has {inside.memory.shape[1]}")
    return inside.encoder, position


def _chosen(wanted: Sequence[int] | None, count: int, kind: str, default: Sequence[int] | None = None) -> list[int]:
    if wanted is None:
        return list(range(count) if default is None else default)
    for number in wanted:
        if not -count <= number < count:
            raise ValueError(f"there is no {kind} {number}: they are numbered from 0 to {count - 1}")
    if len(wanted) == 0:
        raise ValueError(f"no {kind} is left to draw")
    return [number % count for number in wanted]


def _shown(heads: Sequence[int] | None, levels: Sequence[int] | None, weights: Tensor) -> Tensor:
    """`[M, L]` bool: which heads and levels of weights `[A, M, L, P]` to draw."""
    shown = torch.zeros(weights.shape[1:3], dtype=torch.bool, device="cpu")
    chosen_heads, chosen_levels = _chosen(heads, len(shown), "head"), _chosen(levels, shown.shape[1], "level")
    shown[[[head] for head in chosen_heads], list(chosen_levels)] = True
    return shown


def _cells(split: Split, layers: Sequence[int], shown: Tensor) -> list[_Cell]:
    """The panels."""
    if split == "layer":
        return [_Cell(f"layer {layer + 1}", row, layer, shown) for row, layer in enumerate(layers)]
    if split not in ("head", "level"):
        raise ValueError(f"split must be 'layer', 'head' or 'level', not {split!r}")
    cells = []
    for row, layer in enumerate(layers):
        for number in shown.any(1 if split == "head" else 0).nonzero()[:, 0].tolist():
            mask = torch.zeros_like(shown)
            place = (number, slice(None)) if split == "head" else (slice(None), number)
            mask[place] = shown[place]
            cells.append(_Cell(f"layer {layer + 1}, {split} {number}", row, layer, mask))
    return cells


def _title(inside: Inside, query: int | None, position: int | None) -> str:
    if query is not None:
        found = inside.detection_of(query)
        return f"Sampling points of query {query}: {found.name} {found.score:.2f}"
    assert position is not None
    level, row, column = inside.level_and_cell(position)
    return f"Sampling points of the encoder's position at level {level}, row {row}, column {column}"
