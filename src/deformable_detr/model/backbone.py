"""Images → feature maps C3, C4, C5 at strides 8, 16 and 32, by any timm model (paper, section 4.1 and app. A.2)."""

import math
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import Format
from timm.layers.norm_act import FrozenBatchNorm2d, freeze_batch_norm_2d
from timm.models import FeatureInfo
from torch import Tensor, nn


class Backbone(nn.Module):
    """The last stages of a timm model.

    Args:
        name: the timm model, such as `resnet50.tv_in1k`.
        num_levels: how many of the last stages are returned (1 to 4).
        pretrained: True for timm's weights, a path for a local file, False for random ones.
        frozen_stages: fix everything up to stride `2**frozen_stages` (2: the stem and layer1 of a ResNet).
        freeze_batch_norm: turn batch norms into fixed affine maps.
        dilation: keep stride 16 in the last stage (DC5).
        options: further keywords for `timm.create_model`.

    Raises:
        ValueError: an unknown model, one without stages at the needed strides, or a weights file that does not fit.
        FileNotFoundError: `pretrained` names a file that is not there.
        ConnectionError: the weights cannot be downloaded.
    """

    def __init__(
        self,
        name: str = "resnet50.tv_in1k",
        *,
        num_levels: int = 3,
        pretrained: bool | str = True,
        frozen_stages: int = 2,
        freeze_batch_norm: bool = True,
        dilation: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        keywords = dict(options or {}) | {"features_only": True, "out_indices": tuple(range(-num_levels, 0))}
        if dilation:
            keywords["output_stride"] = 16
        self.body = _create_timm_model(name, pretrained, keywords)
        features: FeatureInfo = self.body.feature_info  # type: ignore[assignment]
        self.strides = tuple(features.reduction())
        self.channels = tuple(features.channels())
        self._check_strides(name, (4, 8, 16, 16 if dilation else 32)[-num_levels:])
        self._check_format(name)
        if freeze_batch_norm:
            self.body = freeze_batch_norm_2d(self.body)
            faster_frozen_norms(self.body)
        _freeze(self.body, frozen_stages, name)

    def forward(self, images: Tensor) -> list[Tensor]:
        """`[B, 3, H, W]` normalised → `num_levels` maps `[B, channels[i], H / strides[i], W / strides[i]]`, finest first.

        They have the dtype of the weights.
        """
        return self.body(images.to(next(self.body.parameters()).dtype))

    def _check_strides(self, name: str, expected: tuple[int, ...]) -> None:
        if self.strides != expected:
            raise ValueError(f"backbone {name!r} ends in stages of strides {self.strides}; the detector needs {expected}")

    def _check_format(self, name: str) -> None:
        if getattr(self.body, "output_fmt", Format.NCHW) != Format.NCHW:  # not every model of timm says it
            raise ValueError(f"the maps of the backbone {name!r} need a layer norm: set backbone_norm to true")


class FrozenNorm(FrozenBatchNorm2d):
    """torchvision's `FrozenBatchNorm2d` with scale and shift in one step: half the memory traffic, and nothing more is kept for the
    backward pass."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, h, w]` → `[B, C, h, w]`."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = torch.addcmul(self.bias, self.running_mean, scale, value=-1)
        return torch.addcmul(shift.view(-1, 1, 1), x, scale.view(-1, 1, 1))


def faster_frozen_norms(module: nn.Module) -> None:
    """Exchange the frozen batch norms below a module; their buffers, names and hooks stay."""
    for norm in module.modules():
        if type(norm) is FrozenBatchNorm2d:
            norm.__class__ = FrozenNorm


def _create_timm_model(name: str, pretrained: bool | str, keywords: dict[str, Any]) -> nn.Module:
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0][:8]}*")[:8]
        raise ValueError(f"unknown backbone {name!r}: it must be a timm model (near in name: {', '.join(near) or 'none'})")
    if isinstance(pretrained, str):
        path = Path(pretrained).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"no backbone weights at {path}: --model.pretrained_backbone takes a file, true or false")
        keywords = keywords | {"pretrained_cfg_overlay": {"file": str(path), "hf_hub_id": None, "url": ""}}
    try:
        return timm.create_model(name, pretrained=bool(pretrained), **keywords)
    except Exception as error:
        if not pretrained:
            raise ValueError(f"timm cannot build the backbone {name!r} with {keywords}: {error}") from error
        if isinstance(pretrained, str):
            raise ValueError(f"the weights in {pretrained} do not fit the backbone {name!r}: {error}") from error
        raise ConnectionError(
            f"the ImageNet weights of the backbone {name!r} cannot be had: {error}\n"
            "Go on with a local file (--model.pretrained_backbone PATH), with the weights of a whole detector (--weights PATH), "
            "or with random weights (--model.pretrained_backbone false; then train much longer)."
        ) from error


def _freeze(body: nn.Module, stages: int, name: str) -> None:
    """Fix all children up to the last one whose stride is at most `2**stages`; from 5 on all of them."""
    if stages >= 5:
        body.requires_grad_(False)
        return
    modules = [info["module"] for info in body.feature_info.info if math.log2(info["reduction"]) <= stages]  # type: ignore[union-attr]
    if stages == 0 or not modules:
        return
    children = dict(body.named_children())
    last = next((key for key in (modules[-1].replace(".", "_"), modules[-1].split(".")[0]) if key in children), None)
    if last is None:
        raise ValueError(f"cannot tell the stages of the backbone {name!r} apart: set frozen_backbone_stages to 0")
    for key, child in children.items():
        child.requires_grad_(False)
        if key == last:
            return
