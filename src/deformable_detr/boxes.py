"""Boxes: conversions between cxcywh and xyxy, overlaps, and the inverse of the sigmoid."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou

__all__ = [
    "box_iou",
    "cxcywh_to_xyxy",
    "generalized_box_iou",
    "inverse_sigmoid",
    "pixels_of",
    "xywh_to_xyxy",
    "xyxy_to_cxcywh",
    "xyxy_to_xywh",
]


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """`[..., 4]` (centre x, centre y, width, height) → (left, top, right, bottom), in the same units."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack((cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """`[..., 4]` (left, top, right, bottom) → (centre x, centre y, width, height), in the same units."""
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack(((left + right) / 2, (top + bottom) / 2, right - left, bottom - top), dim=-1)


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """`[..., 4]` (left, top, width, height), COCO's own form → (left, top, right, bottom), in the same units."""
    left, top, w, h = boxes.unbind(-1)
    return torch.stack((left, top, left + w, top + h), dim=-1)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """`[..., 4]` (left, top, right, bottom) → (left, top, width, height), COCO's own form, in the same units."""
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack((left, top, right - left, bottom - top), dim=-1)


def pixels_of(size: Sequence[int]) -> Tensor:
    """`[4]` (width, height, width, height) of a (height, width): normalised boxes times this are in pixels."""
    height, width = size
    return torch.tensor([width, height, width, height], dtype=torch.float32, device="cpu")


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """The logit of `x` in [0, 1], with both `x` and `1 - x` kept at `eps` or more (so results stay within ±11.5)."""
    return torch.log(x.clamp(min=eps, max=1.0) / (1 - x).clamp(min=eps, max=1.0))
