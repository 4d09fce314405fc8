"""Multi-scale deformable attention without `grid_sample`: gather and arithmetic, for runtimes whose GridSample is slow or wrong.

The same numbers as `reference.py`, in operations that every runtime has. Nobody computes with it here; it is exported.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def multi_scale_deformable_attn_gather(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Pick the four pixels around every place and add them up, each with its bilinear share of the attention weight.

    Args:
        value: `[B, S, M, D]`, the levels one after the other, each row by row.
        spatial_shapes: (h, w) of each level.
        sampling_locations: `[B, Q, M, L, P, 2]`, (x, y) with the level's corners at 0 and 1; samples outside are zero.
        attention_weights: `[B, Q, M, L, P]`.

    Returns:
        `[B, Q, M * D]`.
    """
    batch, tokens, heads, channels = value.shape
    rows = value.reshape(batch * tokens * heads, channels)
    first = torch.arange(batch, device=value.device)[:, None] * (tokens * heads) + torch.arange(heads, device=value.device)
    first = first[:, None, :, None]  # [B, 1, M, 1]: the row of pixel 0 of each picture and head
    output = value.new_zeros(())
    for level, (height, width) in enumerate(spatial_shapes):
        places, weights = sampling_locations[:, :, :, level], attention_weights[:, :, :, level]  # [B, Q, M, P, 2], [B, Q, M, P]
        x, y = places[..., 0] * width - 0.5, places[..., 1] * height - 0.5  # in pixels, 0 at the centre of the first
        left, top = x.floor(), y.floor()
        for column, share_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            for line, share_y in ((top, 1 - (y - top)), (top + 1, y - top)):
                inside = (column >= 0) & (column <= width - 1) & (line >= 0) & (line <= height - 1)
                pixel = line.clamp(0, height - 1) * width + column.clamp(0, width - 1)  # [B, Q, M, P], exact below 2**24
                picked = rows.index_select(0, (first + pixel.to(torch.int64) * heads).flatten()).view(*pixel.shape, channels)
                output = output + (picked * (weights * share_x * share_y * inside)[..., None]).sum(-2)  # [B, Q, M, D]
        first = first + height * width * heads
    return output.flatten(2)
