"""`deformable-detr describe`: the way of one image through the network, as tables."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deformable_detr.cli.command import Command
from deformable_detr.cli.screen import Finish

if TYPE_CHECKING:
    from rich.table import Table

    from deformable_detr.visualize.inside.description import Description

EXAMPLES = """\
  deformable-detr describe street.jpg --weights runs/first
  deformable-detr describe street.jpg --preset r50-two-stage        the shapes of a variant, with random weights
  deformable-detr describe street.jpg --weights runs/first --json journey.json
  deformable-detr describe street.jpg --weights runs/first --figure journey.png     all stages as images
"""


@dataclass(frozen=True, kw_only=True)
class DescribeOptions:
    """Show the way of one image through the network, stage by stage, with the real shapes: backbone levels, neck, padding
    mask, positions, the flattened sequence, sampling offsets, attention weights and places, memory, queries, the boxes of
    every decoder layer; and what each part costs in parameters and multiply-adds.

    Legend of the shapes: B batch, S positions of all levels, C width, M heads, L levels, P points, Q queries, N layers, K classes.
    """

    image: str
    """The image."""

    weights: str | None = None
    """A run folder or a weights file. Without it: a model of --preset with random weights."""

    preset: str | None = None
    """Named variant, where no weights are given. Default: r50."""

    device: str = "auto"
    """`auto` takes a GPU where there is one; else `cpu`, `cuda` or `mps`."""

    top_k: int = 5
    """How many of the strongest detections are followed from layer to layer."""

    json: str | None = None
    """Write everything to this JSON file, too."""

    figure: str | None = None
    """Draw the journey to this file (.png, .svg or .pdf): the image, feature maps, positions, memory, points, boxes."""


def run(options: DescribeOptions) -> None:
    """Describe an image's way, write it, show it."""
    from deformable_detr.detector import Detector
    from deformable_detr.files import write_json
    from deformable_detr.model import build_model
    from deformable_detr.visualize.figures import check_format
    from deformable_detr.visualize.inside.journey import view_journey

    if options.figure:
        check_format(options.figure)
    if options.weights is not None and options.preset is not None:
        raise ValueError("--preset is for a model with random weights: leave it out, or --weights")
    if options.weights is not None:
        detector = Detector.load(options.weights, device=options.device)
    else:
        detector = Detector(build_model(options.preset or "r50", pretrained_backbone=False), device=options.device)
    found = detector.describe(options.image, num_detections=options.top_k)
    with Finish() as finish:
        finish.write(options.json, lambda path: write_json(path, found.to_dict(), indent=1))
        finish.write(options.figure, lambda path: view_journey(found.inside).save(path))
        finish.show(_journey(found), _costs(found), _refinement(found, bool(options.weights)))


def _journey(description: "Description") -> "Table":
    from rich.table import Table

    table = Table("part", "what", "shape", "note", title="The journey of the image", title_justify="left")
    previous = ""
    for row in description.rows:
        if previous and row.part != previous:
            table.add_section()
        table.add_row("" if row.part == previous else row.part, row.name, " x ".join(map(str, row.shape)), row.note)
        previous = row.part
    return table


def _costs(description: "Description") -> "Table":
    from rich.table import Table

    table = Table("part", title="What the parts cost (multiply-adds for this image)", title_justify="left")
    for heading in ("trainable parameters", "frozen parameters", "GMACs", "share"):
        table.add_column(heading, justify="right")
    total = sum(cost.gmacs for cost in description.costs)
    for cost in description.costs:
        numbers = f"{cost.trainable_parameters:,}", f"{cost.frozen_parameters:,}", f"{cost.gmacs:.2f}", f"{cost.gmacs / total:.0%}"
        table.add_row(cost.part, *numbers)
    table.add_section()
    trainable, frozen = (sum(getattr(cost, f"{kind}_parameters") for cost in description.costs) for kind in ("trainable", "frozen"))
    table.add_row("all", f"{trainable:,}", f"{frozen:,}", f"{total:.2f}", "100%")
    return table


def _refinement(description: "Description", trained: bool) -> "Table":
    from rich.table import Table

    title = "The strongest detections, layer by layer (left, top, right, bottom in pixels)"
    table = Table("class", "score", "query", title=title if trained else f"{title}: random weights", title_justify="left")
    for layer in range(len(description.detections[0].boxes)):
        table.add_column(f"layer {layer + 1}")
    for found in description.detections:
        boxes = [", ".join(f"{value:.0f}" for value in box) for box in found.boxes]
        table.add_row(found.name, f"{found.score:.2f}", str(found.query), *boxes)
    return table


COMMAND = Command("describe", DescribeOptions, run, EXAMPLES)
