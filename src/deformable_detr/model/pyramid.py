"""ImageBatch → neck levels and their masks: the one place that knows how padding meets convolutions and GroupNorm.

In training the padded canvas goes through backbone and neck as one (official). There the padding is felt: convolutions see
it at the image's edge and GroupNorm counts it in. For a trained model that would make an image's boxes depend on its
neighbours in the batch; so outside training every image runs at its own size, and the maps are padded afterwards.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deformable_detr.model.flatten import resize_padding_mask
from deformable_detr.structures import ImageBatch

Levels = tuple[list[Tensor], list[Tensor]]
Pyramid = Callable[[Tensor], list[Tensor]]


def padded_pyramid(pyramid: Pyramid, batch: ImageBatch) -> Levels:
    """Run the padded canvas as one: the L maps `[B, C, h, w]` and their padding masks `[B, h, w]`."""
    levels = pyramid(batch.images)
    return levels, resize_padding_mask(batch.padding_mask, levels)


def separate_pyramid(pyramid: Pyramid, batch: ImageBatch) -> Levels:
    """Run images of equal size together and pad the maps afterwards: the same result, without influence of the padding."""
    sizes = batch.image_sizes
    if sizes is None or set(sizes) == {tuple(batch.images.shape[-2:])}:
        return padded_pyramid(pyramid, batch)
    maps: list[list[Tensor]] = [[] for _ in sizes]
    for size in dict.fromkeys(sizes):
        members = [index for index, other in enumerate(sizes) if other == size]
        levels = pyramid(batch.images[members, :, : size[0], : size[1]])
        for row, index in enumerate(members):
            maps[index] = [level[row] for level in levels]
    padded = [pad_maps(level) for level in zip(*maps, strict=True)]
    return [level for level, _ in padded], [mask for _, mask in padded]


def pad_maps(maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """B maps `[C, h, w]` of different sizes → `[B, C, h, w]` of the largest, zero in the padding, and the mask `[B, h, w]`."""
    height, width = (max(item.shape[axis] for item in maps) for axis in (1, 2))
    mask = torch.ones(len(maps), height, width, dtype=torch.bool, device=maps[0].device)
    for index, item in enumerate(maps):
        mask[index, : item.shape[1], : item.shape[2]] = False
    return torch.stack([F.pad(item, (0, width - item.shape[2], 0, height - item.shape[1])) for item in maps]), mask
