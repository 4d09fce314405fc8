"""The encoder: every position of every level looks at a few places on all levels (paper, section 4.2)."""

from collections.abc import Sequence

import torch
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

    def forward(self, features: Tensor, reference_points: Tensor, flat: FlatFeatures) -> Tensor:
        """`[B, S, C]` → `[B, S, C]`; `reference_points` `[B, S, L, 2]` in [0, 1] of each padded level."""
        query = features + flat.positions
        attended = self.self_attn(query, reference_points, features, flat.spatial_shapes, flat.padding_mask)
        features = self.self_attn_norm(features + self.dropout(attended))
        return self.ffn_norm(features + self.dropout(self.ffn(features)))


class DeformableEncoder(nn.Module):
    """A stack of encoder layers over the flattened sequence.

    Args:
        layers: the layers, first to last.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.gradient_checkpointing = False

    def forward(self, flat: FlatFeatures) -> Tensor:
        """The sequence → `memory`, `[B, S, C]`."""
        reference_points = encoder_reference_points(flat.spatial_shapes, flat.valid_ratios)
        memory = flat.features
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                memory = checkpoint(layer, memory, reference_points, flat, use_reentrant=False)
            else:
                memory = layer(memory, reference_points, flat)
        return memory


def pixel_centres(spatial_shapes: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
    """For each level the centres (x, y) of its positions in pixels of that level: `[h * w, 2]`, row by row."""
    centres = []
    for height, width in spatial_shapes:
        y = torch.arange(height, dtype=torch.float32, device=device) + 0.5
        x = torch.arange(width, dtype=torch.float32, device=device) + 0.5
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        centres.append(torch.stack((grid_x, grid_y), dim=-1).flatten(0, 1))
    return centres


def encoder_reference_points(spatial_shapes: Sequence[tuple[int, int]], valid_ratios: Tensor) -> Tensor:
    """Each position's own place, on every level.

    Args:
        spatial_shapes: (h, w) of the L levels.
        valid_ratios: `[B, L, 2]` (x, y).

    Returns:
        `[B, S, L, 2]` (x, y) in [0, 1] of each padded level, float32.
    """
    places = []
    for level, ((height, width), centres) in enumerate(
        zip(spatial_shapes, pixel_centres(spatial_shapes, valid_ratios.device), strict=True)
    ):
        size = torch.stack((valid_ratios[:, level, 0] * width, valid_ratios[:, level, 1] * height), dim=-1)  # [B, 2] of the image
        places.append(centres[None] / size[:, None])
    return torch.cat(places, dim=1)[:, :, None] * valid_ratios[:, None]
