"""The decoder: queries talk to each other, look at the memory around their reference, and correct their boxes layer by layer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deformable_detr.model.heads import apply_box_delta
from deformable_detr.model.queries import Queries
from deformable_detr.structures import FlatFeatures


class DecoderLayer(nn.Module):
    """Self-attention among the queries, deformable cross-attention, feed-forward network; norms after each (paper, section 4.2).

    Args:
        cross_attn: a `MultiScaleDeformableAttention`.
        ffn: a `FeedForward`.
        hidden_dim: C.
        num_heads: M of the self-attention.
        dropout: probability in the self-attention and on all residual branches.
    """

    def __init__(self, cross_attn: nn.Module, ffn: nn.Module, hidden_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(hidden_dim, num_heads, dropout=dropout, batch_first=True)
        self.self_attn_norm = nn.LayerNorm(hidden_dim)
        self.cross_attn = cross_attn
        self.cross_attn_norm = nn.LayerNorm(hidden_dim)
        self.ffn = ffn
        self.ffn_norm = nn.LayerNorm(hidden_dim)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.self_attn.out_proj.weight)

    def forward(self, query: Tensor, query_pos: Tensor, reference_points: Tensor, memory: Tensor, flat: FlatFeatures) -> Tensor:
        """`[B, Q, C]` → `[B, Q, C]`; `reference_points` `[B, Q, L, 2 | 4]` in [0, 1] of each padded level."""
        place = query + query_pos
        query = self.self_attn_norm(query + self.dropout(self.self_attn(place, place, query, need_weights=False)[0]))
        attended = self.cross_attn(query + query_pos, reference_points, memory, flat.spatial_shapes, flat.padding_mask)
        query = self.cross_attn_norm(query + self.dropout(attended))
        return self.ffn_norm(query + self.dropout(self.ffn(query)))


class DeformableDecoder(nn.Module):
    """A stack of decoder layers with their box heads.

    Args:
        layers: N layers, first to last.
        box_heads: one head for all layers, or one for each.
        box_refinement: each layer samples around the boxes of the one before it and corrects them; otherwise all layers
            correct the first reference.
    """

    def __init__(self, layers: Sequence[nn.Module], box_heads: Sequence[nn.Module], *, box_refinement: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.box_heads = nn.ModuleList(box_heads)
        self.box_refinement = box_refinement
        self.gradient_checkpointing = False

    def forward(self, queries: Queries, memory: Tensor, flat: FlatFeatures) -> tuple[Tensor, Tensor]:
        """Run all layers.

        Returns:
            The queries after each layer, `[N, B, Q, C]`, and their boxes, `[N, B, Q, 4]` cxcywh in [0, 1] of each image.
        """
        query, reference = queries.query, queries.reference_points
        hidden, boxes = [], []
        for index, layer in enumerate(self.layers):
            arguments = query, queries.query_pos, on_padded_levels(reference, flat.valid_ratios), memory, flat
            if self.gradient_checkpointing and self.training:
                query = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                query = layer(*arguments)
            box_head = self.box_heads[min(index, len(self.box_heads) - 1)]
            hidden.append(query)
            boxes.append(apply_box_delta(box_head(query), reference))
            if self.box_refinement:
                reference = boxes[-1].detach()
        return torch.stack(hidden), torch.stack(boxes)


def on_padded_levels(reference: Tensor, valid_ratios: Tensor) -> Tensor:
    """References in the frame of the image, `[B, Q, 2 | 4]`, in the frame of each padded level: `[B, Q, L, 2 | 4]`."""
    return reference[:, :, None] * valid_ratios.repeat(1, 1, reference.shape[-1] // 2)[:, None]
