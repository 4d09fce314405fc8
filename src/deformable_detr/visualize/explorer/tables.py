"""The numbers beside the image, as plain text: an explanation, weights, boxes per layer, queries, shapes, costs."""

from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torchvision.ops import box_iou

from deformable_detr.visualize.explorer.choices import Choices, cell_of, look_of
from deformable_detr.visualize.inside.description import Description
from deformable_detr.visualize.inside.inside import Inside


class Table(NamedTuple):
    """Headings, and rows of as many cells."""

    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]


class LevelShare(NamedTuple):
    """The attention weight of one level."""

    level: int
    shape: tuple[int, int]
    """(h, w)"""
    weight: float
    """In [0, 1], the mean over the chosen heads; sums to 1 over the levels."""


def title(inside: Inside, choices: Choices) -> str:
    """Name what is chosen."""
    if choices.stage == "encoder":
        level, row, column = inside.level_and_cell(choices.position)
        return f"Position in row {row}, column {column} of level {level}"
    found = inside.detection_of(choices.query)
    return f"Query {choices.query}: {found.name} {found.score:.2f}"


def explanation(inside: Inside, choices: Choices) -> str:
    """Explain the drawing in one or two sentences."""
    look = look_of(inside, choices)
    if look is None:
        if inside.query_source == "learned":
            return (
                "Before the first layer: the learned reference point of this query, the same in every image. There is no box yet."
            )
        place = inside.level_and_cell(int(inside.proposals.taken[choices.query]))[0] if inside.proposals else 0
        return f"Before the first layer: the encoder's proposal, from a position of level {place}. Nothing is sampled yet."
    heads, levels, points = look.weights.shape
    count = f"{heads * levels * points} points ({heads} heads × {levels} levels × {points} points)"
    outside = _num_outside(inside, look.points)
    lie = "lies" if outside == 1 else "lie"
    beyond = f"; {outside} of them {lie} outside the image, where features are zero" if outside else ""
    if choices.stage == "encoder":
        return f"In encoder layer {choices.encoder_layer} this position (framed) samples {count}{beyond}."
    box = "its box of the previous layer" if choices.decoder_layer > 1 else "the proposed box"
    around = "the cross" if len(look.reference) == 2 else box
    return (
        f"In decoder layer {choices.decoder_layer} this query samples {count} around {around}{beyond}. "
        "Its box is corrected by what they show."
    )


def level_shares(inside: Inside, choices: Choices) -> list[LevelShare]:
    """The attention weight of each level; empty before the first decoder layer or without heads."""
    look = look_of(inside, choices)
    if look is None or not choices.heads:
        return []
    shares = look.weights[list(choices.heads)].sum(-1).mean(0).tolist()  # [M, L, P] -> [L]
    return [LevelShare(level, shape, share) for level, (shape, share) in enumerate(zip(inside.spatial_shapes, shares, strict=True))]


def strongest_points(inside: Inside, choices: Choices, count: int = 8) -> Table:
    """The sampling points with the largest weights among those that are shown."""
    look = look_of(inside, choices)
    rows = [
        (str(item.level), str(item.head), str(item.point), f"{item.weight:.3f}", f"{item.x:.1f}, {item.y:.1f}")
        for item in (look.strongest(choices.heads, choices.levels)[:count] if look else [])
    ]
    return Table(("level", "head", "point", "weight", "x, y in pixels"), rows)


def refinement(inside: Inside, query: int) -> Table:
    """The box of a query from its reference to the last layer, its class, and the IoU with the last box."""
    boxes, scores = inside.boxes_per_layer(query), inside.scores_per_layer(query)
    overlaps = box_iou(boxes, boxes[-1:])[:, 0].nan_to_num().tolist()
    rows = []
    for layer, (box, overlap) in enumerate(zip(boxes.tolist(), overlaps, strict=True)):
        start = "proposal" if inside.query_source == "proposals" else "reference"
        name, score = "", ""
        if layer:
            best, label = scores[layer - 1].max(-1)
            name, score = inside.categories.names[int(label)], f"{best:.2f}"
        shown = ", ".join(f"{value:.0f}" for value in (box if layer or start == "proposal" else box[:2]))
        rows.append((f"layer {layer}" if layer else start, name, score, shown, f"{overlap:.2f}"))
    return Table(("after", "class", "score", "box in pixels", "IoU with last"), rows)


def queries(inside: Inside, count: int = 100) -> list[tuple[int, int, str, float]]:
    """(query, label, class, score) by the strongest class of each query, best first; at most `count`."""
    order = inside.scores.argsort(descending=True, stable=True)[:count].tolist()
    found = [inside.detection_of(query) for query in order]
    return [(item.query, item.label, item.name, item.score) for item in found]


def journey(description: Description) -> Table:
    """The tensors on the way, as `deformable-detr describe` lists them."""
    rows = []
    previous = ""
    for row in description.rows:
        rows.append(("" if row.part == previous else row.part, row.name, " × ".join(map(str, row.shape)), row.note))
        previous = row.part
    return Table(("part", "what", "shape", "note"), rows)


def costs(description: Description) -> Table:
    """Parameters and multiply-adds of the parts."""
    total = sum(cost.gmacs for cost in description.costs) or 1.0
    rows = [
        (cost.part, f"{cost.trainable_parameters + cost.frozen_parameters:,}", f"{cost.gmacs:.3f}", f"{cost.gmacs / total:.0%}")
        for cost in description.costs
    ]
    return Table(("part", "parameters", "GMACs", "share"), rows)


def record(inside: Inside, choices: Choices, name: str) -> dict[str, Any]:
    """What is shown of the image of this name, as plain values for JSON; coordinates in pixels of the image."""
    height, width = inside.image_size
    look = look_of(inside, choices)
    shown = {
        "image": name,
        "width": width,
        "height": height,
        "choices": asdict(choices),
        "title": title(inside, choices),
        "detections": [asdict(item) for item in inside.detections(choices.threshold)],
        "reference": None if look is None else look.reference.tolist(),
        "points": [item._asdict() for item in look.strongest(choices.heads, choices.levels)] if look else [],
    }
    if choices.stage == "encoder":
        level, row, column = inside.level_and_cell(choices.position)
        return shown | {"position": {"level": level, "row": row, "column": column, "cell": cell_of(inside, choices.position)}}
    chosen = inside.detection_of(choices.query)
    return shown | {
        "query": asdict(chosen),
        "boxes_per_layer": inside.boxes_per_layer(choices.query).tolist(),
        "scores_per_layer": inside.scores_per_layer(choices.query)[:, chosen.label].tolist(),
    }


def _num_outside(inside: Inside, points: torch.Tensor) -> int:
    height, width = inside.image_size
    limits = points.new_tensor([width, height])
    return int(((points < 0) | (points > limits)).any(-1).sum())
