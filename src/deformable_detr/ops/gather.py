"""Multi-scale deformable attention without `grid_sample`: gather and arithmetic, for runtimes whose GridSample is slow or wrong.

The same numbers as `reference.py`, in operations that every runtime has and that have derivatives of every order and direction. For
exported programs all levels go through each operation together: a translator takes its time for every operation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def multi_scale_deformable_attn_gather(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Gather the four pixels around every sampling location and sum them, each with its bilinear share of the attention weight.

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
    image, head = (torch.arange(count, dtype=torch.int64, device=value.device) for count in (batch, heads))
    image = image[:, None] * (tokens * heads) + head
    image = image[:, None, :, None, None]  # [B, 1, M, 1, 1]: the row of each image's and head's first pixel
    sizes, first = _levels(spatial_shapes, sampling_locations)
    places = sampling_locations * sizes - 0.5  # in pixels, 0 at the centre of the first
    before = places.floor()
    fraction = places - before
    output = value.new_zeros(())
    for column, share_x in _one_axis(before[..., 0], fraction[..., 0], sizes[..., 0]):
        for line, share_y in _one_axis(before[..., 1], fraction[..., 1], sizes[..., 1]):
            pixel = first + line * sizes[..., 0] + column  # [B, Q, M, L, P], exact below 2**24
            picked = rows.index_select(0, (image + pixel.to(torch.int64) * heads).flatten())
            picked = picked.view(*pixel.shape[:3], pixel.shape[3] * pixel.shape[4], channels)  # [B, Q, M, L * P, D]
            weights = (attention_weights * share_x * share_y).flatten(3)[..., None, :]  # [B, Q, M, 1, L * P]
            output = output + weights @ picked
    return output.flatten(2)


def _levels(spatial_shapes: Sequence[tuple[int, int]], like: Tensor) -> tuple[Tensor, Tensor]:
    """(w, h) of the levels, `[L, 1, 2]`, and the pixels before each, `[L, 1]`; one number at a time, as in `reference.py`."""
    sizes, first, pixels = [], [], 0
    for height, width in spatial_shapes:
        sizes += [width, height]
        first.append(pixels)
        pixels = pixels + height * width
    as_tensor = [torch.stack([like.new_full((), number) for number in numbers]) for numbers in (sizes, first)]
    return as_tensor[0].view(-1, 1, 2), as_tensor[1][:, None]


def _one_axis(before: Tensor, fraction: Tensor, size: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The two pixels of one axis around a location, clamped into the level, and their shares; 0 for pixels outside."""
    last = size - 1
    pairs = []
    for pixel, share in ((before, 1 - fraction), (before + 1, fraction)):
        inside = torch.where(pixel > 0, pixel, 0.0).minimum(last)  # NaN too
        pairs.append((inside, torch.where(inside == pixel, share, 0.0)))
    return pairs
