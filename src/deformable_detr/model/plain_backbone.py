"""Plain Vision Transformers (ViT, DINOv2, DINOv3, EVA-02): one map at one stride, from which a feature pyramid makes the levels.

After Li et al. 2022 (ViTDet, section 3): the last map alone holds enough; transposed convolutions and pooling bring it to the
strides that a detector wants.
"""

from collections.abc import Sequence
from typing import Any

from timm.layers import LayerNorm2d
from timm.models import is_model_in_modules
from torch import Tensor, nn

from deformable_detr.model.normed_backbone import NormedBackbone

_MODULES = ("vision_transformer", "eva", "deit")
"""Of timm: their models have one stride, and take images of any size."""


def is_plain(name: str) -> bool:
    """Whether a timm model is a plain Vision Transformer."""
    return is_model_in_modules(name.split(".")[0], _MODULES)


class PlainBackbone(NormedBackbone):
    """The last map of a plain Vision Transformer, behind a layer norm; images of any size, padded to whole patches.

    Args:
        name: the timm model, such as `vit_small_patch14_dinov2.lvd142m`.
        num_levels: has no influence: there is one map.
        options: further keywords for `timm.create_model`.
        settings: of `Backbone`.

    Raises:
        ValueError: as `Backbone`.
    """

    def __init__(self, name: str, *, num_levels: int = 3, options: dict[str, Any] | None = None, **settings: Any) -> None:
        del num_levels
        super().__init__(name, num_levels=1, options={"dynamic_img_size": True} | (options or {}), **settings)

    def _check_strides(self, name: str, expected: tuple[int, ...]) -> None:
        """Any one stride will do."""


class SimpleFeaturePyramid(nn.Module):
    """One map → maps of several strides, each made from that one alone (ViTDet, section 3).

    Twice and four times as fine by transposed 2×2 convolutions, half as fine by pooling. The 3×3 convolution with which ViTDet
    ends each level is left out: the encoder of Deformable DETR follows.

    Args:
        channels: of the map.
        num_levels: 1 the map itself, 2 to 4 the last so many of: four times and twice as fine, itself, half as fine.
    """

    def __init__(self, channels: int, num_levels: int) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        upsample, further = nn.ConvTranspose2d(channels, half, 2, stride=2), nn.ConvTranspose2d(half, quarter, 2, stride=2)
        makers: list[tuple[nn.Module, int]] = [
            (nn.Sequential(upsample, LayerNorm2d(half), nn.GELU(), further), quarter),
            (nn.ConvTranspose2d(channels, half, 2, stride=2), half),
            (nn.Identity(), channels),
            (nn.MaxPool2d(2, ceil_mode=True), channels),
        ]
        chosen = makers[2:3] if num_levels == 1 else makers[-num_levels:]
        self.levels = nn.ModuleList([maker for maker, _ in chosen])
        self.channels = [number for _, number in chosen]

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """One map `[B, C, h, w]` → `num_levels` maps `[B, channels[i], ·, ·]`, finest first."""
        (source,) = levels
        return [level(source) for level in self.levels]
