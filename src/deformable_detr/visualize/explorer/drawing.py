"""The image with boxes, references and sampling points, as SVG.

Lengths are shares of the image's size, so that a drawing looks the same at every resolution. Sampling points and boxes carry their
numbers as tooltips. The drawing is complete in itself: it can be saved and opened elsewhere.
"""

from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

import supervision as sv

from deformable_detr.visualize.colors import class_color, level_color, text_color
from deformable_detr.visualize.explorer.choices import Choices, cell_of, look_of
from deformable_detr.visualize.inside.inside import Detection, Inside, Look
from deformable_detr.visualize.pages.page import embed_image

MARGIN = 0.07
"""Of the longer side, around the image, for sampling points outside of it."""

LARGEST_EMBEDDED = 1600
"""Longer side of the image inside the drawing, in pixels."""

DARK = "#06080c"
VEIL = 0.45
"""Opacity of the dark layer between image and points."""


class View(NamedTuple):
    """The part of the plane that the drawing shows, in pixels of the image."""

    left: float
    top: float
    width: float
    height: float

    @property
    def unit(self) -> float:
        """A hundredth of the longer side, the unit of lines, dots and letters."""
        return max(self.width, self.height) / 100


def draw(inside: Inside, choices: Choices) -> str:
    """Draw the image and what is chosen as one `<svg>` element in pixels of the image."""
    height, width = inside.image_size
    look = look_of(inside, choices)
    view = close_view(inside, choices, look) if choices.zoom else whole_view(inside)
    pixels = embed_image(inside.image, longest=LARGEST_EMBEDDED, quality=90)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{" ".join(f"{value:.2f}" for value in view)}" '
        'font-family="system-ui, sans-serif" role="img" aria-label="image with boxes and sampling points">',
        f'<image href="{pixels}" width="{width}" height="{height}" preserveAspectRatio="none"/>',
        f'<rect width="{width}" height="{height}" fill="{DARK}" fill-opacity="{VEIL}"/>',
    ]
    if choices.stage == "decoder":
        parts += _references(inside, choices, view) if choices.all_references else []
        parts += _detections(inside, choices, view)
        parts += _refinement(inside, choices, view)
    else:
        parts += _cell(inside, choices, view)
    if look is not None:
        x, y = look.reference[:2].tolist()
        parts.append(_cross(x, y, view.unit, f"reference point ({x:.1f}, {y:.1f})"))
        parts += _points(look, choices, view)
    return "".join([*parts, "</svg>"])


def whole_view(inside: Inside) -> View:
    """The image with a margin."""
    height, width = inside.image_size
    margin = MARGIN * max(height, width)
    return View(-margin, -margin, width + 2 * margin, height + 2 * margin)


def close_view(inside: Inside, choices: Choices, look: Look | None) -> View:
    """The chosen boxes or cell with their sampling points and a margin; of the image's shape, at least a fifth of it."""
    whole = whole_view(inside)
    boxes = [cell_of(inside, choices.position)]
    if choices.stage == "decoder":
        boxes = inside.boxes_per_layer(choices.query).tolist()
    x = [value for box in boxes for value in box[0::2]] + ([] if look is None else look.points[..., 0].flatten().tolist())
    y = [value for box in boxes for value in box[1::2]] + ([] if look is None else look.points[..., 1].flatten().tolist())
    left, right = max(min(x), whole.left), min(max(x), whole.left + whole.width)
    top, bottom = max(min(y), whole.top), min(max(y), whole.top + whole.height)
    scale = min(1.0, max(0.2, 1.3 * (right - left) / whole.width, 1.3 * (bottom - top) / whole.height))
    width, height = scale * whole.width, scale * whole.height
    left = min(max((left + right - width) / 2, whole.left), whole.left + whole.width - width)
    top = min(max((top + bottom - height) / 2, whole.top), whole.top + whole.height - height)
    return View(left, top, width, height)


def _detections(inside: Inside, choices: Choices, view: View) -> Iterator[str]:
    """The other detections with their boxes after the chosen layer; large ones first, so that small ones are drawn on top."""
    found = {item.query: item for item in reversed(inside.detections(choices.threshold)) if item.query != choices.query}
    boxes = {query: inside.boxes_per_layer(query)[choices.decoder_layer].tolist() for query in found}
    labelled = {choices.query: inside.boxes_per_layer(choices.query)[choices.decoder_layer].tolist()}
    for query in reversed(found):  # best first
        if not any(_labels_collide(boxes[query], other, view.unit) for other in labelled.values()):
            labelled[query] = boxes[query]
    for query, item in sorted(found.items(), key=lambda entry: -_area(boxes[entry[0]])):
        box, color = boxes[query], class_color(item.label).as_hex()
        if _area(box) == 0:
            yield _cross(box[0], box[1], view.unit, f"{item.name} {item.score:.2f} (query {query}) starts here")
            continue
        tooltip = f"{item.name} {item.score:.2f} (query {query}): click to see its sampling points"
        yield _rectangle(box, color, 0.4 * view.unit, tooltip, opacity=0.85, name="detection")
        if query in labelled:
            yield _label(_name_after(inside, item, choices.decoder_layer), box, color, view, opacity=0.85)


def _refinement(inside: Inside, choices: Choices, view: View) -> Iterator[str]:
    """The chosen query's box after the chosen layer, and thin lines for its earlier boxes."""
    boxes = inside.boxes_per_layer(choices.query)[: choices.decoder_layer + 1].tolist()
    chosen, layer = inside.detection_of(choices.query), choices.decoder_layer
    color = class_color(chosen.label).as_hex()
    for earlier, box in enumerate(boxes[:-1]):
        opacity = 0.3 + 0.4 * earlier / len(boxes)
        tooltip = _stage_name(inside, earlier)
        yield _rectangle(box, "#ffffff", 0.22 * view.unit, tooltip, opacity=opacity, dashed=True, name="earlier")
    if _area(boxes[-1]) == 0:
        yield _cross(boxes[-1][0], boxes[-1][1], 1.5 * view.unit, _stage_name(inside, layer))
        return
    yield _rectangle(boxes[-1], DARK, 1.0 * view.unit, "", opacity=0.6, name="halo")
    yield _rectangle(boxes[-1], color, 0.6 * view.unit, _stage_name(inside, layer), name="chosen")
    yield _label(_name_after(inside, chosen, layer), boxes[-1], color, view, 1.15)


def _name_after(inside: Inside, item: Detection, layer: int) -> str:
    """The class with its score after the decoder layer; before the first layer without a score."""
    return f"{item.name} {inside.scores_per_layer(item.query)[layer - 1, item.label]:.2f}" if layer else item.name


def _labels_collide(box: Sequence[float], other: Sequence[float], unit: float) -> bool:
    return abs(box[0] - other[0]) < 8 * unit and abs(box[1] - other[1]) < 2 * unit


def _stage_name(inside: Inside, layer: int) -> str:
    if layer:
        return f"box after decoder layer {layer}"
    return "the proposal that the query starts from" if inside.query_source == "proposals" else "the learned reference point"


def _references(inside: Inside, choices: Choices, view: View) -> Iterator[str]:
    """A small ring at the box centre of every query."""
    boxes = [inside.boxes_per_layer(query)[choices.decoder_layer].tolist() for query in range(inside.num_queries)]
    for query, (left, top, right, bottom) in enumerate(boxes):
        if query != choices.query:
            place = f'cx="{(left + right) / 2:.2f}" cy="{(top + bottom) / 2:.2f}" r="{0.8 * view.unit:.3f}"'
            found = inside.detection_of(query)
            tooltip = f"query {query}: {found.name} {found.score:.2f}"
            yield (
                f'<circle class="query" {place} fill="#ffffff" fill-opacity="0.18" stroke="#ffffff" stroke-opacity="0.75" '
                f'stroke-width="{0.22 * view.unit:.3f}"><title>{escape(tooltip)}</title></circle>'
            )


def _cell(inside: Inside, choices: Choices, view: View) -> Iterator[str]:
    """The cell of the chosen position."""
    level, row, column = inside.level_and_cell(choices.position)
    tooltip = f"the position: row {row}, column {column} of level {level}"
    box = cell_of(inside, choices.position)
    yield _rectangle(box, DARK, 0.9 * view.unit, "", opacity=0.6, name="halo")
    yield _rectangle(box, level_color(level), 0.5 * view.unit, tooltip, name="cell")


def _points(look: Look, choices: Choices, view: View) -> Iterator[str]:
    """The chosen sampling points, large weights first: the colour is the level, the area the weight."""
    for head, level, point, x, y, weight in look.strongest(choices.heads, choices.levels):
        tooltip = f"level {level}, head {head}, point {point}: weight {weight:.3f} at ({x:.1f}, {y:.1f})"
        yield (
            f'<circle class="sample" data-level="{level}" data-head="{head}" cx="{x:.2f}" cy="{y:.2f}" '
            f'r="{point_radius(weight, view.unit):.3f}" fill="{level_color(level)}" fill-opacity="0.78" stroke="{DARK}" '
            f'stroke-opacity="0.8" stroke-width="{0.18 * view.unit:.3f}"><title>{tooltip}</title></circle>'
        )


def point_radius(weight: float, unit: float) -> float:
    """Radius of a sampling point: the area grows with the weight, and a weight of 0 is still visible."""
    return unit * (0.45 + 2.4 * weight**0.5)


def _rectangle(
    box: Sequence[float], color: str, thickness: float, tooltip: str, *, name: str, opacity: float = 1.0, dashed: bool = False
) -> str:
    left, top, right, bottom = box
    place = f'x="{left:.2f}" y="{top:.2f}" width="{max(right - left, 0):.2f}" height="{max(bottom - top, 0):.2f}"'
    dashes = f' stroke-dasharray="{4 * thickness:.2f} {3 * thickness:.2f}"' if dashed else ""
    title = f"<title>{escape(tooltip)}</title>" if tooltip else ""
    return (
        f'<rect class="{name}" {place} rx="{thickness / 2:.2f}" fill="#ffffff" fill-opacity="0" stroke="{color}" '
        f'stroke-opacity="{opacity:.2f}" stroke-width="{thickness:.3f}"{dashes}>{title}</rect>'
    )


def _cross(x: float, y: float, unit: float, tooltip: str) -> str:
    """A white cross with a dark edge."""
    reach = 1.7 * unit
    path = f"M{x - reach:.2f} {y:.2f}H{x + reach:.2f}M{x:.2f} {y - reach:.2f}V{y + reach:.2f}"
    lines = "".join(
        f'<path d="{path}" stroke="{color}" stroke-width="{width * unit:.3f}" stroke-linecap="round" fill="none"/>'
        for color, width in ((DARK, 0.95), ("#ffffff", 0.45))
    )
    return f'<g class="reference"><title>{escape(tooltip)}</title>{lines}</g>'


def _label(text: str, box: Sequence[float], color: str, view: View, size: float = 1.0, opacity: float = 1.0) -> str:
    """The name on a coloured ground: above the box, inside where there is no room above, always within the view."""
    unit = size * view.unit
    letters, padding = 2.2 * unit, 0.6 * unit
    height, width = letters + padding, 0.56 * letters * len(text) + 2 * padding
    left = max(view.left, min(box[0], view.left + view.width - width))
    top = box[1] - height if box[1] - height >= view.top else box[1]
    ink = text_color(sv.Color.from_hex(color)).as_hex()
    return (
        f'<g class="label" opacity="{opacity:.2f}" pointer-events="none">'
        f'<rect x="{left:.2f}" y="{top:.2f}" width="{width:.2f}" height="{height:.2f}" rx="{0.5 * unit:.2f}" fill="{color}"/>'
        f'<text x="{left + padding:.2f}" y="{top + 0.78 * height:.2f}" font-size="{letters:.2f}" font-weight="600" fill="{ink}" '
        f'textLength="{width - 2 * padding:.2f}" lengthAdjust="spacingAndGlyphs">{escape(text)}</text></g>'
    )


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
