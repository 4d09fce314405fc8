"""The sizes of the levels, in the forms in which callers have them."""

from collections.abc import Sequence

import torch
from torch import Tensor

Pairs = Sequence[tuple[int, int]]


def pairs_of_table(table: Tensor) -> Pairs:
    """(h, w) of each level from a tensor `[L, 2]`, or `[L, 3]` with the first token of each level as its last column.

    Raises:
        ValueError: another shape or type, or first tokens that are not those of levels one after the other.
    """
    check_table(table)
    pairs, expected = [], 0
    for level, (height, width, *start) in enumerate(table.tolist()):  # one transfer, on a GPU one wait
        if start and start[0] != expected:
            raise ValueError(
                f"level_start_index: level {level} begins at token {start[0]}, but the levels before it have {expected} pixels; "
                "value must hold the levels one after the other"
            )
        pairs.append((height, width))
        expected += height * width
    return pairs


def check_table(table: Tensor) -> None:
    """A ValueError where it is no `[L, 2]` or `[L, 3]` of integers, as far as shape and type tell."""
    if table.dim() != 2 or table.shape[1] not in (2, 3) or table.is_floating_point() or table.dtype == torch.bool:
        found = f"{list(table.shape)} {table.dtype}"
        raise ValueError(f"spatial_shapes: expected integers [L, 2], one (h, w) per level, got {found}")


def check_pairs(pairs: Pairs) -> None:
    """A ValueError where a level is no pair of integers (symbols of an exporter are integers too)."""
    try:
        sizes = [size for height, width in pairs for size in (height, width)]
    except (TypeError, ValueError):
        raise ValueError(f"spatial_shapes: expected (h, w) pairs, got {pairs!r}") from None
    for size in sizes:
        if isinstance(size, (float, bool, str)):
            raise ValueError(f"spatial_shapes: expected pairs of integers, got {pairs!r}")


def check_tokens(value: Tensor, pairs: Pairs) -> None:
    """A ValueError where the levels do not have as many pixels as value has tokens, or a level has none."""
    tokens = 0
    for height, width in pairs:
        if height < 1 or width < 1:
            raise ValueError(f"spatial_shapes: every level needs at least one pixel, got {list(pairs)!r}")
        tokens = tokens + height * width
    if tokens != value.shape[1]:
        raise ValueError(f"spatial_shapes: the levels have {tokens} pixels together, but value has {value.shape[1]} tokens")
