"""One colour per feature level and per class, the same in every image, figure, page and explorer."""

import colorsys

import supervision as sv

LEVEL_COLORS = ("#19c3ff", "#ffb000", "#ff4f79", "#8f6bff", "#2fd07f", "#c9d1d9")
"""Level 0 (the finest) first; distinguishable with colour blindness, light enough for a dark ground."""


def level_color(level: int) -> str:
    """The colour `#rrggbb` of a level; they repeat after the sixth."""
    return LEVEL_COLORS[level % len(LEVEL_COLORS)]


def text_color(ground: sv.Color) -> sv.Color:
    """Black or white, whichever has more contrast with a ground (by luma)."""
    brightness = 0.299 * ground.r + 0.587 * ground.g + 0.114 * ground.b
    return sv.Color(16, 18, 22) if brightness > 140 else sv.Color.WHITE


_FIRST_COLORS = (
    "#2f9bff", "#ff5a36", "#2fc46a", "#ffc21a", "#b26bff", "#ff5fb0",
    "#14c8c8", "#ff9130", "#9bd424", "#6d7dff", "#c8935a", "#00a58a",
)  # fmt: skip


def class_color(label: int) -> sv.Color:
    """The colour of a class, the same in every image: twelve hand-picked ones, then further hues."""
    if label < len(_FIRST_COLORS):
        return sv.Color.from_hex(_FIRST_COLORS[label])
    red, green, blue = colorsys.hsv_to_rgb((label * 0.618034) % 1, 0.55 + 0.3 * (label % 2), 0.95 - 0.2 * (label % 3 == 0))
    return sv.Color(round(255 * red), round(255 * green), round(255 * blue))
