"""Why a detection was made: everything about it, as data, as one figure or as a page."""

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from deformable_detr.visualize.figures import new_figure, save_figure
from deformable_detr.visualize.inside.canvas import draw_box, level_legend, show_image
from deformable_detr.visualize.inside.inside import Detection, Inside, SamplingPoint
from deformable_detr.visualize.inside.refinement import draw_refinement, draw_scores, view_refinement
from deformable_detr.visualize.inside.sampling import draw_layer, view_sampling
from deformable_detr.visualize.pages.page import embed_figure, write_page

PAGE_SUFFIXES = (".html", ".htm")
MOST_LAYERS = 6


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
    """The sampling points with the largest weights in the last layer, largest first."""

    @property
    def title(self) -> str:
        """Class, score and query of the detection."""
        return f"{self.detection.name} {self.detection.score:.2f}, detected by query {self.detection.query}"

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
        """Write a page (`.html`: one file, figures inside it, no network needed) or a figure (`.png`, `.svg`, `.pdf`).

        Raises:
            ValueError: another suffix.
        """
        path = Path(path)
        if path.suffix.lower() in PAGE_SUFFIXES:
            return write_page(path, "explanation.html", title=self.title, lead=self.origin, sections=self._sections())
        return save_figure(_summary(self), path)

    def _sections(self) -> list[dict[str, Any]]:
        """What `explanation.html` shows: each section has a figure with a text, or a table."""
        inside, query = self.inside, self.detection.query

        def shown(heading: str, text: str, figure: Figure) -> dict[str, Any]:
            alt = f"{heading}: query {query}, {self.detection.name}. {text}"
            return {"heading": heading, "text": text, "figure": embed_figure(figure, alt, photos=True), "table": None}

        tables = [{"heading": name, "text": "", "figure": None, "table": table} for name, table in self.tables().items()]
        height, width = (value * 5.0 / max(inside.image_size) for value in inside.image_size)
        found = new_figure(width + 0.1, height + 0.1)
        _draw_found(found.subplots(), inside, self.detection)
        return [
            shown("Detection", "All detections with a score of 0.3 or more are drawn thin, the explained one thick.", found),
            shown("Refinement layer by layer", REFINEMENT, view_refinement(inside, query).figure),
            *tables[:2],
            shown("Sampling points of each layer", SAMPLING, view_sampling(inside, query).figure),
            shown("The last layer, head by head", HEADS, view_sampling(inside, query, split="head").figure),
            shown("The last layer, level by level", LEVELS, view_sampling(inside, query, split="level").figure),
            *tables[2:],
        ]


REFINEMENT = (
    "Left: the reference that the query starts from, green and dashed, then the box after each decoder layer, violet to yellow. "
    "Right: class scores, and the IoU of each box with the last one."
)
SAMPLING = (
    "Cross-attention of every decoder layer. The area of a circle is its attention weight, the colour its feature level; the green "
    "cross is the reference that the layer samples around, the white box its result."
)
HEADS = "Each head has its own sampling points; the weights of a head sum to 1 over all levels and points."
LEVELS = "Fine levels carry detail, coarse ones the whole object and its surroundings."


def explain(inside: Inside, query: int, *, num_points: int = 12) -> Explanation:
    """Gather everything about the detection of one query.

    Args:
        inside: from :func:`look_inside`.
        query: in [0, Q); `inside.query_at(x, y)` and `inside.query_of_box(box)` find one.
        num_points: number of the sampling points with the largest weights that are listed.

    Raises:
        ValueError: there is no such query.
    """
    detection = inside.detection_of(query)
    return Explanation(
        inside=inside,
        detection=detection,
        origin=origin_of(inside, query),
        boxes=inside.boxes_per_layer(query),
        scores=inside.scores_per_layer(query),
        level_mass=inside.level_attention(query),
        points=tuple(inside.look(inside.decoder[-1], query).strongest()[:num_points]),
    )


def origin_of(inside: Inside, query: int) -> str:
    """Describe the reference of a query: the encoder's proposal or the learned point that it starts from."""
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


def _draw_found(axes: Axes, inside: Inside, detection: Detection) -> None:
    """The image with all detections, the explained one emphasised."""
    show_image(axes, inside.image)
    for other in inside.detections(0.3):
        if other.query != detection.query:
            draw_box(axes, other.box, "#d0d7de", width=1.1)
    draw_box(axes, detection.box, "#ffd400", label=f"{detection.name} {detection.score:.2f}", width=2.6)


def _summary(explanation: Explanation) -> Figure:
    """Image, refinement and scores; below, the sampling points of each layer; at the bottom the strongest points."""
    inside, detection = explanation.inside, explanation.detection
    columns, rows = explanation.tables()["Strongest points of the last layer"]
    rows = rows[:8]
    layers = list(range(len(inside.decoder)))[-MOST_LAYERS:]
    share = min(max(inside.image_size[0] / inside.image_size[1], 0.6), 1.0)
    figure = new_figure(12.6, 4.0 * share + 12.6 / max(len(layers), 3) + 0.21 * len(rows) + 2.3)
    figure.suptitle(f"{explanation.title}\n", fontsize=14, fontweight="bold")
    heights = (4.0 * share, min(12.6 / max(len(layers), 3), 3.9), 0.21 * len(rows) + 0.4)
    top, middle, bottom = figure.add_gridspec(3, 1, height_ratios=heights)
    first, second, third = (figure.add_subplot(cell) for cell in top.subgridspec(1, 3))
    _draw_found(first, inside, detection)
    draw_refinement(second, inside, detection.query)
    draw_scores(third, inside, detection.query)
    first.set_title("\n".join(textwrap.wrap(explanation.origin, 62)), fontsize=8, loc="left")
    second.set_title("refinement of the box", fontsize=9.5)
    third.set_title("class scores, and IoU with the last box", fontsize=9.5)
    cells = middle.subgridspec(1, max(len(layers), 3))
    for column, layer in enumerate(layers):
        axes = figure.add_subplot(cells[column])
        largest = draw_layer(axes, inside, layer, detection.query)
        axes.set_title(f"layer {layer + 1}: largest weight {largest:.2f}", fontsize=9)
    last = figure.add_subplot(bottom)
    last.set_axis_off()
    last.set_title("strongest points of the last layer", fontsize=9.5)
    table = last.table(rows, colLabels=columns, loc="upper center", edges="horizontal", cellLoc="center")
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    level_legend(figure, inside.spatial_shapes, box="box after the layer")
    return figure
