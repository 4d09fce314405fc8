"""`deformable-detr explain`: why a detection was made, as a page or a figure."""

import re
from dataclasses import dataclass
from pathlib import Path

from deformable_detr.cli.command import Command
from deformable_detr.cli.screen import Finish
from deformable_detr.files import short_stem

EXAMPLES = """\
  deformable-detr explain street.jpg --weights runs/first                           the highest-scored detection
  deformable-detr explain street.jpg --weights runs/first --point 320,140           the detection at that point
  deformable-detr explain street.jpg --weights runs/first --box 250,90,390,300 --output why.png
  deformable-detr explain street.jpg --weights runs/first --query 17
"""


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """Explain one detection of an image: its class and score, the reference that its query starts from, its box and class scores
    after each decoder layer, and the sampling points of each layer, head and level with their attention weights.

    Which detection: that of a query by its number, the one with the highest IoU with --box, the one at a --point; without any
    of these the highest-scored one. The page is one HTML file with its figures inside; a suffix such as .png or .svg gives one
    figure instead.
    """

    image: str
    """The image."""

    weights: str | None = None
    """A run folder (its best weights), or a weights file of any known format."""

    query: int | None = None
    """The number of the decoder query, from 0."""

    box: str | None = None
    """LEFT,TOP,RIGHT,BOTTOM in pixels: the query whose box has the highest IoU with it."""

    point: str | None = None
    """X,Y in pixels: the query of the object there, the smallest one of several."""

    output: str | None = None
    """The file: .html for a page, .png, .svg or .pdf for a figure. By default runs/explain/IMAGE-query-NUMBER.html."""

    device: str = "auto"
    """`auto` takes a GPU where there is one; else `cpu`, `cuda` or `mps`."""


def run(options: ExplainOptions) -> None:
    """Find the detection, explain it, write the page."""
    if not options.weights:
        raise ValueError("which detector? give --weights with a run folder or a weights file (deformable-detr explain --help)")
    box = numbers(options.box, 4, "--box takes LEFT,TOP,RIGHT,BOTTOM") if options.box is not None else None
    point = numbers(options.point, 2, "--point takes X,Y") if options.point is not None else None

    from deformable_detr.detector import Detector

    explanation = Detector.load(options.weights, device=options.device).explain(options.image, options.query, box=box, point=point)
    left, top, right, bottom = explanation.detection.box
    with Finish() as finish:
        finish.show(f"{explanation.title}, box ({left:.0f}, {top:.0f}, {right:.0f}, {bottom:.0f})", explanation.origin)
        page = Path("runs/explain") / f"{short_stem(options.image)}-query-{explanation.detection.query}.html"
        finish.write(options.output or page, explanation.save)


def numbers(text: str, count: int, usage: str) -> list[float]:
    """`"10,20"` → `[10.0, 20.0]`; spaces do as well as commas.

    Raises:
        ValueError: another number of numbers.
    """
    try:
        found = [float(part) for part in re.split(r"[,\s]+", text.strip("()[] "))]
    except ValueError:
        found = []
    if len(found) != count:
        raise ValueError(f"{usage} in pixels, such as {','.join(['120', '80', '260', '240'][:count])}, not {text!r}")
    return found


COMMAND = Command("explain", ExplainOptions, run, EXAMPLES)
