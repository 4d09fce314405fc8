"""The losses of matched boxes, each one value per decoder layer, and the overlaps they rest on (paper, section 4; DETR, 3.1)."""

import torch
from torch import Tensor

from deformable_detr.boxes import cxcywh_to_xyxy

SMALLEST_AREA = 1e-12  # as a share of the image: far below any real box, so that it only guards divisions by zero


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is raised to float32: sums over thousands of small terms and IoUs of small boxes need its digits."""
    return x if x.dtype == torch.float64 else x.float()


def elementwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of boxes at the same index of two tensors (which are broadcast); 0 for two boxes without area.

    Args:
        boxes: `[..., 4]` xyxy, as shares of the image's sides.
        others: `[..., 4]` xyxy, likewise.

    Returns:
        `[...]` in [0, 1].
    """
    intersection, union = _intersection_and_union(boxes, others)
    return intersection / union.clamp(min=SMALLEST_AREA)


def elementwise_giou(boxes: Tensor, others: Tensor, eps: float = 0.0) -> Tensor:
    """Generalised IoU of boxes at the same index of two tensors (which are broadcast).

    Unlike torchvision's, it neither forms all pairs nor gives NaN for two boxes without area (their overlap counts as 0).

    Args:
        boxes: `[..., 4]` xyxy, as shares of the image's sides.
        others: `[..., 4]` xyxy, likewise.
        eps: added to both denominators; DINO's code has 1e-6.

    Returns:
        `[...]` in [-1, 1].
    """
    intersection, union = _intersection_and_union(boxes, others)
    around = torch.maximum(boxes[..., 2:], others[..., 2:]) - torch.minimum(boxes[..., :2], others[..., :2])
    enclosing = around.prod(-1)
    overlap = intersection / (union.clamp(min=SMALLEST_AREA) + eps)
    return overlap - (enclosing - union) / (enclosing.clamp(min=SMALLEST_AREA) + eps)


def bbox_loss(boxes: Tensor, target_boxes: Tensor, divisor: Tensor) -> Tensor:
    """L1 distance of matched boxes (`[N, M, 4]` cxcywh both), summed over pairs and coordinates and divided: `[N]`."""
    return (boxes - target_boxes).abs().flatten(1).sum(1) / divisor


def giou_loss(boxes: Tensor, target_boxes: Tensor, divisor: Tensor, eps: float = 0.0) -> Tensor:
    """1 - generalised IoU of matched boxes (`[N, M, 4]` cxcywh both), summed over the pairs and divided: `[N]`."""
    return (1 - elementwise_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes), eps)).sum(1) / divisor


def _intersection_and_union(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of intersection and union of boxes at the same index of two tensors: two `[...]`."""
    left_top, right_bottom = boxes.split(2, dim=-1)
    other_left_top, other_right_bottom = others.split(2, dim=-1)
    inside = torch.minimum(right_bottom, other_right_bottom) - torch.maximum(left_top, other_left_top)
    intersection = inside.clamp(min=0).prod(-1)
    union = (right_bottom - left_top).prod(-1) + (other_right_bottom - other_left_top).prod(-1) - intersection
    return intersection, union
