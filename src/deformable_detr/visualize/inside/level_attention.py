"""Attention per level against object size, over many images."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deformable_detr.inference.predictor import Predictor
from deformable_detr.inference.sources import Source, open_source
from deformable_detr.model import DeformableDETR
from deformable_detr.visualize.colors import level_color
from deformable_detr.visualize.figures import View, check_counts, new_figure, open_frame
from deformable_detr.visualize.inside.inside import Inside
from deformable_detr.visualize.inside.look import look_inside


@dataclass(frozen=True, eq=False)
class LevelAttentionView(View):
    """One row for each of D detections."""

    sizes: Tensor
    """`[D]`: the geometric mean of the box's sides, in pixels of the resized image that the model sees."""

    mass: Tensor
    """`[D, N, L]`: the share of each decoder layer's cross-attention on each level, the mean over the heads; sums to 1 over L."""

    edges: Tensor
    """`[G + 1]`: the limits of the G size groups of the figure, of equally many detections."""

    grouped: Tensor
    """`[G, L]`: the mean of each group, over all layers."""


def look_inside_many(model: DeformableDETR | Predictor, source: Source, *, limit: int | None = None) -> Iterator[Inside]:
    """Run :func:`look_inside` (without the encoder's sampling) on one image after the other, at most `limit`."""
    bit_depth = model.metadata.bit_depth if model.metadata else 16
    for image in islice(open_source(source, bit_depth=bit_depth), limit):
        yield look_inside(model, image.read(), encoder=False)


def view_level_attention(
    model: DeformableDETR | Predictor,
    source: Source,
    *,
    threshold: float = 0.3,
    limit: int | None = 200,
    groups: int = 8,
) -> LevelAttentionView:
    """Measure how the cross-attention is distributed over the levels, depending on the size of the objects.

    Args:
        model: any variant with more than one level, or a detector.
        source: images as :meth:`Predictor.predict` takes them: a folder, a pattern, a list.
        threshold: smallest score of a detection that counts.
        limit: largest number of images.
        groups: number of bars in the figure, of equally many detections.

    Raises:
        ValueError: not one detection in all images, or `groups` is below 1.
    """
    check_counts(groups=groups)
    sizes, mass = [], []
    for inside in look_inside_many(model, source, limit=limit):
        height, width = inside.input_size
        scale = (height * width / (inside.image_size[0] * inside.image_size[1])) ** 0.5
        for found in inside.detections(threshold):
            left, top, right, bottom = found.box
            sizes.append(max((right - left) * (bottom - top), 0.0) ** 0.5 * scale)
            mass.append(inside.level_attention(found.query))
    if not sizes:
        raise ValueError(f"no detection with a score of {threshold} or more in these images; try a lower threshold")
    all_sizes, all_mass = torch.tensor(sizes, dtype=torch.float32, device="cpu"), torch.stack(mass)
    shares = torch.linspace(0, 1, min(groups, len(sizes)) + 1, dtype=torch.float32, device="cpu")
    edges = torch.quantile(all_sizes, shares)
    group = torch.bucketize(all_sizes, edges[1:-1], right=True)
    grouped = torch.stack([all_mass[group == index].mean((0, 1)) for index in range(len(edges) - 1) if (group == index).any()])
    edges = torch.cat((edges[:1], edges[1:][torch.bincount(group, minlength=len(edges) - 1) > 0]))
    return LevelAttentionView(_draw(all_mass, edges, grouped, len(sizes)), all_sizes, all_mass, edges, grouped)


def _draw(mass: Tensor, edges: Tensor, grouped: Tensor, count: int):
    """Stacked bars over groups of size, and the same per layer."""
    figure = new_figure(10.5, 4.2, f"Attention per level against object size ({count} detections)")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    names = [f"{low:.0f}–{high:.0f}" for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
    _stack(left, names, grouped)
    left.set(xlabel="object size (√area) in pixels of the network's input", ylabel="share of the cross-attention")
    per_layer = mass.mean(0)  # [N, L]
    _stack(right, [str(layer + 1) for layer in range(len(per_layer))], per_layer)
    right.set(xlabel="decoder layer")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    return figure


def _stack(axes, names: list[str], shares: Tensor) -> None:
    """One bar per row of `[G, L]`, the finest level at the bottom; shares of a tenth or more are written into it."""
    base = np.zeros(len(names))
    for level, values in enumerate(shares.T.numpy()):
        style: dict[str, Any] = {"color": level_color(level), "width": 0.86, "edgecolor": "white", "linewidth": 0.8}
        bars = axes.bar(range(len(names)), values, bottom=base, label=f"level {level}", **style)
        shown = [f"{value:.0%}" if value >= 0.1 else "" for value in values]
        axes.bar_label(bars, shown, label_type="center", fontsize=8, color="#14181f")
        base = base + values
    axes.set(ylim=(0, 1), xticks=range(len(names)), xticklabels=names)
    axes.tick_params(labelsize=8.5)
    open_frame(axes)
