"""The generalised IoU of boxes, for the loss and the cost (paper, section 4; DETR, 3.1)."""

import torch
from torch import Tensor

from deformable_detr.boxes import SMALLEST_AREA, area, intersection_and_union


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is raised to float32: sums over thousands of small terms and IoUs of small boxes need its digits."""
    return x if x.dtype == torch.float64 else x.float()


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
    intersection, union = intersection_and_union(boxes, others)
    around = torch.maximum(boxes[..., 2:], others[..., 2:]) - torch.minimum(boxes[..., :2], others[..., :2])
    enclosing = area(around)
    overlap = intersection / (union.clamp(min=SMALLEST_AREA) + eps)
    return overlap - (enclosing - union) / (enclosing.clamp(min=SMALLEST_AREA) + eps)
