"""The encoder: every position of every level attends to a few sampling locations on all levels (paper, section 4.2)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deformable_detr.structures import FlatFeatures


class FeedForward(nn.Module):
    """Linear, ReLU, dropout, Linear; the residual and the norm belong to the layer around it.

    Args:
        hidden_dim: C.
        ffn_dim: width between the two linear maps.
        dropout: probability between them.
    """

    def __init__(self, hidden_dim: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(hidden_dim, ffn_dim)
        self.activation = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(ffn_dim, hidden_dim)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., C]` → `[..., C]`."""
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


class EncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward network, each with residual and norm after it.

    Args:
        self_attn: a `MultiScaleDeformableAttention`.
        ffn: a `FeedForward`.
        hidden_dim: C.
        dropout: probability on both residual branches.
    """

    def __init__(self, self_attn: nn.Module, ffn: nn.Module, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.self_attn_norm = nn.LayerNorm(hidden_dim)
        self.ffn = ffn
        self.ffn_norm = nn.LayerNorm(hidden_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, flat: FlatFeatures) -> Tensor:
        """`[B, S, C]` → `[B, S, C]`: what the layer before gave, and the sequence that the encoder started from."""
        query = features + flat.positions
        attended = self.self_attn(query, flat.reference_points, features, flat.spatial_shapes, flat.padding_mask)
        features = self.self_attn_norm(features + self.dropout(attended))
        return self.ffn_norm(features + self.dropout(self.ffn(features)))


class LayerStack(nn.Module):
    """Layers of one kind, first to last."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.gradient_checkpointing = False
        """In training keep only each layer's input for the backward pass, and run the layer again."""

    def run(self, layer: nn.Module, *inputs: Any) -> Tensor:
        """One layer's output."""
        if self.gradient_checkpointing and self.training:
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)


class DeformableEncoder(LayerStack):
    """A stack of encoder layers over the flattened sequence."""

    def forward(self, flat: FlatFeatures) -> Tensor:
        """The sequence → `memory`, `[B, S, C]`."""
        memory = flat.features
        for layer in self.layers:
            memory = self.run(layer, memory, flat)
        return memory
