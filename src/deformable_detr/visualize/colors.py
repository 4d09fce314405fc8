"""One colour per feature level, the same in every figure, page and explorer."""

LEVEL_COLORS = ("#19c3ff", "#ffb000", "#ff4f79", "#8f6bff", "#2fd07f", "#c9d1d9")
"""Level 0 (the finest) first; told apart also by those who see few colours, light enough for a dark ground."""


def level_color(level: int) -> str:
    """`#rrggbb` of a level; they repeat after the sixth."""
    return LEVEL_COLORS[level % len(LEVEL_COLORS)]
