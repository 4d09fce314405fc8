"""Draw on an image in a figure: boxes, reference points, sampling points, their legend."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, withStroke
from torch import Tensor

from deformable_detr.visualize.colors import level_color

DARK = "#14181f"
LARGEST_AREA = 190.0
"""Area of the marker of the largest weight, in square points."""

FADED_BRIGHTNESS = 75.0
"""Mean (of 255) to which a bright image is darkened behind sampling points."""


def show_image(axes: Axes, image: Tensor, *, fade: float = 0.0) -> None:
    """Draw the image, one unit of the axes per pixel, with its corner at (0, 0).

    Args:
        axes: of one panel.
        image: `[3, H, W]` uint8 RGB.
        fade: from 0 (the image as it is) to 1 (less colour, darker), so that what is drawn on it is easier to see.
    """
    height, width = image.shape[1:]
    pixels = image.permute(1, 2, 0).numpy().astype(np.float32)
    if fade:
        pixels += (pixels.mean(axis=-1, keepdims=True) - pixels) * 0.6 * fade
        pixels *= 1 - fade * (1 - min(1.0, FADED_BRIGHTNESS / max(float(pixels.mean()), 1.0)))
    pixels = pixels.round().astype(np.uint8)
    axes.imshow(pixels, extent=(0, width, height, 0), interpolation="bicubic" if max(height, width) < 400 else "antialiased")
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_box(
    axes: Axes, box: Sequence[float], color: str, *, label: str = "", width: float = 1.8, style: str = "-", alpha: float = 1.0
) -> None:
    """Draw a rectangle xyxy with a dark halo, and a label above it."""
    left, top, right, bottom = (float(value) for value in box)
    outline = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=width, linestyle=style)
    outline.set_path_effects([withStroke(linewidth=width + 1.6, foreground=DARK, alpha=0.55 * alpha), Normal()])
    outline.set_alpha(alpha)
    axes.add_patch(outline)
    if label:
        (first, last), (lowest, highest) = axes.get_xlim(), axes.get_ylim()
        at_top, at_right = top < highest + 0.05 * (lowest - highest), left > first + 0.78 * (last - first)
        axes.annotate(
            label,
            (min(right, last) if at_right else max(left, first), max(top, highest)),
            (-3 if at_right else 3, -4 if at_top else 3),
            textcoords="offset points",
            ha="right" if at_right else "left",
            va="top" if at_top else "bottom",
            fontsize=8.5,
            color="white",
            path_effects=[withStroke(linewidth=2.4, foreground=DARK)],
        )


def draw_reference(axes: Axes, reference: Tensor) -> None:
    """Draw a reference point as a cross, with its box if it has one: `[2]` or `[4]` (cx, cy, w, h) in pixels."""
    x, y = reference[:2].tolist()
    axes.plot(x, y, marker="+", markersize=15, markeredgewidth=4.4, color=DARK, linestyle="none", zorder=5)
    axes.plot(x, y, marker="+", markersize=14, markeredgewidth=2.2, color="#7dff6a", linestyle="none", zorder=6)
    if len(reference) == 4:
        w, h = reference[2:].tolist()
        draw_box(axes, (x - w / 2, y - h / 2, x + w / 2, y + h / 2), "#7dff6a", width=1.1, style=(0, (4, 3)))  # type: ignore[arg-type]


def draw_points(
    axes: Axes,
    points: Tensor,
    weights: Tensor,
    *,
    shown: Tensor | None = None,
    largest: float | None = None,
    area: float = LARGEST_AREA,
) -> None:
    """Draw sampling points as circles: the area is the weight, the colour the level.

    Args:
        axes: of one panel, in pixels of the image.
        points: `[M, L, P, 2]` (x, y) in pixels.
        weights: `[M, L, P]`.
        shown: `[M, L]` bool, which heads and levels. None: all.
        largest: the weight of the largest circle. None: that of these points.
        area: of that circle, in square points.
    """
    scale = area / max(largest if largest is not None else float(weights.max()), 1e-12)
    for level in range(points.shape[1]):
        heads = slice(None) if shown is None else shown[:, level]
        places, strengths = points[heads, level].reshape(-1, 2), weights[heads, level].reshape(-1)
        if len(places) == 0:
            continue
        order = strengths.argsort(descending=True)  # weak ones on top of strong ones
        axes.scatter(
            places[order, 0].numpy(),
            places[order, 1].numpy(),
            s=(strengths[order] * scale).clamp(min=9).numpy(),
            color=level_color(level),
            edgecolors=DARK,
            linewidths=(strengths[order] * scale / 40).clamp(0.3, 0.8).tolist(),
            alpha=0.9,
            zorder=4,
            gid=f"level-{level}",
        )


def widen(axes: Axes, points: Tensor, *, most: float = 0.2) -> None:
    """Extend the axes beyond the image, by at most the share `most` of its size, to show points outside."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    places = points.reshape(-1, 2)
    corner, size = places.new_tensor([left, top]), places.new_tensor([right - left, bottom - top])
    seen = places[((places >= corner - most * size) & (places <= corner + (1 + most) * size)).all(-1)]
    if len(seen):
        pad = 0.03 * float(size.max())
        (low_x, low_y), (high_x, high_y) = (seen.amin(0) - pad).tolist(), (seen.amax(0) + pad).tolist()
        axes.set(xlim=(min(left, low_x), max(right, high_x)), ylim=(max(bottom, high_y), min(top, low_y)))


def count_outside(axes: Axes, points: Tensor) -> int:
    """Count the points beyond the axes."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    places = points.reshape(-1, 2)
    return int(((places < places.new_tensor([left, top])) | (places > places.new_tensor([right, bottom]))).any(-1).sum())


def focus(axes: Axes, corners: Tensor, *, least: float) -> None:
    """Limit the axes to a square around points `[X, 2]` (x, y) in pixels, with sides of at least `least` pixels."""
    low, high = corners.amin(0), corners.amax(0)
    x, y = ((low + high) / 2).tolist()
    reach = max(float((high - low).max()) * 0.6, least / 2)
    axes.set(xlim=(x - reach, x + reach), ylim=(y + reach, y - reach))


def level_legend(
    figure: Figure | SubFigure, spatial_shapes: Sequence[tuple[int, int]], *, largest: float | None = None, box: str = ""
) -> None:
    """Add a legend of colours, sizes and the cross below the figure.

    Args:
        figure: to which the legend is added.
        spatial_shapes: (h, w) of each level.
        largest: the weight of the largest circle, where points are drawn.
        box: meaning of the solid box.
    """
    handles = [_handle("o", level_color(level), 8, f"level {level} ({h} × {w})") for level, (h, w) in enumerate(spatial_shapes)]
    if largest is not None:
        sizes = [(largest, f"weight {largest:.2g}"), (largest / 10, f"{largest / 10:.1g}")]
        handles += [_handle("o", "#b8bec8", math.sqrt(LARGEST_AREA * weight / largest), text) for weight, text in sizes]
        handles.append(_handle("+", "#46c832", 10, "reference"))
    if box:
        handles.append(
            Line2D([], [], color="#ffffff", linewidth=1.8, label=box, path_effects=[withStroke(linewidth=3.6, foreground=DARK)])
        )
    columns = 4 if figure.bbox.width / figure.figure.dpi < 8.5 else len(handles)  # type: ignore[union-attr]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8.5, frameon=False, handletextpad=0.4)


def _handle(marker: str, color: str, size: float, label: str) -> Line2D:
    edge = {"markeredgecolor": DARK, "markeredgewidth": 0.7} if marker == "o" else {"markeredgewidth": 2.2}
    return Line2D([], [], linestyle="none", marker=marker, color=color, markersize=size, label=label, **edge)  # type: ignore[arg-type]
