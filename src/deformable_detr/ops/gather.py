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
        columns = _neighbours(left, x - left, width)
        lines = _neighbours(top, y - top, height)
        for column, share_x in columns:
            for line, share_y in lines:
                pixel = line * width + column  # [B, Q, M, P], exact below 2**24
                picked = rows.index_select(0, (first + pixel.to(torch.int64) * heads).flatten()).view(*pixel.shape, channels)
                output = output + (picked * (weights * share_x * share_y)[..., None]).sum(-2)  # [B, Q, M, D]
        first = first + height * width * heads
    return output.flatten(2)


def _neighbours(before: Tensor, fraction: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """The two pixels of one axis around a place, clamped into the level, and their shares; nothing from outside.

    Each is clamped once: with several clamps of one tensor the ONNX translation came out invalid (an undefined node input).
    """
    after = before + 1
    share_before = (1 - fraction) * ((before >= 0) & (before <= size - 1))
    share_after = fraction * ((after >= 0) & (after <= size - 1))
    return [(before.clamp(0, size - 1), share_before), (after.clamp(0, size - 1), share_after)]
