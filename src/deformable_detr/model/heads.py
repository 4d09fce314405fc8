"""What is read off a query: its class logits and the correction of its box (paper, app. A.3)."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from deformable_detr.boxes import inverse_sigmoid

PRIOR_PROBABILITY = 0.01


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        in_dim: width of the input.
        hidden_dim: width between the layers.
        out_dim: width of the output.
        num_layers: number of linear layers.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(widths)])

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_dim]` → `[..., out_dim]`."""
        for layer in list(self.layers)[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class BoxHead(MLP):
    """Three layers that predict a correction of (cx, cy, w, h) in logit space; at first it corrects nothing.

    Args:
        hidden_dim: C.
        size_bias: initial bias of w and h (official: -2 for the first head of a one-stage model, so that boxes start small).
    """

    def __init__(self, hidden_dim: int, size_bias: float = 0.0) -> None:
        super().__init__(hidden_dim, hidden_dim, 4, num_layers=3)
        last: nn.Linear = self.layers[-1]  # type: ignore[assignment]
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(last.bias.new_tensor([0.0, 0.0, size_bias, size_bias]))


def class_head(hidden_dim: int, num_classes: int) -> nn.Linear:
    """A linear map to K logits whose bias makes every class improbable (0.01) at first, as the focal loss wants it."""
    head = nn.Linear(hidden_dim, num_classes)
    nn.init.constant_(head.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))
    return head


class ClassHeads(nn.ModuleList):
    """One class head for all decoder layers, or one for each."""

    def forward(self, hidden: Tensor, first_layer: int = 0) -> Tensor:
        """Queries after each layer from that one on, `[N, B, Q, C]` → logits `[N, B, Q, K]`."""
        return torch.stack([self[min(layer, len(self) - 1)](queries) for layer, queries in enumerate(hidden, first_layer)])


def apply_box_delta(delta: Tensor, reference: Tensor, eps: float = 1e-5) -> Tensor:
    """Correct a reference in logit space, in float32: boxes in bfloat16 would be several pixels coarse.

    Args:
        delta: `[..., 4]`.
        reference: `[..., 2]` (x, y) or `[..., 4]` (cx, cy, w, h), in [0, 1] of the image.
        eps: the reference is kept this far from 0 and 1.

    Returns:
        `[..., 4]` cxcywh in [0, 1] of the image, float32.
    """
    logits = inverse_sigmoid(reference.float(), eps)
    if reference.shape[-1] == 2:
        logits = torch.cat((logits, torch.zeros_like(logits)), dim=-1)
    return (delta.float() + logits).sigmoid()
