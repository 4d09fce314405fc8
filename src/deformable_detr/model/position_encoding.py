"""Sine encodings: of every position of a feature map, and of boxes (DETR, app. A.4; Deformable DETR, app. A.4)."""

import math

import torch
from torch import Tensor, nn

TEMPERATURE = 10_000.0
SCALE = 2 * math.pi


def sine_embedding(coordinates: Tensor, num_features: int, temperature: float = TEMPERATURE) -> Tensor:
    """Sines and cosines of each coordinate at `num_features / 2` frequencies.

    Args:
        coordinates: `[..., A]`, already in radians (a share of the image times 2π).
        num_features: features per coordinate, even.
        temperature: the lowest frequency is nearly one over this.

    Returns:
        `[..., A * num_features]`, float32; the axes one after the other, sine and cosine in turn.
    """
    pair = torch.arange(num_features // 2, dtype=torch.float32, device=coordinates.device)
    angles = coordinates.float()[..., None] / temperature ** (2 * pair / num_features)  # [..., A, F / 2]
    # on a CPU, stacking along the last dimension takes two to three times as long as this
    return torch.stack((angles.sin(), angles.cos())).movedim(0, -1).flatten(-3)


class SinePositionEncoding(nn.Module):
    """Encodes the coordinates of each position, relative to the image's own size and not the padded canvas.

    Args:
        hidden_dim: C; half of it goes to y, half to x.
        temperature: see :func:`sine_embedding`. DINO: 20.
        offset: what is taken off the number of the pixel, counted from 1. DINO: 0.
    """

    def __init__(self, hidden_dim: int, *, temperature: float = TEMPERATURE, offset: float = 0.5) -> None:
        super().__init__()
        self.hidden_dim, self.temperature, self.offset = hidden_dim, temperature, offset

    def forward(self, padding_mask: Tensor) -> Tensor:
        """`[B, h, w]` bool (True = padding) → `[B, h, w, C]` float32, first the features of y, then those of x."""
        inside = ~padding_mask
        y = inside.cumsum(1, dtype=torch.float32)  # [B, h, w]: 1, 2, … down the image
        x = inside.cumsum(2, dtype=torch.float32)
        y = (y - self.offset) / (y[:, -1:, :] + 1e-6) * SCALE
        x = (x - self.offset) / (x[:, :, -1:] + 1e-6) * SCALE
        return sine_embedding(torch.stack((y, x), dim=-1), self.hidden_dim // 2, self.temperature)
