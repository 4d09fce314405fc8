"""The contract of the operator (Deformable DETR, section 4.1, equation 3): shapes, checks and the choice of the backend."""

from collections.abc import Sequence

import torch
from torch import Tensor

from deformable_detr.ops import library  # noqa: F401  (registers torch.ops.deformable_detr)
from deformable_detr.ops.backends import choose_backend
from deformable_detr.ops.gather import multi_scale_deformable_attn_gather
from deformable_detr.ops.reference import multi_scale_deformable_attn_pytorch, sampling_locations_from_offsets

Shapes = Tensor | Sequence[tuple[int, int]]
Pairs = Sequence[tuple[int, int]]

_PLAIN = {"reference": multi_scale_deformable_attn_pytorch, "gather": multi_scale_deformable_attn_gather}


def ms_deform_attn(
    value: Tensor, spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor, *, backend: str | None = None
) -> Tensor:
    """Multi-scale deformable attention with given places and weights.

    Every sample is bilinear; pixel centres lie at (i + .5) / size and everything outside a level is zero.

    Args:
        value: `[B, S, M, D]`, the levels one after the other, each row by row; float32, float64, bfloat16 or float16.
        spatial_shapes: (h, w) of each level: L pairs, or a tensor `[L, 2]` (on a GPU reading it waits for the device).
        sampling_locations: `[B, Q, M, L, P, 2]`, (x, y) with the level's corners at 0 and 1; NaN counts as outside.
        attention_weights: `[B, Q, M, L, P]`, any numbers (the paper's sum to 1 over L * P).
        backend: "cpu", "triton", "reference" or "gather" (for exporting); None picks the fastest one that fits, see
            `available_backends`.

    Returns:
        `[B, Q, M * D]` in the type of `value`; low precision is summed in float32.

    Raises:
        ValueError: shapes, types or devices that do not fit; the message names the argument.
        RuntimeError: a backend that cannot run here was asked for.
    """
    pairs = _pairs(spatial_shapes)
    _check(value, pairs, "sampling_locations", sampling_locations, "attention_weights", attention_weights)
    chosen = choose_backend(value, backend)
    if chosen in _PLAIN:
        exact = _accumulation_dtype(value)
        return _PLAIN[chosen](value.to(exact), pairs, sampling_locations.to(exact), attention_weights.to(exact)).to(value.dtype)
    return _kernel(value, pairs, None, sampling_locations, attention_weights, chosen)


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Shapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    """The same from reference points, offsets and logits: softmax over L * P and the places are computed inside.

    With references of 2 numbers, location = reference + offset / (w, h) of the level; with 4, location = centre +
    offset / P * (w, h) of the box / 2. Gradients flow to everything, the references included.

    Args:
        value: `[B, S, M, D]`, see `ms_deform_attn`.
        spatial_shapes: (h, w) of each level.
        reference_points: `[B, Q, L, 2]` (x, y) or `[B, Q, L, 4]` (cx, cy, w, h), in [0, 1] of the padded level.
        sampling_offsets: `[B, Q, M, L, P, 2]`.
        attention_logits: `[B, Q, M, L, P]`.
        backend: see `ms_deform_attn`.

    Returns:
        `[B, Q, M * D]` in the type of `value`; the geometry may have another type and is computed in float32.

    Raises:
        ValueError: shapes, types or devices that do not fit; the message names the argument.
        RuntimeError: a backend that cannot run here was asked for.
    """
    pairs = _pairs(spatial_shapes)
    _check(value, pairs, "sampling_offsets", sampling_offsets, "attention_logits", attention_logits)
    _check_reference(reference_points, sampling_offsets)
    chosen = choose_backend(value, backend)
    if chosen in _PLAIN:
        exact = _accumulation_dtype(value)
        weights = attention_logits.to(exact).flatten(-2).softmax(-1).view(attention_logits.shape)
        locations = sampling_locations_from_offsets(reference_points.to(exact), sampling_offsets.to(exact), pairs)
        return _PLAIN[chosen](value.to(exact), pairs, locations, weights).to(value.dtype)
    return _kernel(value, pairs, reference_points, sampling_offsets, attention_logits, chosen)


def _kernel(value: Tensor, pairs: Pairs, reference: Tensor | None, offsets: Tensor, weights: Tensor, backend: str) -> Tensor:
    """The registered operator; the geometry in float32 whatever the type of `value`."""
    if reference is not None:
        reference = reference.to(torch.float32)
    shapes = [size for pair in pairs for size in pair]
    return torch.ops.deformable_detr.ms_deform_attn(
        value, shapes, reference, offsets.to(torch.float32), weights.to(torch.float32), backend
    )


def _accumulation_dtype(value: Tensor) -> torch.dtype:
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def _pairs(spatial_shapes: Shapes) -> Pairs:
    if not isinstance(spatial_shapes, Tensor):
        return spatial_shapes
    if spatial_shapes.dim() != 2 or spatial_shapes.shape[1] != 2 or spatial_shapes.is_floating_point():
        found = f"{list(spatial_shapes.shape)} {spatial_shapes.dtype}"
        raise ValueError(f"spatial_shapes: expected integers [L, 2], one (h, w) per level, got {found}")
    return spatial_shapes.tolist()


def _check(value: Tensor, pairs: Pairs, places: str, locations: Tensor, strengths: str, weights: Tensor) -> None:
    """What does not fit is named as the caller named it."""
    if value.dim() != 4:
        raise ValueError(f"value: expected [B, S, M, D], got {list(value.shape)}")
    if locations.dim() != 6 or locations.shape[-1] != 2:
        raise ValueError(f"{places}: expected [B, Q, M, L, P, 2], got {list(locations.shape)}")
    if weights.dim() != 5:
        raise ValueError(f"{strengths}: expected [B, Q, M, L, P], got {list(weights.shape)}")
    if len(pairs) != locations.shape[3]:
        raise ValueError(f"spatial_shapes: {len(pairs)} levels, but {places} has {locations.shape[3]}")
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"spatial_shapes: expected (h, w) pairs, got {pairs!r}")
    if locations.shape[0] != value.shape[0] or locations.shape[2] != value.shape[2]:
        raise ValueError(
            f"{places}: batch and heads must be those of value, {value.shape[0]} and {value.shape[2]}, got {list(locations.shape)}"
        )
    if weights.shape != locations.shape[:-1]:
        raise ValueError(f"{strengths}: expected {list(locations.shape[:-1])} like {places}, got {list(weights.shape)}")
    for name, tensor in (("value", value), (places, locations), (strengths, weights)):
        _check_kind(name, tensor, value.device)
    if not torch.compiler.is_exporting():  # there, sizes may be symbols that nothing is known about
        _check_tokens(value, pairs)


def _check_tokens(value: Tensor, pairs: Pairs) -> None:
    tokens = 0
    for height, width in pairs:
        if height < 1 or width < 1:
            raise ValueError(f"spatial_shapes: every level needs at least one pixel, got {list(pairs)!r}")
        tokens = tokens + height * width
    if tokens != value.shape[1]:
        raise ValueError(f"spatial_shapes: the levels have {tokens} pixels together, but value has {value.shape[1]} tokens")


def _check_kind(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise ValueError(f"{name}: expected float32, float64, bfloat16 or float16, got {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{name}: is on {tensor.device}, but value is on {device}")


def _check_reference(reference_points: Tensor, sampling_offsets: Tensor) -> None:
    batch, queries, _, levels = sampling_offsets.shape[:4]
    shape = reference_points.shape
    if len(shape) != 4 or shape[3] not in (2, 4):
        raise ValueError(f"reference_points: expected [B, Q, L, 2] or [B, Q, L, 4], got {list(shape)}")
    if shape[0] != batch or shape[1] != queries or shape[2] != levels:
        raise ValueError(
            f"reference_points: expected {[batch, queries, levels, shape[3]]} like sampling_offsets, got {list(shape)}"
        )
    _check_kind("reference_points", reference_points, sampling_offsets.device)
