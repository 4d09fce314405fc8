"""The contract of the operator: shapes, checks and the choice of the backend."""

from collections.abc import Sequence

from torch import Tensor

from deformable_detr.ops.reference import multi_scale_deformable_attn_pytorch, sampling_locations_from_offsets


def ms_deform_attn(
    value: Tensor, spatial_shapes: Tensor | Sequence[tuple[int, int]], sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Multi-scale deformable attention with given places and weights: value [B, S, M, D] → [B, Q, M * D]."""
    return multi_scale_deformable_attn_pytorch(
        value, spatial_shapes, sampling_locations.to(value.dtype), attention_weights.to(value.dtype)
    )


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """The same from reference points, offsets and logits: softmax over L·P and the places are computed inside."""
    weights = attention_logits.flatten(-2).softmax(-1).view(attention_logits.shape)
    locations = sampling_locations_from_offsets(reference_points, sampling_offsets, spatial_shapes)
    return ms_deform_attn(value, spatial_shapes, locations, weights)
