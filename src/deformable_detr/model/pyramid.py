"""Images → the neck's levels and their masks: the only module that handles padding in convolutions and GroupNorm.

On a padded canvas the padding is felt: convolutions see it at the image's edge and GroupNorm counts it in. For a trained model
that would make an image's boxes depend on its neighbours in the batch; so outside training every image runs at its own size,
and the maps are padded afterwards.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deformable_detr.model.flatten import resize_padding_mask
from deformable_detr.structures import FeaturePyramid, ImageBatch

Extract = Callable[[Tensor], list[Tensor]]
"""Backbone and neck: `[B, 3, H, W]` → L maps `[B, C, h, w]`."""


class PaddedCanvas(nn.Module):
    """Runs the padded canvas as one (official)."""

    def forward(self, extract: Extract, batch: ImageBatch) -> FeaturePyramid:
        """The levels of a batch; without masks where its image sizes say that there is no padding."""
        levels = extract(batch.images)
        if not batch.may_be_padded:
            return FeaturePyramid(levels)
        return FeaturePyramid(levels, resize_padding_mask(batch.padding_mask, levels), batch.sizes)


class SeparateImages(PaddedCanvas):
    """In training as above. Else runs images of equal size together and pads their maps: padding has no influence."""

    def forward(self, extract: Extract, batch: ImageBatch) -> FeaturePyramid:
        """The levels of a batch. Where only a mask tells the images' sizes, the canvas runs as one."""
        sizes = batch.image_sizes
        if self.training or sizes is None or not batch.may_be_padded:
            return super().forward(extract, batch)
        maps: list[list[Tensor]] = [[] for _ in sizes]
        for size in dict.fromkeys(sizes):
            members = [index for index, other in enumerate(sizes) if other == size]
            levels = extract(batch.images[members, :, : size[0], : size[1]])
            for row, index in enumerate(members):
                maps[index] = [level[row] for level in levels]
        levels, masks = zip(*(pad_maps(level) for level in zip(*maps, strict=True)), strict=True)
        return FeaturePyramid(list(levels), list(masks), batch.sizes)


def pad_maps(maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """B maps `[C, h, w]` of different sizes → `[B, C, h, w]` of the largest, zero in the padding, and the mask `[B, h, w]`."""
    height, width = (max(item.shape[axis] for item in maps) for axis in (1, 2))
    mask = torch.ones(len(maps), height, width, dtype=torch.bool, device=maps[0].device)
    for index, item in enumerate(maps):
        mask[index, : item.shape[1], : item.shape[2]] = False
    return torch.stack([F.pad(item, (0, width - item.shape[2], 0, height - item.shape[1])) for item in maps]), mask
