"""The suppressor: a last layer that silences all but one of the queries that found the same object (MDS-DETR).

The layers before it learn one-to-many, which takes few steps. It alone learns one-to-one: which query of an object is to speak.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deformable_detr.boxes import cxcywh_to_xyxy, elementwise_iou
from deformable_detr.model.heads import MLP
from deformable_detr.model.position_encoding import sine_embedding
from deformable_detr.model.relation import box_relations
from deformable_detr.structures import Predictions

NUM_TOKENS = 10
RELATION_FEATURES = 8
"""Of each of the four relations of a pair. With 32, 300 queries took five times as long, and nothing was learned better for it."""

OVERLAP_SLOPE, OVERLAP_START, STRENGTH = 20.0, 0.6, 5.0
"""The initial values of what a better query that overlaps costs: half the strength at an IoU of .6, nearly all of it at .8."""


class MaskedSuppressor(nn.Module):
    """Self-attention in which a query sees only those with a higher score, and a feed-forward network; both without positions.

    What comes out is one number for each query, which is added to the logits of all its classes. A second one is taken off: a
    strength times the gate of the better query that overlaps most, sigmoid(slope · IoU · likeness of the classes - offset), with
    strength, slope and offset learned. So the layer starts as a soft suppression of overlaps, which it does not find by itself
    in a thousand steps (docs/learning.md), and learns what boxes alone do not say. The one-to-one loss reaches the queries, but
    neither their logits nor their boxes, which learn one-to-many alone.

    Args:
        ffn: a `FeedForward`.
        hidden_dim: C.
        num_heads: M.
    """

    def __init__(self, ffn: nn.Module, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_proj = nn.Linear(hidden_dim, hidden_dim)
        self.key_proj = nn.Linear(hidden_dim, hidden_dim)
        self.value_proj = nn.Linear(hidden_dim, hidden_dim)
        self.output_proj = nn.Linear(hidden_dim, hidden_dim)
        self.attn_norm = nn.LayerNorm(hidden_dim)
        self.ffn = ffn
        self.ffn_norm = nn.LayerNorm(hidden_dim)
        self.score_head = nn.Linear(hidden_dim, 1)
        self.overlap_gate = nn.Linear(1, 1)
        self.strength = nn.Parameter(torch.tensor(STRENGTH))
        self.tokens = nn.Parameter(torch.empty(NUM_TOKENS, 2 * hidden_dim))
        self.token_bias = nn.Parameter(torch.full((num_heads,), -math.log(NUM_TOKENS)))
        self.relation = MLP(4 * RELATION_FEATURES, 4 * RELATION_FEATURES, num_heads, num_layers=2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """At first only the overlap of the boxes has an influence."""
        for projection in (self.query_proj, self.key_proj, self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
        nn.init.xavier_uniform_(self.tokens)
        for last in (self.relation.layers[-1], self.score_head):
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        nn.init.constant_(self.overlap_gate.weight, OVERLAP_SLOPE)
        nn.init.constant_(self.overlap_gate.bias, -OVERLAP_SLOPE * OVERLAP_START)

    def forward(self, predictions: Predictions, hidden: Tensor) -> Predictions:
        """Replace the logits of the last layer.

        Args:
            predictions: of the layers before, N of them.
            hidden: `[N, B, Q, C]`, what the heads have read.

        Returns:
            In training one layer, with the boxes of the last one, and the N layers as the one-to-many branch; otherwise N layers.
        """
        logits, boxes = predictions.logits[-1].detach(), predictions.boxes[-1].detach()
        query = hidden[-1]
        scores = logits.amax(-1)
        unseen = scores[:, :, None] >= scores[:, None, :]  # [B, Q, Q]: queries that are no better, and each itself
        query = self.attn_norm(query + self.attend(query, self.bias(unseen, boxes)))
        query = self.ffn_norm(query + self.ffn(query))
        last = (logits + self.score_head(query) - self.covered(unseen, boxes, logits.sigmoid()))[None]
        if not self.training:
            return replace(predictions, logits=torch.cat((predictions.logits[:-1], last)))
        return replace(
            predictions,
            logits=last,
            boxes=boxes[None],
            one_to_many_logits=predictions.logits,
            one_to_many_boxes=predictions.boxes,
        )

    def attend(self, query: Tensor, bias: Tensor) -> Tensor:
        """`[B, Q, C]` and :meth:`bias` → what each query saw, `[B, Q, C]`."""
        token_keys, token_values = self.tokens.to(query.dtype).expand(query.shape[0], -1, -1).chunk(2, dim=-1)
        keys, values = torch.cat((self.key_proj(query), token_keys), 1), torch.cat((self.value_proj(query), token_values), 1)
        heads = [x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (self.query_proj(query), keys, values)]
        seen = F.scaled_dot_product_attention(*heads, attn_mask=bias.to(query.dtype))
        return self.output_proj(seen.transpose(1, 2).flatten(2))

    def covered(self, unseen: Tensor, boxes: Tensor, probabilities: Tensor) -> Tensor:
        """What is taken off for the better query whose box overlaps most.

        Args:
            unseen: `[B, Q, Q]` bool.
            boxes: `[B, Q, 4]` cxcywh.
            probabilities: `[B, Q, K]`; the likeness of two queries' classes is the cosine of the angle between them.

        Returns:
            `[B, Q, 1]`
        """
        classes = F.normalize(probabilities, dim=-1)
        corners = cxcywh_to_xyxy(boxes)
        overlaps = elementwise_iou(corners[:, :, None], corners[:, None])
        alike = overlaps.to(classes.dtype) * (classes @ classes.transpose(1, 2))  # [B, Q, Q]
        gates = self.overlap_gate(alike[..., None])[..., 0].sigmoid().masked_fill(unseen, 0.0)
        return self.strength * gates.amax(-1, keepdim=True)

    def bias(self, unseen: Tensor, boxes: Tensor) -> Tensor:
        """What is added to the attention's logits: of pairs the relation of their boxes, or minus infinity; then of the tokens.

        Args:
            unseen: `[B, Q, Q]` bool, True where row i may not see column j.
            boxes: `[B, Q, 4]` cxcywh.

        Returns:
            `[B, M, Q, Q + NUM_TOKENS]`
        """
        encoded = sine_embedding(box_relations(boxes, boxes), RELATION_FEATURES)  # [B, Q, Q, 32]
        pairs = self.relation(encoded.to(self.tokens.dtype)).movedim(-1, 1)  # [B, M, Q, Q]
        pairs = (pairs + pairs.transpose(2, 3)) / 2
        pairs = pairs.masked_fill(unseen[:, None], float("-inf"))
        tokens = self.token_bias[:, None, None].expand(boxes.shape[0], -1, boxes.shape[1], NUM_TOKENS)
        return torch.cat((pairs, tokens.to(pairs.dtype)), dim=-1)


class NoSuppressor(nn.Module):
    """The part of a model whose layers all learn one-to-one."""

    def forward(self, predictions: Predictions, hidden: Tensor) -> Predictions:
        """The predictions as they are."""
        del hidden
        return predictions
