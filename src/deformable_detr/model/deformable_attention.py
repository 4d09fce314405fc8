"""The attention module of encoder and decoder: samples a few learned locations per head and level (paper, section 4.1)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deformable_detr.ops import ms_deform_attn_fused


class MultiScaleDeformableAttention(nn.Module):
    """Each query samples M · L · P locations near its reference points; offsets and weights are linear in the query.

    Args:
        hidden_dim: C.
        num_heads: M, a divisor of C.
        num_levels: L.
        num_points: P, sampling points per head and level.
    """

    def __init__(self, hidden_dim: int = 256, num_heads: int = 8, num_levels: int = 4, num_points: int = 4) -> None:
        super().__init__()
        if hidden_dim % num_heads:
            raise ValueError(f"hidden_dim {hidden_dim} is not a multiple of num_heads {num_heads}")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = nn.Linear(hidden_dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(hidden_dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(hidden_dim, hidden_dim)
        self.output_proj = nn.Linear(hidden_dim, hidden_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """At first every head looks in its own compass direction, point p at p + 1 pixels, all with the same weight."""
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(compass_grid(self.num_heads, self.num_levels, self.num_points).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        memory: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        padding_mask: Tensor | None,
        value: Tensor | None = None,
    ) -> Tensor:
        """Gather from `memory` for every query.

        Args:
            query: `[B, Q, C]`, content and position added up.
            reference_points: `[B, Q, L, 2]` (x, y) or `[B, Q, L, 4]` (cx, cy, w, h), in [0, 1] of each padded level.
            memory: `[B, S, C]`, the sequence of all levels.
            spatial_shapes: (h, w) of the L levels.
            padding_mask: `[B, S]` bool, True where nothing is to be seen.
            value: what :meth:`value` made of them, where several calls share it. None: it is computed here.

        Returns:
            `[B, Q, C]`.
        """
        value = self.value(memory, padding_mask) if value is None else value
        offsets, logits = self.offsets_and_logits(query)
        output = ms_deform_attn_fused(
            value.unflatten(-1, (self.num_heads, -1)),
            spatial_shapes,
            reference_points,
            offsets,
            logits,
        )
        return self.output_proj(output)

    def value(self, memory: Tensor, padding_mask: Tensor | None) -> Tensor:
        """`[B, S, C]` → what is sampled, `[B, S, C]`: 0 in the padding, `[B, S]` bool."""
        value = self.value_proj(memory)
        return value if padding_mask is None else value.masked_fill(padding_mask[..., None], 0.0)

    def offsets_and_logits(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, Q, C]` → sampling offsets `[B, Q, M, L, P, 2]` and attention logits `[B, Q, M, L, P]` (softmax over L · P)."""
        shape = (self.num_heads, self.num_levels, self.num_points)
        return self.sampling_offsets(query).unflatten(-1, (*shape, 2)), self.attention_weights(query).unflatten(-1, shape)


def compass_grid(num_heads: int, num_levels: int, num_points: int) -> Tensor:
    """`[M, L, P, 2]`: (x, y) on the edge of a square, head m at the angle 2πm / M, point p that far out p + 1 times."""
    angles = torch.arange(num_heads, dtype=torch.float32, device="cpu") * (2 * math.pi / num_heads)
    directions = torch.stack((angles.cos(), angles.sin()), dim=-1)  # [M, 2]
    directions = directions / directions.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, num_points + 1, dtype=torch.float32, device="cpu")  # [P]
    return directions[:, None, None, :] * steps[None, None, :, None].expand(-1, num_levels, -1, -1)
