"""Why a box came out: everything about one detection of one image, as data, as one figure or as a page."""

from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from deformable_detr.visualize.figures import save_figure
from deformable_detr.visualize.inside.inside import Detection, Inside
from deformable_detr.visualize.inside.refinement import view_refinement
from deformable_detr.visualize.inside.sampling import view_sampling
from deformable_detr.visualize.pages.explanation_figure import found_figure, summary_figure
from deformable_detr.visualize.pages.page import Section, write_page

PAGE_SUFFIXES = (".html", ".htm")


@dataclass(frozen=True)
class SamplingPoint:
    """One place that a decoder layer looked at."""

    layer: int
    """From 0."""
    head: int
    level: int
    point: int
    x: float
    """Pixels of the image."""
    y: float
    weight: float
    """Of all points of its head in this layer, which sum to 1."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """What :func:`explain` gives."""

    inside: Inside
    detection: Detection
    origin: str
    """Where the query came from, in words."""
    boxes: Tensor
    """`[N + 1, 4]` xyxy in pixels: the reference, then the box after each layer."""
    scores: Tensor
    """`[N, K]` in [0, 1] after each layer."""
    level_mass: Tensor
    """`[N, L]`: the share of each layer's cross-attention on each level, the mean over the heads."""
    points: tuple[SamplingPoint, ...]
    """The places with the largest weights in the last layer, largest first."""

    @property
    def title(self) -> str:
        """What was found, how sure, and by which query."""
        return f"{self.detection.name} {self.detection.score:.2f}, found by query {self.detection.query}"

    def figures(self) -> dict[str, Figure]:
        """The figures of the page by their headings."""
        inside, query = self.inside, self.detection.query
        return {
            "What was found": found_figure(inside, self.detection),
            "From layer to layer": view_refinement(inside, query).figure,
            "Where each layer looked": view_sampling(inside, query).figure,
            "The last layer, head by head": view_sampling(inside, query, split="head").figure,
            "The last layer, level by level": view_sampling(inside, query, split="level").figure,
        }

    def tables(self) -> dict[str, tuple[list[str], list[list[str]]]]:
        """The tables of the page: for each heading the column names and the rows."""
        names = self.inside.categories.names
        best = self.scores[-1].topk(min(6, self.scores.shape[1])).indices.tolist()
        layers = range(len(self.scores))
        scores = [[str(layer + 1), *(f"{float(self.scores[layer, label]):.3f}" for label in best)] for layer in layers]
        mass = [[str(layer + 1), *(f"{value:.1%}" for value in self.level_mass[layer].tolist())] for layer in layers]
        boxes = [
            ["reference" if row == 0 else str(row), *(f"{value:.1f}" for value in box)]
            for row, box in enumerate(self.boxes.tolist())
        ]
        strongest = [
            [str(number), str(p.head), str(p.level), str(p.point), f"{p.x:.1f}", f"{p.y:.1f}", f"{p.weight:.3f}"]
            for number, p in enumerate(self.points, 1)
        ]
        levels = [f"level {level} ({h}\u00a0×\u00a0{w})" for level, (h, w) in enumerate(self.inside.spatial_shapes)]
        return {
            "Class scores after each layer": (["layer", *(names[label] for label in best)], scores),
            "Boxes (pixels)": (["layer", "left", "top", "right", "bottom"], boxes),
            "Cross-attention per level": (["layer", *levels], mass),
            "Strongest points of the last layer": (["", "head", "level", "point", "x", "y", "weight"], strongest),
        }

    def save(self, path: str | Path) -> Path:
        """Write a page (`.html`: one file, images inside it, no network needed) or an image (`.png`, `.svg`, `.pdf`).

        Raises:
            ValueError: another suffix.
        """
        path = Path(path)
        if path.suffix.lower() in PAGE_SUFFIXES:
            return write_page(path, self.title, self.origin, self._sections())
        columns, rows = self.tables()["Strongest points of the last layer"]
        return save_figure(summary_figure(self.inside, self.detection, self.title, self.origin, columns, rows[:8]), path)

    def _sections(self) -> list[Section]:
        figures, tables = self.figures(), self.tables()
        return [
            Section("What was found", WHAT, figures["What was found"]),
            Section("From layer to layer", REFINED, figures["From layer to layer"]),
            *(Section(name, "", table=tables[name], half=True) for name in ("Class scores after each layer", "Boxes (pixels)")),
            Section("Where each layer looked", LOOKED, figures["Where each layer looked"]),
            Section("The last layer, head by head", HEADS, figures["The last layer, head by head"]),
            Section("The last layer, level by level", LEVELS, figures["The last layer, level by level"]),
            *(
                Section(name, "", table=tables[name], half=True)
                for name in ("Cross-attention per level", "Strongest points of the last layer")
            ),
        ]


WHAT = "All detections with a score of 0.3 or more are drawn thin, the explained one thick."
REFINED = "Green and dashed: the reference that the query started from. Then the box after each decoder layer, violet to yellow."
LOOKED = (
    "Cross-attention of every decoder layer. The area of a circle is its attention weight, the colour the feature level; "
    "the green cross is the reference that the layer sampled around, the white box the one that it gave."
)
HEADS = "Each head looks at its own places; the weights of a head sum to 1 over all levels and points."
LEVELS = "Fine levels see details, coarse ones the whole and what is around it."


def explain(inside: Inside, query: int, *, num_points: int = 12) -> Explanation:
    """Gather everything about one query's detection.

    Args:
        inside: from :func:`look_inside`.
        query: in [0, Q); `inside.query_at(x, y)` and `inside.query_of_box(box)` find one.
        num_points: how many of the strongest sampling points are listed.

    Raises:
        ValueError: there is no such query.
    """
    detection = inside.detection_of(query)
    mass = torch.stack([layer.attention_weights[0, query].float().sum(-1).mean(0) for layer in inside.decoder])
    return Explanation(
        inside=inside,
        detection=detection,
        origin=origin_of(inside, query),
        boxes=inside.boxes_per_layer(query),
        scores=inside.scores_per_layer(query),
        level_mass=mass,
        points=_strongest(inside, query, num_points),
    )


def origin_of(inside: Inside, query: int) -> str:
    """Where a query came from: which proposal of the encoder, or which learned point."""
    reference = inside.boxes_per_layer(query)[0]
    if inside.proposals is None:
        point = f"({reference[0]:.0f}, {reference[1]:.0f})"
        return f"Query {query} of {inside.num_queries} was learned; in every image it starts at the same point, here {point}."
    position = int(inside.proposals.taken[query])
    level, row, column = inside.level_and_cell(position)
    left, top, right, bottom = reference.tolist()
    return (
        f"The query is the encoder's proposal number {query + 1} of {inside.num_queries} by objectness "
        f"({float(inside.proposals.objectness[position]):.2f}): position {position} of the sequence, which is level {level}, "
        f"row {row}, column {column}. It proposed the box ({left:.0f}, {top:.0f}, {right:.0f}, {bottom:.0f})."
    )


def _strongest(inside: Inside, query: int, count: int) -> tuple[SamplingPoint, ...]:
    last = inside.decoder[-1]
    weights, places = last.attention_weights[0, query].float(), inside.points_in_image(last, query)
    _, num_levels, num_points = weights.shape
    best = weights.flatten().topk(min(count, weights.numel()))
    points = []
    for weight, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        head, rest = divmod(index, num_levels * num_points)
        level, point = divmod(rest, num_points)
        x, y = places[head, level, point].tolist()
        points.append(SamplingPoint(last.layer, head, level, point, x, y, weight))
    return tuple(points)
