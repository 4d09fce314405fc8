"""One-to-many assignment by the quality of the predictions, without a Hungarian matching (Zhao et al. 2024, MS-DETR, 3.3)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deformable_detr.boxes import cxcywh_to_xyxy, elementwise_iou
from deformable_detr.criterion.losses import at_least_float32
from deformable_detr.criterion.matcher import Matching
from deformable_detr.criterion.targets import FlatTargets, fetch_checked
from deformable_detr.structures import Target


class QualityMatcher(nn.Module):
    """Makes the best queries of each object responsible for it, as many as are good enough.

    The quality of query q for object g is a weighted sum of the IoU of their boxes and the probability that q gives to the class of
    g. Each query goes to its best object. It counts as positive if that quality reaches the threshold, or if no other query is
    better for some object. An object then keeps its min(count, `copies`) best queries, where count is the number of its positives;
    a query kept by two objects goes to the one with the higher quality.

    Args:
        copies: K, the largest number of queries of one object.
        iou_share: weight of the IoU in the quality; the probability has the rest.
        threshold: smallest quality of a positive.
    """

    def __init__(self, copies: int = 6, iou_share: float = 0.7, threshold: float = 0.4) -> None:
        super().__init__()
        if copies < 1:
            raise ValueError(f"copies must be at least 1, not {copies}: it is the largest number of queries of one object")
        if not 0 <= iou_share <= 1:
            raise ValueError(f"iou_share must lie in [0, 1], not {iou_share}")
        self.copies, self.iou_share, self.threshold = copies, iou_share, threshold

    @torch.no_grad()
    def forward(
        self, logits: Tensor, boxes: Tensor, targets: Sequence[Target], source: str = "one-to-many"
    ) -> tuple[Matching, ...]:
        """Match every layer's predictions with the targets; arguments and errors as of `HungarianMatcher.forward`.

        Returns:
            For each layer its pairs, in a `Matching` of one layer: their number differs from layer to layer.
        """
        logits, boxes = at_least_float32(logits), at_least_float32(boxes)
        flat = FlatTargets.from_targets(targets, boxes.device, boxes.dtype)
        fetch_checked(logits, boxes, flat, source)
        qualities = self.qualities(logits, boxes, flat).split(list(flat.counts), dim=1)  # B x [N, T of the image, Q]
        chosen = torch.stack([self._choose(quality) for quality in qualities], dim=1)  # [N, B, Q]
        return tuple(_pairs(layer) for layer in chosen)

    def divisor(self, num_boxes: Tensor, num_queries: int, targets: Sequence[Target]) -> Tensor:
        """The number of objects, at least 1, whatever the number of pairs; arguments as of `HungarianMatcher.divisor`."""
        del num_queries, targets
        return num_boxes.clamp(min=1)

    def qualities(self, logits: Tensor, boxes: Tensor, targets: FlatTargets) -> Tensor:
        """The quality of each query for each object of its own image.

        Args:
            logits: `[N, B, Q, K]`.
            boxes: `[N, B, Q, 4]` cxcywh.
            targets: T objects in all images together.

        Returns:
            `[N, T, Q]` in [0, 1]
        """
        images = targets.images()
        probability = logits.transpose(2, 3)[:, images, targets.labels].sigmoid()
        iou = elementwise_iou(cxcywh_to_xyxy(boxes[:, images]), cxcywh_to_xyxy(targets.boxes[:, None]))
        return self.iou_share * iou + (1 - self.iou_share) * probability

    def _choose(self, quality: Tensor) -> Tensor:
        """`[N, T, Q]` of one image → the object of each query, or -1: int64 `[N, Q]`."""
        num_layers, num_objects, num_queries = quality.shape
        if num_objects == 0:
            return torch.full((num_layers, num_queries), -1, dtype=torch.int64, device=quality.device)
        best, nearest = quality.max(1)  # [N, Q] each: the best object of each query
        positive = (best >= self.threshold).scatter(1, quality.argmax(2), True)
        counts = torch.zeros_like(quality[..., 0]).scatter_add(1, nearest, positive.to(quality.dtype))  # [N, T]
        ranked = quality.topk(min(self.copies, num_queries), dim=2).indices  # [N, T, K]
        kept = torch.arange(ranked.shape[2], dtype=torch.int64, device=quality.device) < counts[..., None]
        wanted = torch.zeros_like(quality, dtype=torch.bool).scatter(2, ranked, kept)
        highest, objects = quality.masked_fill(~wanted, -1.0).max(1)
        return objects.masked_fill(highest < 0, -1)


def _pairs(objects: Tensor) -> Matching:
    """The object of each query of one layer, `[B, Q]`, -1 for none → the pairs."""
    images, queries = (objects >= 0).nonzero(as_tuple=True)
    return Matching(images, queries[None], objects[images, queries][None])
