"""The position of a query from the box that its layer looks around, anew in every decoder layer (DAB-DETR; DINO, section 3.2)."""

import torch
from torch import Tensor, nn

from deformable_detr.model.heads import MLP
from deformable_detr.model.position_encoding import SCALE, sine_embedding
from deformable_detr.model.queries import Queries
from deformable_detr.structures import FlatFeatures


class PositionMLP(MLP):
    """Sine encoding of the reference box, then two linear layers.

    Args:
        hidden_dim: C, even.
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__(2 * hidden_dim, hidden_dim, hidden_dim, num_layers=2)
        self.num_features = hidden_dim // 2
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]

    def forward(self, queries: Queries, reference: Tensor, flat: FlatFeatures) -> Tensor:  # type: ignore[override]
        """References `[B, Q, 4]` cxcywh of each image → `[B, Q, C]`; encoded in the frame of the padded finest level."""
        boxes = reference * flat.valid_ratios[:, None, 0].repeat(1, 1, 2)
        x, y, *size = boxes.split(1, dim=-1)  # a list of places would be copied to a GPU, which waits for it
        encoded = sine_embedding(torch.cat((y, x, *size), dim=-1) * SCALE, self.num_features)
        return super().forward(encoded.to(queries.query.dtype))
