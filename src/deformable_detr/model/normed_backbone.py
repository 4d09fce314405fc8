"""Backbones whose outputs pass a layer norm before the neck: Swin and ConvNeXt, as the published detectors use them."""

from typing import Any

import torch.nn.functional as F
from timm.layers import Format, PatchEmbed
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from deformable_detr.model.backbone import Backbone


class NormedBackbone(Backbone):
    """A `Backbone` with a layer norm on each of its outputs; a Swin Transformer takes images of any size.

    Args:
        name: the timm model, such as `swin_large_patch4_window12_384.ms_in22k`.
        settings: of `Backbone`.

    Raises:
        ValueError: as `Backbone`.
    """

    def __init__(self, name: str, *, options: dict[str, Any] | None = None, **settings: Any) -> None:
        if name.startswith("swin_"):
            options = {"strict_img_size": False, "always_partition": True} | (options or {})
        super().__init__(name, options=options, **settings)
        self.norms = nn.ModuleList([nn.LayerNorm(channels) for channels in self.channels])
        for module in self.body.modules():
            if type(module) is SwinTransformerBlock:
                module.__class__ = PadFirstBlock
            elif isinstance(module, PatchEmbed):
                module.dynamic_img_pad = True  # zeros at the right and the bottom, up to whole patches

    def forward(self, images: Tensor) -> list[Tensor]:
        """`[B, 3, H, W]` normalised → maps `[B, channels[i], H / strides[i], W / strides[i]]`, finest first."""
        maps = super().forward(images)
        if not self.channels_last:
            maps = [level.permute(0, 2, 3, 1) for level in maps]
        return [norm(level).permute(0, 3, 1, 2) for norm, level in zip(self.norms, maps, strict=True)]

    def _check_format(self, name: str) -> None:
        self.channels_last = getattr(self.body, "output_fmt", Format.NCHW) == Format.NHWC  # not every model of timm says it


class PadFirstBlock(SwinTransformerBlock):
    """A Swin block that pads to whole windows before it shifts them, as the original does.

    timm shifts first, so that the padding ends up between the image's two edges, which changes the features wherever a level
    is not a multiple of the window. On a padded input timm's own padding has nothing left to do.
    """

    def _attn(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        rows, columns = -height % self.window_size[0], -width % self.window_size[1]
        return super()._attn(F.pad(x, (0, 0, 0, columns, 0, rows)))[:, :height, :width]
