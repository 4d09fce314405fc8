"""The decoder: queries attend to each other and to the memory around their reference, and correct their boxes layer by layer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deformable_detr.model.encoder import LayerStack
from deformable_detr.model.heads import apply_box_delta
from deformable_detr.model.queries import Queries
from deformable_detr.structures import FlatFeatures


@dataclass(frozen=True)
class Seen:
    """What one layer looked at, for further queries that look there, too: the queries as its self-attention compared them."""

    content: Tensor
    """`[B, V, C]`"""

    place: Tensor
    """`[B, V, C]` content and position added up."""

    boxes: Tensor
    """`[B, V, 4]` boxes of the layer before; in the first layer the references, which may be `[B, V, 2]`."""

    value: Tensor | None
    """`[B, S, C]` what its cross-attention sampled; None where that is computed anew, see `DeformableDecoder.values`."""


class SelfAttention(nn.MultiheadAttention):
    """The weights, names and results of `nn.MultiheadAttention`, without its transposed copies and its forty small operations.

    Args:
        hidden_dim: C.
        num_heads: M.
        dropout: probability of an attention weight.
    """

    def __init__(self, hidden_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__(hidden_dim, num_heads, dropout=dropout, batch_first=True)

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Attend.

        Args:
            query: `[B, Q, C]`.
            key: `[B, V, C]`.
            value: `[B, V, C]`.
            attn_mask: added to the logits, minus infinity where row i may not see column j: `[Q, V]` or `[B, M, Q, V]`.

        Returns:
            `[B, Q, C]`, and None in place of the weights, as torch's module gives them.
        """
        projections = zip((query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        heads = [F.linear(*inputs).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for inputs in projections]
        mask = None if attn_mask is None else attn_mask.to(heads[0].dtype)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


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
        self.self_attn = SelfAttention(hidden_dim, num_heads, dropout)
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
        seen: Seen | None = None,
        value: Tensor | None = None,
    ) -> Tensor:
        """Update the queries.

        Args:
            query: `[B, Q, C]` content.
            query_pos: `[B, Q, C]` position.
            reference_points: `[B, Q, L, 2 | 4]` in [0, 1] of each padded level.
            memory: `[B, S, C]`.
            flat: the sequence that `memory` belongs to.
            attn_mask: of the self-attention, see `Queries`; with `seen`, columns of those follow.
            seen: V further queries that these see in the self-attention, and which do not see these.
            value: of the cross-attention, where it has been computed.

        Returns:
            `[B, Q, C]`.
        """
        place = query + query_pos
        keys, values = (place, query) if seen is None else (torch.cat((place, seen.place), 1), torch.cat((query, seen.content), 1))
        talked, _ = self.self_attn(place, keys, values, attn_mask)
        query = self.self_attn_norm(query + self.dropout(talked))
        attended = self.cross_attn(query + query_pos, reference_points, memory, flat.spatial_shapes, flat.padding_mask, value)
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
`[B, Q, 4]`, and what the next layer starts from. Its keywords say how far what it corrects is kept from 0 and 1: for the next layer
`eps`, for the boxes given out `output_eps`."""


def keep_reference(
    box_head: nn.Module, query: Tensor, hidden: Tensor, reference: Reference, *, eps: float, output_eps: float
) -> tuple[Tensor, Reference]:
    """All layers look around the first reference and correct it."""
    del query, eps
    return apply_box_delta(box_head(hidden), reference.base, output_eps), reference


def refine_boxes(
    box_head: nn.Module, query: Tensor, hidden: Tensor, reference: Reference, *, eps: float, output_eps: float
) -> tuple[Tensor, Reference]:
    """Iterative box refinement (paper, app. A.4): each layer corrects the boxes of the one before; no gradient goes back there."""
    boxes = apply_box_delta(box_head(hidden), reference.base, output_eps)
    following = boxes.detach()
    if query is not hidden or eps != output_eps:  # what the next layer starts from is not what is given out
        with torch.no_grad():
            following = apply_box_delta(box_head(query), reference.attended, eps)
    return boxes, Reference(following, following)


def look_forward_twice(
    box_head: nn.Module, query: Tensor, hidden: Tensor, reference: Reference, *, eps: float, output_eps: float
) -> tuple[Tensor, Reference]:
    """Refinement in which the loss of a layer's boxes also reaches the layer before, but no further (DINO, section 3.5).

    The next layer looks around its reference without gradient, and corrects it with gradient. That reference comes from the layer's
    output before the norm, and from where the layer looked, which has no gradient.
    """
    delta = box_head(hidden)
    boxes = apply_box_delta(delta, reference.base, output_eps)
    following = apply_box_delta(delta if query is hidden else box_head(query), reference.attended, eps)
    return boxes, Reference(following.detach(), following)


def given_position(queries: Queries, reference: Tensor, flat: FlatFeatures) -> Tensor:
    """The same position in every layer."""
    del reference, flat
    return queries.query_pos


def no_bias(layer: int, before: Tensor, boxes: Tensor, mask: Tensor | None) -> Tensor | None:
    """The same mask in every layer."""
    del layer, before, boxes
    return mask


class Decoded(NamedTuple):
    """What a decoder gives."""

    hidden: Tensor
    """`[N, B, Q, C]` the queries after each layer."""

    boxes: Tensor
    """`[N, B, Q, 4]` their boxes, cxcywh in [0, 1] of each image."""

    seen: tuple[Seen, ...] = ()
    """The queries in each layer's self-attention, for queries that exist in training alone; empty outside training."""


class DeformableDecoder(LayerStack):
    """A stack of decoder layers with their box heads.

    Args:
        layers: N layers, first to last.
        box_heads: one head for all layers, or one for each.
        update_boxes: `keep_reference`, `refine_boxes` or `look_forward_twice`.
        norm: what the heads read of a layer's output; the next layer reads it without.
        position_mlp: the queries, where a layer looks and the sequence → the layer's `query_pos`; see `position_mlp.py`.
        relation: number of the layer, boxes before and after the layer before it, and the mask of the self-attention → the mask
            with a bias for pairs of boxes; see `relation.py`.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        box_heads: Sequence[nn.Module],
        *,
        update_boxes: BoxUpdate,
        norm: nn.Module | None = None,
        position_mlp: Callable[[Queries, Tensor, FlatFeatures], Tensor] = given_position,
        relation: Callable[[int, Tensor, Tensor, Tensor | None], Tensor | None] = no_bias,
    ) -> None:
        super().__init__(layers)
        self.box_heads = nn.ModuleList(box_heads)
        self.update_boxes = update_boxes
        self.norm = norm or nn.Identity()
        self.position_mlp = position_mlp
        self.relation = relation

    def forward(
        self,
        queries: Queries,
        memory: Tensor,
        flat: FlatFeatures,
        others: Sequence[Seen] = (),
        values: Sequence[Tensor | None] = (),
    ) -> Decoded:
        """Run all layers.

        Args:
            queries: what goes in.
            memory: `[B, S, C]`.
            flat: the sequence that `memory` belongs to.
            others: for each layer the queries that these see beside themselves. Empty: none.
            values: `Seen.value` of each layer in another pass over the same memory. Empty: they are computed.
        """
        hidden, boxes, seen = zip(*self.steps(queries, memory, flat, others, values), strict=True)
        return Decoded(torch.stack(hidden), torch.stack(boxes), seen if self.training else ())

    def steps(
        self,
        queries: Queries,
        memory: Tensor,
        flat: FlatFeatures,
        others: Sequence[Seen] = (),
        values: Sequence[Tensor | None] = (),
    ) -> Iterator[tuple[Tensor, Tensor, Seen]]:
        """The queries `[B, Q, C]` and boxes `[B, Q, 4]` after one layer after the other, and what it saw; arguments as above."""
        query, boxes = queries.query, queries.reference_points
        before, reference = boxes, Reference(boxes, boxes)
        mask = queries.attn_mask
        if mask is not None and others:  # which are all seen
            mask = F.pad(mask, (0, others[0].content.shape[1]))
        looked_at = zip(self.layers, others or [None] * len(self.layers), values or self.values(memory, flat), strict=True)
        for index, (layer, other, value) in islice(enumerate(looked_at), queries.first_layer, None):
            query_pos = self.position_mlp(queries, reference.attended, flat)
            places = on_padded_levels(reference.attended, flat.valid_ratios)
            seen = Seen(query, query + query_pos, boxes, value)
            bias = self.relation(index, before, boxes if other is None else _beside(boxes, other.boxes), mask)
            query = self.run(layer, query, query_pos, places, memory, flat, bias, other, value)
            hidden, before = self.norm(query), boxes
            box_head = self.box_heads[min(index, len(self.box_heads) - 1)]
            boxes, reference = self.update_boxes(box_head, query, hidden, reference)
            yield hidden, boxes, seen

    def values(self, memory: Tensor, flat: FlatFeatures) -> list[Tensor | None]:
        """What each layer's cross-attention samples, `[B, S, C]`, for all passes of a training step.

        None where a layer computes it itself: outside training nobody else needs it, and gradient checkpointing keeps nothing that
        can be computed again.
        """
        if not self.training or self.gradient_checkpointing:
            return [None] * len(self.layers)
        return [layer.cross_attn.value(memory, flat.padding_mask) for layer in self.layers]  # type: ignore[operator, union-attr]


def on_padded_levels(reference: Tensor, valid_ratios: Tensor) -> Tensor:
    """References in the frame of the image, `[B, Q, 2 | 4]`, in the frame of each padded level: `[B, Q, L, 2 | 4]`."""
    return reference[:, :, None] * valid_ratios.repeat(1, 1, reference.shape[-1] // 2)[:, None]


def _beside(boxes: Tensor, others: Tensor) -> Tensor:
    """Boxes `[B, Q, 4]` and, in the same form, those of the queries that are seen; references of the first layer may be points."""
    return torch.cat((boxes, others), dim=1) if boxes.shape[-1] == others.shape[-1] else boxes
