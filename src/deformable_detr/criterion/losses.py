"""The three losses on which the detector is trained, each one value per decoder layer (paper, section 4; DETR, section 3.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from deformable_detr.boxes import cxcywh_to_xyxy

SMALLEST_AREA = 1e-12  # as a share of the image: far below any real box, so that it only guards divisions by zero


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is raised to float32: sums over thousands of small terms and IoUs of small boxes need its digits."""
    return x if x.dtype == torch.float64 else x.float()


def sigmoid_focal_loss(logits: Tensor, positive: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of independent yes/no decisions (Lin et al. 2017, equation 5), element by element.

    With p = sigmoid(x): a positive costs `-alpha (1 - p)^gamma log p`, a negative `-(1 - alpha) p^gamma log(1 - p)`. As
    1 - sigmoid(x) = sigmoid(-x), both are one formula of the logit with its sign flipped at the positives, and no probability
    is ever rounded to 0 or 1 inside a logarithm.

    Args:
        logits: `[...]`.
        positive: `[...]` bool, True where the answer is yes.
        alpha: weight of the positives; the negatives have 1 - alpha.
        gamma: how strongly easy examples are played down.

    Returns:
        `[...]`, at least 0.
    """
    wrongness = torch.where(positive, -logits, logits)
    weight = (1 - alpha) + (2 * alpha - 1) * positive.to(logits.dtype)
    return weight * wrongness.sigmoid() ** gamma * -F.logsigmoid(-wrongness)


def elementwise_giou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalised IoU of boxes that stand at the same place of two tensors (which are broadcast).

    Unlike torchvision's, it neither forms all pairs nor gives NaN for two boxes without area (their overlap counts as 0).

    Args:
        boxes: `[..., 4]` xyxy, as shares of the image's sides.
        others: `[..., 4]` xyxy, likewise.

    Returns:
        `[...]` in [-1, 1].
    """
    left_top, right_bottom = boxes.split(2, dim=-1)
    other_left_top, other_right_bottom = others.split(2, dim=-1)
    inside = torch.minimum(right_bottom, other_right_bottom) - torch.maximum(left_top, other_left_top)
    around = torch.maximum(right_bottom, other_right_bottom) - torch.minimum(left_top, other_left_top)
    intersection = inside.clamp(min=0).prod(-1)
    union = (right_bottom - left_top).prod(-1) + (other_right_bottom - other_left_top).prod(-1) - intersection
    enclosing = around.prod(-1)
    return intersection / union.clamp(min=SMALLEST_AREA) - (enclosing - union) / enclosing.clamp(min=SMALLEST_AREA)


def class_loss(logits: Tensor, positive: Tensor, num_boxes: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss, summed over every query and class and divided by the number of objects.

    Args:
        logits: `[N, B, Q, K]`.
        positive: `[N, B, Q, K]` bool, True where a query was matched with an object of that class.
        num_boxes: `[]` objects per process.
        alpha: see :func:`sigmoid_focal_loss`.
        gamma: see :func:`sigmoid_focal_loss`.

    Returns:
        `[N]`
    """
    return sigmoid_focal_loss(logits, positive, alpha, gamma).flatten(1).sum(1) / num_boxes


def bbox_loss(boxes: Tensor, target_boxes: Tensor, num_boxes: Tensor) -> Tensor:
    """L1 distance of matched boxes (`[N, M, 4]` cxcywh both), summed over pairs and coordinates per object: `[N]`."""
    return (boxes - target_boxes).abs().flatten(1).sum(1) / num_boxes


def giou_loss(boxes: Tensor, target_boxes: Tensor, num_boxes: Tensor) -> Tensor:
    """1 - generalised IoU of matched boxes (`[N, M, 4]` cxcywh both), summed over the pairs per object: `[N]`."""
    return (1 - elementwise_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes))).sum(1) / num_boxes
