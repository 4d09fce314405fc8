"""What the page shows of an image, as one value: every click and every control makes a new one from the last one.

Independent of gradio; nothing is drawn here: :mod:`.drawing` and :mod:`.tables` read :class:`Choices` beside an :class:`Inside`.
"""

from dataclasses import dataclass, replace

from deformable_detr.visualize.inside.inside import Inside, Look, Stage


@dataclass(frozen=True)
class Choices:
    """What is chosen, and how much of it is shown."""

    stage: Stage
    """Decoder: a query and its cross-attention. Encoder: a position of the feature maps and its self-attention."""

    query: int
    """Which query, in the decoder."""

    position: int
    """Which position of the flattened sequence, in the encoder."""

    decoder_layer: int
    """From 1 to N; 0 is the state before the first layer: references, nothing sampled yet."""

    encoder_layer: int
    """From 1."""

    levels: tuple[int, ...]
    """The levels whose sampling points are shown."""

    heads: tuple[int, ...]
    """The heads whose sampling points are shown."""

    threshold: float = 0.5
    """Smallest score of the detections that are shown, in [0, 1]."""

    all_references: bool = False
    """Also show the box centres of all other queries."""

    zoom: bool = False
    """Show only the part of the image around what is chosen."""


def first_choices(inside: Inside, threshold: float = 0.5) -> Choices:
    """The highest-scored detection in the last layer with all levels and heads; in the encoder the middle of the image."""
    height, width = inside.image_size
    weights = inside.decoder[-1].attention_weights
    best = inside.detections(top_k=1)
    return Choices(
        stage="decoder",
        query=best[0].query,
        position=inside.position_at(width / 2, height / 2, level=min(1, weights.shape[3] - 1)),
        decoder_layer=len(inside.decoder),
        encoder_layer=len(inside.encoder),
        levels=tuple(range(weights.shape[3])),
        heads=tuple(range(weights.shape[2])),
        threshold=threshold,
    )


def at_another_image(inside: Inside, choices: Choices) -> Choices:
    """Keep the settings, and choose the first query and position of the new image."""
    first = first_choices(inside, choices.threshold)
    return replace(choices, query=first.query, position=first.position)


def at_point(inside: Inside, choices: Choices, x: float, y: float) -> Choices:
    """Choose what a click on the point (x, y) of the image, in pixels, means.

    In the decoder: the query whose box contains the point (shown detections first), else the nearest query. In the encoder: the
    position whose cell contains the point, on the same level as before. For a point outside the image, that of the nearest in it.
    """
    height, width = inside.image_size
    x, y = min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height))
    if choices.stage == "decoder":
        return replace(choices, query=inside.query_at(x, y, choices.threshold))
    level = inside.level_and_cell(choices.position)[0]
    return replace(choices, position=inside.position_at(x, y, level))


def on_level(inside: Inside, choices: Choices, level: int) -> Choices:
    """Choose the encoder's position at the same coordinates of the image on another level."""
    left, top, right, bottom = cell_of(inside, choices.position)
    height, width = inside.image_size
    x, y = min((left + right) / 2, width), min((top + bottom) / 2, height)
    return replace(choices, position=inside.position_at(x, y, level))


def look_of(inside: Inside, choices: Choices) -> Look | None:
    """The sampling of the chosen query or position in the chosen layer; None before the first decoder layer."""
    if choices.stage == "encoder":
        return inside.look(inside.encoder[choices.encoder_layer - 1], choices.position)
    return inside.look(inside.decoder[choices.decoder_layer - 1], choices.query) if choices.decoder_layer else None


def cell_of(inside: Inside, position: int) -> tuple[float, float, float, float]:
    """The part of the image that a position of the sequence covers: xyxy in pixels."""
    level, row, column = inside.level_and_cell(position)
    rows, columns = inside.spatial_shapes[level]
    ratio_x, ratio_y = inside.valid_ratios[0, level].tolist()
    height, width = inside.image_size
    across, down = width / (ratio_x * columns), height / (ratio_y * rows)
    return column * across, row * down, (column + 1) * across, (row + 1) * down
