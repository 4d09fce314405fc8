"""L levels → one sequence, with all that the decoder and the encoder need to know of its positions, computed here, once."""

import torch
from torch import Tensor, nn

from deformable_detr.model.geometry import places_in_image, proposals_at, valid_ratio
from deformable_detr.structures import FeaturePyramid, FlatFeatures, Geometry


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
