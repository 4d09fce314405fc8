"""The way of one image through the model as one figure, stage by stage.

The three principal components of a map's channels become red, green and blue: similar colours mean similar features, the colours
themselves have no meaning.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from deformable_detr.visualize.colors import class_color, level_color
from deformable_detr.visualize.figures import View, new_figure
from deformable_detr.visualize.inside.canvas import draw_box, show_image
from deformable_detr.visualize.inside.inside import Inside
from deformable_detr.visualize.inside.sampling import draw_layer

Canvas = Figure | SubFigure
WIDTH = 12.0
MOST_DRAWN = 6


def view_journey(inside: Inside, stages: Sequence[str] | None = None) -> View:
    """Draw the stages of an image: backbone, neck, padding, positions, sequence, memory, references, sampling, boxes.

    Args:
        inside: from :func:`look_inside`.
        stages: some keys of `STAGES`, to draw these only. None: all.

    Raises:
        ValueError: an unknown stage.
    """
    chosen = list(STAGES if stages is None else stages)
    unknown = [name for name in chosen if name not in STAGES]
    if unknown or not chosen:
        raise ValueError(f"unknown stage {unknown}; known are {', '.join(STAGES)}")
    heights = [_height(inside, name) for name in chosen]
    figure = new_figure(WIDTH, sum(heights))
    rows = figure.subfigures(len(chosen), 1, squeeze=False, height_ratios=heights)[:, 0]
    for number, (row, name) in enumerate(zip(rows, chosen, strict=True), 1):
        heading, draw = STAGES[name]
        prefix = f"{number}  " if len(chosen) > 1 else ""
        row.suptitle(f"{prefix}{heading}", fontsize=12, fontweight="bold", x=0.01, ha="left")
        draw(row, inside)
    return View(figure)


def _height(inside: Inside, name: str) -> float:
    """Inches of one stage: its panels side by side over the whole width."""
    if name == "sequence":
        return 2.5
    counts = {
        "backbone": 1 + len(inside.backbone_levels),
        "references": 3,
        "sampling": len(_shown_layers(inside)),
        "boxes": len(_shown_layers(inside)),
    }
    share = inside.image_size[0] / inside.image_size[1]
    return min(WIDTH / max(counts.get(name, len(inside.spatial_shapes)), 3) * share, 4.4) + 0.75


def _shown_layers(inside: Inside) -> list[int]:
    """All decoder layers, or some of them evenly spread with the first and the last."""
    count = len(inside.decoder)
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, MOST_DRAWN))})


def _row(figure: Canvas, count: int) -> list[Axes]:
    """`count` axes in a row of at least three columns, from the left."""
    axes = list(figure.subplots(1, max(count, 3), squeeze=False)[0])
    for spare in axes[count:]:
        spare.set_axis_off()
    return axes[:count]


def _draw_backbone(figure: Canvas, inside: Inside) -> None:
    first, *others = _row(figure, 1 + len(inside.backbone_levels))
    show_image(first, inside.image)
    height, width = inside.image_size
    first.set_title(f"the image, {height} × {width}", fontsize=9.5)
    number = 6 - len(others)
    for index, (axes, level) in enumerate(zip(others, inside.backbone_levels, strict=True)):
        _show_map(axes, inside, _level_images([level])[0])
        channels, rows, columns = level.shape[1:]
        axes.set_title(f"C{number + index}: {channels} × {rows} × {columns}", fontsize=9.5)


def _draw_levels(figure: Canvas, inside: Inside, maps: Sequence[Tensor]) -> None:
    """A map `[1, C, h, w]` of each level."""
    for level, (axes, image) in enumerate(zip(_row(figure, len(maps)), _level_images(maps), strict=True)):
        _show_map(axes, inside, image)
        _level_frame(axes, level)
        channels, rows, columns = maps[level].shape[1:]
        axes.set_title(f"level {level}: {channels} × {rows} × {columns}", fontsize=9.5)


def _draw_padding(figure: Canvas, inside: Inside) -> None:
    padding = inside.flat.padding_mask
    if padding is None:  # an image alone
        padding = torch.zeros_like(inside.flat.positions[..., 0], dtype=torch.bool)
    masks = _split_levels(inside, padding[..., None])
    for level, (axes, mask) in enumerate(zip(_row(figure, len(masks)), masks, strict=True)):
        rows, columns = inside.spatial_shapes[level]
        shown = mask[0, 0].numpy()
        _show_map(axes, inside, np.where(shown[..., None], (0.25, 0.27, 0.3), (0.93, 0.95, 0.97)))
        axes.set_xticks(np.linspace(0, inside.input_size[1], columns + 1)[1:-1], minor=True)
        axes.set_yticks(np.linspace(0, inside.input_size[0], rows + 1)[1:-1], minor=True)
        axes.grid(which="minor", color="#c3cad3", linewidth=0.4)
        axes.tick_params(which="minor", length=0)
        _level_frame(axes, level)
        ratio = " × ".join(f"{value:.2g}" for value in inside.valid_ratios[0, level].tolist())
        axes.set_title(f"level {level}: {shown.mean():.0%} padding, valid ratio {ratio}", fontsize=9)


def _draw_sequence(figure: Canvas, inside: Inside) -> None:
    axes = figure.subplots()
    flat = inside.flat
    bands = {
        "features": principal_colors(flat.features[0].float()),
        "positions": principal_colors(flat.positions[0].float()),
        "memory": principal_colors(inside.memory[0].float()),
    }
    length = flat.features.shape[1]
    for row, colors in enumerate(bands.values()):
        axes.imshow(colors[None].numpy(), extent=(0, length, row + 0.84, row), aspect="auto", interpolation="nearest")
    for level, (start, (h, w)) in enumerate(zip(inside.level_start_index, inside.spatial_shapes, strict=True)):
        axes.axvline(start, color="black", linewidth=1.2)
        axes.plot((start, start + h * w), (3.06, 3.06), color=level_color(level), linewidth=7, solid_capstyle="butt", clip_on=False)
        if h * w > 0.1 * length:
            axes.text(start + h * w / 2, 3.2, f"level {level}: {h} · {w} = {h * w}", ha="center", va="top", fontsize=8.5)
    axes.set(xlim=(0, length), ylim=(3.5, -0.05), yticks=[0.42, 1.42, 2.42], yticklabels=list(bands), xticks=[])
    starts = ", ".join(map(str, inside.level_start_index))
    axes.set_xlabel(f"S = {length} positions, each of {flat.features.shape[2]} numbers; levels start at {starts}", fontsize=9.5)
    axes.spines[:].set_visible(False)


def _draw_references(figure: Canvas, inside: Inside) -> None:
    first, second, third = _row(figure, 3)
    places = inside.queries.reference_points[0].float()
    height, width = inside.image_size
    show_image(first, inside.image, fade=0.5)
    first.scatter(places[:, 0] * width, places[:, 1] * height, s=14, color="#7dff6a", edgecolors="#14181f", linewidths=0.5)
    first.set_title(f"reference points of {len(places)} queries", fontsize=9.5)
    boxes, scores = inside.boxes_in_image(inside.predictions.boxes[:, 0]), inside.scores
    if places.shape[1] == 4:
        starts = torch.stack([inside.boxes_per_layer(query)[0] for query in range(len(places))])
        _draw_all(second, inside, starts, scores, "the same as boxes: the proposals")
    else:
        _draw_all(second, inside, boxes[0], scores, "boxes after the first layer")
    _draw_all(third, inside, boxes[-1], scores, "boxes after the last layer; bright: high score")


def _draw_all(axes: Axes, inside: Inside, boxes: Tensor, scores: Tensor, title: str) -> None:
    show_image(axes, inside.image, fade=0.5)
    for query in scores.argsort().tolist()[-100:]:
        strength = math.sqrt(float(scores[query]))
        draw_box(axes, boxes[query].tolist(), "#7dff6a", width=0.6 + 1.4 * strength, alpha=0.15 + 0.85 * strength)
    axes.set_title(title, fontsize=9.5)


def _draw_sampling(figure: Canvas, inside: Inside) -> None:
    found = inside.detections(top_k=1)[0]
    layers = _shown_layers(inside)
    for axes, layer in zip(_row(figure, len(layers)), layers, strict=True):
        draw_layer(axes, inside, layer, found.query)
        axes.set_title(f"layer {layer + 1}", fontsize=9.5)
        if layer == 0:
            axes.set_xlabel(f"query {found.query}: {found.name} {found.score:.2f}", fontsize=9)


def _draw_boxes(figure: Canvas, inside: Inside) -> None:
    layers = _shown_layers(inside)
    found = inside.detections(0.3) or inside.detections(top_k=3)
    for axes, layer in zip(_row(figure, len(layers)), layers, strict=True):
        show_image(axes, inside.image)
        labelled: list[Tensor] = []
        for one in found:
            score = float(inside.scores_per_layer(one.query)[layer, one.label])
            box = inside.boxes_per_layer(one.query)[layer + 1]
            free = all((box[:2] - other[:2]).abs().max() > 0.06 * max(inside.image_size) for other in labelled)
            label = f"{one.name} {score:.2f}" if free else ""
            draw_box(axes, box.tolist(), class_color(one.label).as_hex(), label=label)
            labelled += [box] if free else []
        axes.set_title(f"layer {layer + 1}", fontsize=9.5)


def principal_colors(features: Tensor, basis_of: Tensor | None = None) -> Tensor:
    """Project features on their three principal components.

    Args:
        features: `[X, C]`, any number of positions.
        basis_of: `[Y, C]`, the positions that define the components, so that several maps share their colours. None: `features`.

    Returns:
        `[X, 3]` in [0, 1]: each component from its 2nd to its 98th percentile.
    """
    source = (features if basis_of is None else basis_of).double()
    mean = source.mean(0)
    directions = torch.linalg.svd(source - mean, full_matrices=False).Vh[:3]  # [3, C]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * largest.sign()  # the sign of a component is arbitrary: fix it
    own, projected = (source - mean) @ directions.T, (features.double() - mean) @ directions.T
    low, high = own.quantile(0.02, 0), own.quantile(0.98, 0)
    colors = ((projected - low) / (high - low).clamp(min=1e-9)).clamp(0, 1).float()
    return torch.nn.functional.pad(colors, (0, 3 - colors.shape[1]), value=0.5)


def _level_images(levels: Sequence[Tensor]) -> list[np.ndarray]:
    """Convert maps `[1, C, h, w]` of one width to images `[h, w, 3]` in [0, 1] with common colours."""
    sequences = [level[0].flatten(1).T.float() for level in levels]
    together = torch.cat(sequences)
    return [
        principal_colors(sequence, together).view(*level.shape[2:], 3).numpy()
        for sequence, level in zip(sequences, levels, strict=True)
    ]


def _split_levels(inside: Inside, sequence: Tensor) -> list[Tensor]:
    """Split a sequence `[1, S, C]` into a map `[1, C, h, w]` for each level."""
    parts = sequence.split([h * w for h, w in inside.spatial_shapes], dim=1)
    return [part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, inside.spatial_shapes, strict=True)]


def _show_map(axes: Axes, inside: Inside, image: np.ndarray) -> None:
    """Draw a map `[h, w]` or `[h, w, 3]` at the size of the image, without interpolation."""
    height, width = inside.input_size
    axes.imshow(image, extent=(0, width, height, 0), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color="#8b949e", linewidth=0.6)


def _level_frame(axes: Axes, level: int) -> None:
    for spine in axes.spines.values():
        spine.set(color=level_color(level), linewidth=2.2)


STAGES: dict[str, tuple[str, Callable[[Canvas, Inside], None]]] = {
    "backbone": ("The image, and the levels of the backbone", _draw_backbone),
    "neck": ("The neck: levels of one width", lambda figure, inside: _draw_levels(figure, inside, inside.neck_levels)),
    "padding": ("Padding masks: which part of each level is image", _draw_padding),
    "positions": (
        "Positions: sine encoding of the coordinates, plus the embedding of the level",
        lambda figure, inside: _draw_levels(figure, inside, _split_levels(inside, inside.flat.positions)),
    ),
    "sequence": ("All levels as one sequence", _draw_sequence),
    "memory": (
        "The memory: the output of the encoder",
        lambda figure, inside: _draw_levels(figure, inside, _split_levels(inside, inside.memory)),
    ),
    "references": ("References of the queries, and their boxes", _draw_references),
    "sampling": ("Sampling points of the highest-scored query", _draw_sampling),
    "boxes": ("The boxes after each decoder layer", _draw_boxes),
}
"""Heading and drawing of each stage, in the order in which data flow."""
