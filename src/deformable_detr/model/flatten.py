"""L levels → one sequence, with positions, padding mask and valid ratios; all of them are computed here, once."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deformable_detr.model.position_encoding import SinePositionEncoding
from deformable_detr.structures import FlatFeatures


class FlattenLevels(nn.Module):
    """Adds the sine position and the level's embedding to each position (paper, app. A.2) and joins the levels.

    Args:
        hidden_dim: C.
        num_levels: L.
    """

    def __init__(self, hidden_dim: int, num_levels: int) -> None:
        super().__init__()
        self.position_encoding = SinePositionEncoding(hidden_dim)
        self.level_embed = nn.Parameter(torch.randn(num_levels, hidden_dim))

    def forward(self, levels: Sequence[Tensor], padding_masks: Sequence[Tensor]) -> FlatFeatures:
        """L maps `[B, C, h, w]` and their masks `[B, h, w]` (True = padding) → the sequence."""
        features = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)  # [B, S, C]
        return FlatFeatures(
            features=features,
            positions=self.positions(padding_masks).to(features.dtype),
            padding_mask=torch.cat([mask.flatten(1) for mask in padding_masks], dim=1),
            spatial_shapes=tuple((level.shape[2], level.shape[3]) for level in levels),
            valid_ratios=torch.stack([valid_ratio(mask) for mask in padding_masks], dim=1),
        )

    def positions(self, padding_masks: Sequence[Tensor]) -> Tensor:
        """Masks `[B, h, w]` of the L levels → the sine position plus the level's embedding of each position, `[B, S, C]`."""
        encoded = [
            self.position_encoding(mask).flatten(1, 2) + embed for mask, embed in zip(padding_masks, self.level_embed, strict=True)
        ]  # L x [B, h * w, C]
        return torch.cat(encoded, dim=1)


def valid_ratio(padding_mask: Tensor) -> Tensor:
    """`[B, h, w]` → `[B, 2]` float32 (x, y): the share of the width and height that is image and not padding."""
    height, width = padding_mask.shape[1:]
    valid_y = (~padding_mask[:, :, 0]).sum(1, dtype=torch.float32) / height
    valid_x = (~padding_mask[:, 0, :]).sum(1, dtype=torch.float32) / width
    return torch.stack((valid_x, valid_y), dim=-1)


def resize_padding_mask(padding_mask: Tensor, levels: Sequence[Tensor]) -> list[Tensor]:
    """The mask `[B, H, W]` of the canvas at the size of each level `[B, C, h, w]`, by nearest neighbour (official)."""
    mask = padding_mask[:, None].float()
    return [F.interpolate(mask, size=level.shape[-2:]).to(torch.bool)[:, 0] for level in levels]
