"""The decoder: queries talk to each other, look at the memory around their reference, and correct their boxes layer by layer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deformable_detr.model.encoder import LayerStack
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

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        reference_points: Tensor,
        memory: Tensor,
        flat: FlatFeatures,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Update the queries.

        Args:
            query: `[B, Q, C]` content.
            query_pos: `[B, Q, C]` position.
            reference_points: `[B, Q, L, 2 | 4]` in [0, 1] of each padded level.
            memory: `[B, S, C]`.
            flat: the sequence that `memory` belongs to.
            attn_mask: of the self-attention, see `Queries`.

        Returns:
            `[B, Q, C]`.
        """
        place = query + query_pos
        talked, _ = self.self_attn(place, place, query, need_weights=False, attn_mask=attn_mask)
        query = self.self_attn_norm(query + self.dropout(talked))
        attended = self.cross_attn(query + query_pos, reference_points, memory, flat.spatial_shapes, flat.padding_mask)
        query = self.cross_attn_norm(query + self.dropout(attended))
        return self.ffn_norm(query + self.dropout(self.ffn(query)))


@dataclass(frozen=True)
class Reference:
    """What a decoder layer starts from, each `[B, Q, 2]` (x, y) or `[B, Q, 4]` (cx, cy, w, h), in [0, 1] of each image."""

    attended: Tensor
    """The layer looks around this."""

    base: Tensor
    """The layer's box head corrects this."""


BoxUpdate = Callable[[nn.Module, Tensor, Tensor, Reference], tuple[Tensor, Reference]]
"""A layer's box head, its output `[B, Q, C]` before and after the decoder's norm, and what it started from → the layer's boxes
`[B, Q, 4]`, and what the next layer starts from."""


def keep_reference(box_head: nn.Module, query: Tensor, hidden: Tensor, reference: Reference) -> tuple[Tensor, Reference]:
    """All layers look around the first reference and correct it."""
    del query
    return apply_box_delta(box_head(hidden), reference.base), reference


def refine_boxes(box_head: nn.Module, query: Tensor, hidden: Tensor, reference: Reference) -> tuple[Tensor, Reference]:
    """Iterative box refinement (paper, app. A.4): each layer corrects the boxes of the one before; no gradient goes back there."""
    del query
    boxes = apply_box_delta(box_head(hidden), reference.base)
    return boxes, Reference(boxes.detach(), boxes.detach())


def given_position(queries: Queries, reference: Tensor, flat: FlatFeatures) -> Tensor:
    """The same position in every layer."""
    del reference, flat
    return queries.query_pos


def given_mask(queries: Queries, before: Tensor, boxes: Tensor) -> Tensor | None:
    """The same mask of the self-attention in every layer."""
    del before, boxes
    return queries.attn_mask


class DeformableDecoder(LayerStack):
    """A stack of decoder layers with their box heads.

    Args:
        layers: N layers, first to last.
        box_heads: one head for all layers, or one for each.
        update_boxes: `keep_reference` or `refine_boxes`.
        norm: what the heads read of a layer's output; the next layer reads it without.
        query_position: the queries, where a layer looks and the sequence → the layer's `query_pos`.
        attn_mask: the queries, and what the layer before started from and made of it → the mask of the layer's self-attention.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        box_heads: Sequence[nn.Module],
        *,
        update_boxes: BoxUpdate,
        norm: nn.Module | None = None,
        query_position: Callable[[Queries, Tensor, FlatFeatures], Tensor] = given_position,
        attn_mask: Callable[[Queries, Tensor, Tensor], Tensor | None] = given_mask,
    ) -> None:
        super().__init__(layers)
        self.box_heads = nn.ModuleList(box_heads)
        self.update_boxes = update_boxes
        self.norm = norm or nn.Identity()
        self.query_position = query_position
        self.attn_mask = attn_mask

    def forward(self, queries: Queries, memory: Tensor, flat: FlatFeatures) -> tuple[Tensor, Tensor]:
        """Run all layers.

        Returns:
            The queries after each layer, `[N, B, Q, C]`, and their boxes, `[N, B, Q, 4]` cxcywh in [0, 1] of each image.
        """
        hidden, boxes = zip(*self.steps(queries, memory, flat), strict=True)
        return torch.stack(hidden), torch.stack(boxes)

    def steps(self, queries: Queries, memory: Tensor, flat: FlatFeatures) -> Iterator[tuple[Tensor, Tensor]]:
        """The queries `[B, Q, C]` and boxes `[B, Q, 4]` after one layer after the other."""
        query, boxes = queries.query, queries.reference_points
        before, reference = boxes, Reference(boxes, boxes)
        for index, layer in enumerate(self.layers):
            query_pos = self.query_position(queries, reference.attended, flat)
            places = on_padded_levels(reference.attended, flat.valid_ratios)
            query = self.run(layer, query, query_pos, places, memory, flat, self.attn_mask(queries, before, boxes))
            hidden, before = self.norm(query), boxes
            box_head = self.box_heads[min(index, len(self.box_heads) - 1)]
            boxes, reference = self.update_boxes(box_head, query, hidden, reference)
            yield hidden, boxes


class LastLayer(nn.Module):
    """A decoder that gives the answer of its last layer alone, N = 1.

    Args:
        decoder: whose layers run.
    """

    def __init__(self, decoder: DeformableDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, queries: Queries, memory: Tensor, flat: FlatFeatures) -> tuple[Tensor, Tensor]:
        """`[1, B, Q, C]` and `[1, B, Q, 4]`, see `DeformableDecoder`."""
        *_, (hidden, boxes) = self.decoder.steps(queries, memory, flat)
        return hidden[None], boxes[None]


def on_padded_levels(reference: Tensor, valid_ratios: Tensor) -> Tensor:
    """References in the frame of the image, `[B, Q, 2 | 4]`, in the frame of each padded level: `[B, Q, L, 2 | 4]`."""
    return reference[:, :, None] * valid_ratios.repeat(1, 1, reference.shape[-1] // 2)[:, None]
