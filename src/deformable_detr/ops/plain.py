"""Both forms of the operator in plain PyTorch operations: for every device, dtype, derivative and exporter."""

from collections.abc import Sequence

import torch
from torch import Tensor

from deformable_detr.ops.gather import multi_scale_deformable_attn_gather
from deformable_detr.ops.reference import multi_scale_deformable_attn_pytorch, sampling_locations_from_offsets

PLAIN = {"reference": multi_scale_deformable_attn_pytorch, "gather": multi_scale_deformable_attn_gather}
"""By the backend's name. `gather` has no grid_sample and is never chosen by itself."""


def plain_attention(
    form: str, value: Tensor, shapes: Sequence[tuple[int, int]], reference: Tensor | None, offsets: Tensor, weights: Tensor
) -> Tensor:
    """Attention output `[B, Q, M * D]` in the type of `value`; low precision is computed in float32.

    Args:
        form: a key of `PLAIN`.
        value: `[B, S, M, D]`.
        shapes: (h, w) of each level.
        reference: `[B, Q, L, 2 | 4]` for the fused form; None: `offsets` are locations and `weights` are no logits.
        offsets: `[B, Q, M, L, P, 2]`.
        weights: `[B, Q, M, L, P]`.
    """
    exact = torch.float64 if value.dtype == torch.float64 else torch.float32
    locations, weights = offsets.to(exact), weights.to(exact)
    if reference is not None:
        weights = weights.flatten(-2).softmax(-1).view(weights.shape)
        locations = sampling_locations_from_offsets(reference.to(exact), locations, shapes)
    return PLAIN[form](value.to(exact), shapes, locations, weights).to(value.dtype)


def plain_backward(
    form: str,
    grad_output: Tensor,
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    reference: Tensor | None,
    offsets: Tensor,
    weights: Tensor,
    with_reference: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of value, reference (empty unless asked for), offsets and weights; differentiable with `gather`."""
    tensors = [value, offsets, weights] if reference is None else [value, reference, offsets, weights]

    def attention(value: Tensor, *geometry: Tensor) -> Tensor:
        reference = geometry[0] if len(geometry) == 3 else None
        return plain_attention(form, value, shapes, reference, geometry[-2], geometry[-1])

    grads = torch.func.vjp(attention, *tensors)[1](grad_output)
    grad_reference = grads[1] if with_reference and reference is not None else offsets.new_empty(0)
    return grads[0], grad_reference, grads[-2], grads[-1]
