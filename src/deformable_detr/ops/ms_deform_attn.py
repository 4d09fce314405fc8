"""The contract of the operator (Deformable DETR, section 4.1, equation 3): shapes, checks and the choice of the backend."""

from collections.abc import Sequence

import torch
from torch import Tensor

from deformable_detr.ops.backends import choose_backend
from deformable_detr.ops.levels import Pairs, check_pairs, check_table, check_tokens, pairs_of_table
from deformable_detr.ops.library import attention
from deformable_detr.ops.plain import PLAIN, plain_attention

Shapes = Tensor | Sequence[tuple[int, int]]


def ms_deform_attn(
    value: Tensor, spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor, *, backend: str | None = None
) -> Tensor:
    """Multi-scale deformable attention from sampling locations and attention weights.

    Every sample is bilinear; pixel centres lie at (i + .5) / size and everything outside a level is zero.

    Args:
        value: `[B, S, M, D]`, the levels one after the other, each row by row; float32, float64, bfloat16 or float16.
        spatial_shapes: (h, w) of each level: L pairs, or an integer tensor `[L, 2]` (on a GPU reading it waits for the device); or
            `[L, 3]` with the first token of each level, which is then checked.
        sampling_locations: `[B, Q, M, L, P, 2]`, (x, y) with the level's corners at 0 and 1; NaN and infinity count as outside.
        attention_weights: `[B, Q, M, L, P]`, any numbers (the paper's sum to 1 over L * P).
        backend: "cpu", "triton", "reference" or "gather" (for exporting); None picks the fastest one that fits, see
            `available_backends`.

    Returns:
        `[B, Q, M * D]` in the type of `value`; low precision is summed in float32.

    Raises:
        ValueError: shapes, types or devices that do not fit; the message names the argument.
        RuntimeError: a backend that cannot run here was asked for.
    """
    levels = _levels(spatial_shapes)
    _check(value, levels, "sampling_locations", sampling_locations, "attention_weights", attention_weights)
    return _run(value, levels, None, sampling_locations, attention_weights, backend)


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Shapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    """The same from reference points, offsets and logits: softmax over L * P and the sampling locations are computed inside.

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
    levels = _levels(spatial_shapes)
    _check(value, levels, "sampling_offsets", sampling_offsets, "attention_logits", attention_logits)
    _check_reference(reference_points, sampling_offsets)
    return _run(value, levels, reference_points, sampling_offsets, attention_logits, backend)


def _levels(spatial_shapes: Shapes) -> Pairs | Tensor:
    """Pairs, or the tensor itself where only the run of a compiled program will know its numbers."""
    if not isinstance(spatial_shapes, Tensor):
        check_pairs(spatial_shapes)
        return spatial_shapes
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        check_table(spatial_shapes)
        return spatial_shapes
    return pairs_of_table(spatial_shapes)


def _run(
    value: Tensor, levels: Pairs | Tensor, reference: Tensor | None, offsets: Tensor, weights: Tensor, backend: str | None
) -> Tensor:
    """The plain form, or the registered operator. The CPU kernels widen geometry of low precision; others are given float32."""
    chosen = choose_backend(value, backend)
    if isinstance(levels, Tensor):
        shapes = levels
    elif chosen in PLAIN:
        return plain_attention(chosen, value, levels, reference, offsets, weights)
    else:
        shapes = [size for pair in levels for size in pair]
    if chosen not in PLAIN:
        reference = None if reference is None else reference.to(torch.float32)
        if chosen != "cpu" or offsets.dtype != weights.dtype or offsets.dtype == torch.float64:
            offsets, weights = offsets.to(torch.float32), weights.to(torch.float32)
    return attention(value, shapes, reference, offsets, weights, chosen)


def _check(value: Tensor, levels: Pairs | Tensor, places: str, locations: Tensor, strengths: str, weights: Tensor) -> None:
    """What does not fit is named as the caller named it."""
    if value.dim() != 4:
        raise ValueError(f"value: expected [B, S, M, D], got {list(value.shape)}")
    if locations.dim() != 6 or locations.shape[-1] != 2:
        raise ValueError(f"{places}: expected [B, Q, M, L, P, 2], got {list(locations.shape)}")
    if weights.dim() != 5:
        raise ValueError(f"{strengths}: expected [B, Q, M, L, P], got {list(weights.shape)}")
    if len(levels) != locations.shape[3]:
        raise ValueError(f"spatial_shapes: {len(levels)} levels, but {places} has {locations.shape[3]}")
    if locations.shape[0] != value.shape[0] or locations.shape[2] != value.shape[2]:
        raise ValueError(
            f"{places}: batch and heads must be those of value, {value.shape[0]} and {value.shape[2]}, got {list(locations.shape)}"
        )
    if weights.shape != locations.shape[:-1]:
        raise ValueError(f"{strengths}: expected {list(locations.shape[:-1])} like {places}, got {list(weights.shape)}")
    for name, tensor in (("value", value), (places, locations), (strengths, weights)):
        _check_kind(name, tensor, value.device)
    # A tensor's numbers are checked when the program runs; under export, sizes may be symbols that nothing is known about.
    if not isinstance(levels, Tensor) and not torch.compiler.is_exporting():
        check_tokens(value, levels)


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
