"""Boxes: conversions between cxcywh and xyxy, overlaps, and the inverse of the sigmoid."""

from collections.abc import Sequence

import torch
from torch import Tensor

SMALLEST_AREA = 1e-12
"""As a share of the image: far below any real box, so that it only guards divisions by zero."""


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """`[..., 4]` (centre x, centre y, width, height) → (left, top, right, bottom), in the same units."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack((cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """`[..., 4]` (left, top, right, bottom) → (centre x, centre y, width, height), in the same units."""
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack(((left + right) / 2, (top + bottom) / 2, right - left, bottom - top), dim=-1)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """`[..., 4]` (left, top, right, bottom) → (left, top, width, height), COCO's own form, in the same units."""
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack((left, top, right - left, bottom - top), dim=-1)


def pixels_of(size: Sequence[int]) -> Tensor:
    """`[4]` (width, height, width, height) of a (height, width): normalised boxes times this are in pixels."""
    height, width = size
    return torch.tensor([width, height, width, height], dtype=torch.float32, device="cpu")


def elementwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of boxes at the same index of two tensors (which are broadcast); 0 for two boxes without area.

    Args:
        boxes: `[..., 4]` xyxy, as shares of the image's sides.
        others: `[..., 4]` xyxy, likewise.

    Returns:
        `[...]` in [0, 1].
    """
    intersection, union = intersection_and_union(boxes, others)
    return intersection / union.clamp(min=SMALLEST_AREA)


def intersection_and_union(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of intersection and union of boxes at the same index of two tensors: two `[...]`."""
    left_top, right_bottom = boxes.split(2, dim=-1)
    other_left_top, other_right_bottom = others.split(2, dim=-1)
    inside = torch.minimum(right_bottom, other_right_bottom) - torch.maximum(left_top, other_left_top)
    intersection = area(inside.clamp(min=0))
    union = area(right_bottom - left_top) + area(other_right_bottom - other_left_top) - intersection
    return intersection, union


def area(sizes: Tensor) -> Tensor:
    """`[..., 2]` (width, height) → `[...]`; unlike `prod`, its derivative neither divides nor asks the device for zeros."""
    width, height = sizes.unbind(-1)
    return width * height


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """The logit of `x` in [0, 1], with both `x` and `1 - x` kept at `eps` or more (so results stay within ±11.5)."""
    return torch.log(x.clamp(min=eps, max=1.0) / (1 - x).clamp(min=eps, max=1.0))
