"""A bias of the self-attention from the relative position of two queries' boxes (Relation-DETR, section 4.2)."""

import torch
from torch import Tensor, nn

from deformable_detr.model.position_encoding import sine_embedding

EPS = 1e-5
SCALE = 100.0
FEATURES = 16


class PositionRelation(nn.Module):
    """Four relations of each pair of boxes, encoded by sines, and one linear map to a bias for each head.

    Args:
        num_heads: M of the self-attention.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.proj = nn.Linear(4 * FEATURES, num_heads)

    def forward(self, layer: int, before: Tensor, boxes: Tensor, mask: Tensor | None) -> Tensor | None:
        """The mask of a layer's self-attention with the bias in it.

        Args:
            layer: its number; the first one has no bias.
            before: `[B, Q, 4]` cxcywh, the boxes that the layer before started from; the rows.
            boxes: `[B, V, 4]`, what it made of them; the columns.
            mask: `[Q, V]`, minus infinity where a row may not see a column, else 0.

        Returns:
            `[B, M, Q, V]`, minus infinity where masked.
        """
        if layer == 0:
            return mask
        encoded = sine_embedding(box_relations(before.detach(), boxes.detach()) * SCALE, FEATURES)  # [B, Q, V, 64]
        bias = self.proj(encoded.to(next(self.parameters(), encoded).dtype)).relu().movedim(-1, 1)
        return bias if mask is None else bias + mask


def box_relations(rows: Tensor, columns: Tensor) -> Tensor:
    """Distances and ratios of sizes of every pair, on a logarithmic scale.

    Args:
        rows: `[B, Q, 4]` cxcywh.
        columns: `[B, V, 4]` cxcywh.

    Returns:
        `[B, Q, V, 4]`: of x, y, width and height.
    """
    centre, size = rows[:, :, None, :2], rows[:, :, None, 2:]
    other_centre, other_size = columns[:, None, :, :2], columns[:, None, :, 2:]
    distance = ((centre - other_centre).abs() / (size + EPS) + 1).log()
    return torch.cat((distance, ((size + EPS) / (other_size + EPS)).log()), dim=-1)
