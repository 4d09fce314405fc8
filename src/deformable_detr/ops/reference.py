"""The definition of multi-scale deformable attention in plain PyTorch (Deformable DETR, section 4.1, equation 3)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

FAR = 9.0
"""A coordinate outside of every level."""


def multi_scale_deformable_attn_pytorch(
    value: Tensor, value_spatial_shapes: Tensor | Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Sample every level bilinearly at the given locations and sum the samples with the given weights.

    Args:
        value: `[B, S, M, D]`, the levels one after the other, each row by row.
        value_spatial_shapes: `[L, 2]`, (h, w) of each level; a tensor or a list of pairs.
        sampling_locations: `[B, Q, M, L, P, 2]`, (x, y) with the level's corners at 0 and 1; samples outside are zero, and so are
            those at non-finite locations.
        attention_weights: `[B, Q, M, L, P]`.

    Returns:
        `[B, Q, M * D]`.
    """
    if not torch.compiler.is_exporting() and not torch.jit.is_tracing():  # there each pass over the locations would cost time
        # Locations far outside, infinite and NaN ones among them, go where they count as outside and have no gradient.
        sampling_locations = torch.where(sampling_locations > -FAR, sampling_locations, -FAR).clamp(max=FAR)
    shapes = value_spatial_shapes.tolist() if isinstance(value_spatial_shapes, Tensor) else value_spatial_shapes
    batch, _, heads, channels = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    levels = value.split([h * w for h, w in shapes], dim=1)
    grids = (2 * sampling_locations - 1).permute(0, 2, 3, 1, 4, 5)  # [B, M, L, Q, P, 2], corners at -1 and 1
    sampled = [
        F.grid_sample(
            level.permute(0, 2, 3, 1).reshape(batch * heads, channels, h, w),
            grids[:, :, index].reshape(batch * heads, queries, points, 2),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )  # [B * M, D, Q, P]
        for index, (level, (h, w)) in enumerate(zip(levels, shapes, strict=True))
    ]
    weights = attention_weights.permute(0, 2, 1, 3, 4).reshape(
        batch * heads, 1, queries, len(levels) * points
    )  # [B * M, 1, Q, L * P]
    output = (torch.cat(sampled, dim=-1) * weights).sum(-1)  # [B * M, D, Q]
    return output.reshape(batch, heads * channels, queries).transpose(1, 2)


def sampling_locations_from_offsets(
    reference_points: Tensor, sampling_offsets: Tensor, spatial_shapes: Tensor | Sequence[tuple[int, int]]
) -> Tensor:
    """Where to sample: offsets are in pixels around a point, or in shares of half a box around its centre.

    Args:
        reference_points: `[B, Q, L, 2]` (x, y) or `[B, Q, L, 4]` (cx, cy, w, h), in [0, 1] of the padded level.
        sampling_offsets: `[B, Q, M, L, P, 2]`.
        spatial_shapes: (h, w) of each level.

    Returns:
        `[B, Q, M, L, P, 2]` in [0, 1] of the padded level.
    """
    centre = reference_points[:, :, None, :, None, :2]
    if reference_points.shape[-1] == 4:
        size = reference_points[:, :, None, :, None, 2:]
        return _centre_plus(centre, sampling_offsets / sampling_offsets.shape[4], size * 0.5)
    shapes = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    # One number at a time, because under export a size may be a symbol; [L, 1, 2] as (w, h).
    sizes = torch.stack([sampling_offsets.new_full((), size) for h, w in shapes for size in (w, h)]).view(-1, 1, 2)
    return centre + sampling_offsets / sizes


def _centre_plus(centre: Tensor, offsets: Tensor, half: Tensor) -> Tensor:
    """centre + offsets * half, with zero gradients (and not 0 * infinity) where the result is non-finite."""
    locations = centre + offsets * half
    if torch.compiler.is_exporting() or torch.jit.is_tracing() or not torch.is_grad_enabled():
        return locations
    finite = locations.isfinite()
    return torch.where(finite, centre + torch.where(finite, offsets, 0.0) * torch.where(finite, half, 0.0), FAR)
