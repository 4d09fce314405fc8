"""Batch norms that do not learn, in one pass over the map."""

import torch
from timm.layers.norm_act import FrozenBatchNorm2d
from torch import Tensor, nn


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
