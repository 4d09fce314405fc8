"""The suppressor: a last layer that silences all but one of the queries that found the same object (after MDS-DETR).

The layers before it learn one-to-many, which takes few steps. It alone learns one-to-one: which query of an object is to speak.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deformable_detr.boxes import cxcywh_to_xyxy, elementwise_iou
from deformable_detr.structures import Predictions

OVERLAP_SLOPE, OVERLAP_START, STRENGTH = 20.0, 0.6, 5.0
"""The initial values of what a better query that overlaps costs: half the strength at an IoU of .6, nearly all of it at .8."""


class Suppressor(nn.Module):
    """Adds two numbers to each query's logits: what its content says, and less for a better query that overlaps it.

    The first is a linear map of the content behind one more feed-forward network: the decoder's self-attention has told the query
    which others there are. The second is a strength times the gate of the better query that overlaps most,
    sigmoid(slope · IoU · likeness of the classes - offset), with strength, slope and offset learned. So the layer starts as a soft
    suppression of overlaps, which it does not find by itself in a thousand steps, and learns what boxes alone do not say. MDS-DETR
    has a masked self-attention in this place, which gained nothing beside that (docs/learning.md). The one-to-one loss reaches the
    queries, but neither their logits nor their boxes, which learn one-to-many alone.

    Args:
        ffn: a `FeedForward`.
        hidden_dim: C.
    """

    def __init__(self, ffn: nn.Module, hidden_dim: int) -> None:
        super().__init__()
        self.ffn = ffn
        self.norm = nn.LayerNorm(hidden_dim)
        self.score_head = nn.Linear(hidden_dim, 1)
        self.overlap_gate = nn.Linear(1, 1)
        self.strength = nn.Parameter(torch.tensor(STRENGTH))
        nn.init.zeros_(self.score_head.weight)  # at first only the overlap of the boxes has an influence
        nn.init.zeros_(self.score_head.bias)
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
        logits, boxes, query = predictions.logits[-1].detach(), predictions.boxes[-1].detach(), hidden[-1]
        own = self.score_head(self.norm(query + self.ffn(query)))
        last = (logits + own - self.covered(logits.amax(-1), boxes, logits.sigmoid()))[None]
        if not self.training:
            return replace(predictions, logits=torch.cat((predictions.logits[:-1], last)))
        return replace(
            predictions,
            logits=last,
            boxes=boxes[None],
            one_to_many_logits=predictions.logits,
            one_to_many_boxes=predictions.boxes,
        )

    def covered(self, scores: Tensor, boxes: Tensor, probabilities: Tensor) -> Tensor:
        """What is taken off for the better query whose box overlaps most.

        Args:
            scores: `[B, Q]`; of two equal ones, which are frequent in bfloat16, the first is better.
            boxes: `[B, Q, 4]` cxcywh.
            probabilities: `[B, Q, K]`; the likeness of two queries' classes is the cosine of the angle between them.

        Returns:
            `[B, Q, 1]`
        """
        classes = F.normalize(probabilities, dim=-1)
        corners = cxcywh_to_xyxy(boxes)
        overlaps = elementwise_iou(corners[:, :, None], corners[:, None])
        alike = overlaps.to(classes.dtype) * (classes @ classes.transpose(1, 2))  # [B, Q, Q]
        rank = torch.arange(scores.shape[1], dtype=torch.int64, device=scores.device)
        own, other = scores[:, :, None], scores[:, None]
        no_better = (own > other) | ((own == other) & (rank >= rank[:, None]))
        gates = self.overlap_gate(alike[..., None])[..., 0].masked_fill(no_better, -math.inf)
        return self.strength * gates.amax(-1, keepdim=True).sigmoid()  # of the largest alone: the sigmoid keeps the order


class NoSuppressor(nn.Module):
    """The part of a model whose layers all learn one-to-one."""

    def forward(self, predictions: Predictions, hidden: Tensor) -> Predictions:
        """The predictions as they are."""
        del hidden
        return predictions
