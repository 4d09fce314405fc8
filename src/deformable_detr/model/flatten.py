"""L levels → one sequence, with all that the decoder and the encoder need to know of its positions, computed here, once."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deformable_detr.structures import FeaturePyramid, FlatFeatures, Geometry

PROPOSAL_SIZE = 0.05
"""Side of a proposal on the finest level, as a share of the image; it doubles with every level."""


class FlattenLevels(nn.Module):
    """Joins the levels; each position gets the sine encoding of its coordinates plus its level's embedding (paper, app. A.2).

    Args:
        hidden_dim: C.
        num_levels: L.
        position_encoding: a `SinePositionEncoding`.
        proposals: compute the boxes that the positions propose, for a two-stage model.
    """

    def __init__(self, hidden_dim: int, num_levels: int, *, position_encoding: nn.Module, proposals: bool) -> None:
        super().__init__()
        self.position_encoding = position_encoding
        self.level_embed = nn.Parameter(torch.randn(num_levels, hidden_dim))
        self.proposals = proposals

    def forward(self, pyramid: FeaturePyramid) -> FlatFeatures:
        """L maps `[B, C, h, w]` and their masks → the sequence."""
        return self.geometry(pyramid).with_features(joined(pyramid))

    def geometry(self, pyramid: FeaturePyramid) -> Geometry:
        """All of the sequence but the features; of the levels only their shapes, dtype and device are read."""
        shapes = tuple((level.shape[2], level.shape[3]) for level in pyramid.levels)
        masks = pyramid.padding_masks or [
            torch.zeros_like(level[:, 0], dtype=torch.bool) for level in pyramid.levels
        ]  # L x [B, h, w]
        ratios = torch.stack([valid_ratio(mask) for mask in masks], dim=1)
        places = places_in_image(shapes, ratios)
        padding_mask = None if pyramid.padding_masks is None else torch.cat([mask.flatten(1) for mask in masks], dim=1)
        proposals = proposals_at(places, shapes, padding_mask) if self.proposals else (None, None)
        encoded = [self.position_encoding(mask).flatten(1, 2) + embed for mask, embed in zip(masks, self.level_embed, strict=True)]
        return Geometry(
            positions=torch.cat(encoded, dim=1).to(pyramid.levels[0].dtype),
            padding_mask=padding_mask,
            spatial_shapes=shapes,
            valid_ratios=ratios,
            reference_points=places[:, :, None] * ratios[:, None],
            proposal_logits=proposals[0],
            can_propose=proposals[1],
        )


def joined(pyramid: FeaturePyramid) -> Tensor:
    """The levels one after the other, each row by row: `[B, S, C]`."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in pyramid.levels], dim=1)


def resize_padding_mask(padding_mask: Tensor, levels: Sequence[Tensor]) -> list[Tensor]:
    """The mask `[B, H, W]` of the canvas at the size of each level `[B, C, h, w]`, by nearest neighbour (official)."""
    mask = padding_mask[:, None].float()
    return [F.interpolate(mask, size=level.shape[-2:]).to(torch.bool)[:, 0] for level in levels]


def valid_ratio(padding_mask: Tensor) -> Tensor:
    """`[B, h, w]` → `[B, 2]` float32 (x, y): the share of the width and height that is image and not padding."""
    height, width = padding_mask.shape[1:]
    valid_y = (~padding_mask[:, :, 0]).sum(1, dtype=torch.float32) / height
    valid_x = (~padding_mask[:, 0, :]).sum(1, dtype=torch.float32) / width
    return torch.stack((valid_x, valid_y), dim=-1)


def places_in_image(spatial_shapes: Sequence[tuple[int, int]], valid_ratios: Tensor) -> Tensor:
    """The centre of each position of the sequence.

    Args:
        spatial_shapes: (h, w) of the L levels.
        valid_ratios: `[B, L, 2]` (x, y).

    Returns:
        `[B, S, 2]` (x, y) in the frame of each image, in [0, 1] except in the padding; float32.
    """
    places, device = [], valid_ratios.device
    for level, (height, width) in enumerate(spatial_shapes):
        y = torch.arange(height, dtype=torch.float32, device=device) + 0.5
        x = torch.arange(width, dtype=torch.float32, device=device) + 0.5
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        centres = torch.stack((grid_x, grid_y), dim=-1).flatten(0, 1)  # [h * w, 2] in pixels of the level
        size = torch.stack((valid_ratios[:, level, 0] * width, valid_ratios[:, level, 1] * height), dim=-1)  # [B, 2] of the image
        places.append(centres[None] / size[:, None])
    return torch.cat(places, dim=1)


def proposals_at(places: Tensor, spatial_shapes: Sequence[tuple[int, int]], padding_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The box that each position proposes before any correction (paper, app. A.4).

    Args:
        places: `[B, S, 2]`, see :func:`places_in_image`.
        spatial_shapes: (h, w) of the L levels.
        padding_mask: `[B, S]` bool, True where there is padding; None: nowhere.

    Returns:
        `[B, S, 4]` logits of cxcywh in the frame of the image (any finite number where there is no proposal), float32, and
        `[B, S, 1]` bool: True for positions inside the image whose box stays between 0.01 and 0.99.
    """
    sides = torch.cat(
        [places.new_full((height * width,), PROPOSAL_SIZE * 2.0**level) for level, (height, width) in enumerate(spatial_shapes)]
    )
    proposals = torch.cat((places, sides[None, :, None].expand(places.shape[0], -1, 2)), dim=-1)  # [B, S, 4]
    can_propose = ((proposals > 0.01) & (proposals < 0.99)).all(-1, keepdim=True)
    if padding_mask is not None:
        can_propose = can_propose & ~padding_mask[..., None]
    proposals = proposals.clamp(0.01, 0.99)
    return torch.log(proposals / (1 - proposals)), can_propose
