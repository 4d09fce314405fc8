"""Which query is responsible for which object: the cheapest assignment (paper, section 4; DETR, section 3.1)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from deformable_detr.boxes import cxcywh_to_xyxy
from deformable_detr.criterion.losses import at_least_float32, elementwise_giou
from deformable_detr.criterion.targets import FlatTargets, fetch_checked, image_name
from deformable_detr.structures import ImageId, Target

logger = logging.getLogger(__name__)

CLASS_COST_EPS = 1e-8  # inside the logarithms of the class cost, as in the official code


@dataclass(frozen=True)
class Matching:
    """The M matched pairs of a batch, for every decoder layer; each image has the same number of pairs in all layers."""

    images: Tensor
    """`[M]` the image that the pair belongs to."""

    queries: Tensor
    """`[N, M]` the query."""

    objects: Tensor
    """`[N, M]` the object, counted within its image."""

    def of_image(self, image: int, layer: int = -1) -> tuple[Tensor, Tensor]:
        """The queries and the objects they are responsible for, in one image and one layer: two int64 vectors of equal length."""
        here = self.images == image
        return self.queries[layer, here], self.objects[layer, here]


class HungarianMatcher(nn.Module):
    """Assigns queries to objects so that the sum of the costs is smallest, for each image and each layer on its own.

    With `copies` above 1 every object takes part that often, so that as many queries become responsible for it: the one-to-many
    matching of H-DETR (Jia et al. 2023, section 3.2).
    """

    def __init__(
        self,
        *,
        class_cost: float = 2.0,
        bbox_cost: float = 5.0,
        giou_cost: float = 2.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        giou_eps: float = 0.0,
        copies: int = 1,
    ) -> None:
        """Set the weights of the costs.

        Args:
            class_cost: of the focal cost of saying yes rather than no to the object's class.
            bbox_cost: of the L1 distance of the boxes (cxcywh).
            giou_cost: of the negative generalised IoU.
            focal_alpha: see :func:`~deformable_detr.criterion.class_losses.focal_loss`.
            focal_gamma: see there.
            giou_eps: see :func:`~deformable_detr.criterion.losses.elementwise_giou`.
            copies: how many queries each object is matched with.

        Raises:
            ValueError: all costs are 0, so that every assignment would be as good as any other, or copies below 1.
        """
        super().__init__()
        if class_cost == 0 and bbox_cost == 0 and giou_cost == 0:
            raise ValueError("class_cost, bbox_cost and giou_cost are all 0: the matcher has nothing to choose by")
        if copies < 1:
            raise ValueError(f"copies must be at least 1, not {copies}: each object is matched with that many queries")
        self.class_cost = class_cost
        self.bbox_cost = bbox_cost
        self.giou_cost = giou_cost
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.giou_eps = giou_eps
        self.copies = copies
        self._warned: set[ImageId | None] = set()

    @torch.no_grad()
    def forward(self, logits: Tensor, boxes: Tensor, targets: Sequence[Target], source: str = "decoder") -> Matching:
        """Match every layer's predictions with the targets.

        Args:
            logits: `[N, B, Q, K]`.
            boxes: `[N, B, Q, 4]` cxcywh in [0, 1] of each image's own size.
            targets: one per image, in the same frame. Where an image has more objects (times copies) than queries, the pairs of
                highest cost stay unmatched.
            source: the part of the model that predicted, for messages.

        Returns:
            The matched pairs, on the device of the predictions.

        Raises:
            ValueError: unsound targets; the message names the image.
            FloatingPointError: predictions with NaN or infinity; the message names the images.
        """
        logits, boxes = at_least_float32(logits), at_least_float32(boxes)
        flat = FlatTargets.from_targets(targets, boxes.device, boxes.dtype)
        self._warn_of_too_many_objects(targets, num_queries=logits.shape[2])
        (costs,) = fetch_checked(logits, boxes, flat, source, self.costs(logits, boxes, flat))
        return _assign(costs, flat.counts, self.copies, device=logits.device)

    def divisor(self, num_boxes: Tensor, num_queries: int, targets: Sequence[Target]) -> Tensor:
        """The number of pairs that the sums of losses are divided by, at least 1 (H-DETR's code counts the copies before that).

        Args:
            num_boxes: `[]` objects per process.
            num_queries: Q.
            targets: of this process.
        """
        del num_queries, targets
        return (num_boxes * self.copies).clamp(min=1)

    def costs(self, logits: Tensor, boxes: Tensor, targets: FlatTargets) -> Tensor:
        """Compute the cost of assigning each object to each query of its own image.

        Args:
            logits: `[N, B, Q, K]`.
            boxes: `[N, B, Q, 4]` cxcywh.
            targets: T objects in all images together.

        Returns:
            `[N, T, Q]`
        """
        images = targets.images()
        labels = targets.labels.clamp(0, logits.shape[-1] - 1)  # invalid labels are reported once the costs are on the host
        candidates, wanted = boxes[:, images], targets.boxes[:, None]  # [N, T, Q, 4], [T, 1, 4]
        class_cost = self._class_cost(logits.transpose(2, 3)[:, images, labels])  # [N, T, Q]
        bbox_cost = (candidates - wanted).abs().sum(-1)
        giou = elementwise_giou(cxcywh_to_xyxy(candidates), cxcywh_to_xyxy(wanted), self.giou_eps)
        return self.class_cost * class_cost + self.bbox_cost * bbox_cost - self.giou_cost * giou

    def _class_cost(self, logits: Tensor) -> Tensor:
        """Focal cost of the positive minus that of the negative class, with the official eps in the logarithms."""
        yes, no = logits.sigmoid(), (-logits).sigmoid()
        cost_of_yes = -self.focal_alpha * no**self.focal_gamma * (yes + CLASS_COST_EPS).log()
        cost_of_no = -(1 - self.focal_alpha) * yes**self.focal_gamma * (no + CLASS_COST_EPS).log()
        return cost_of_yes - cost_of_no

    def _warn_of_too_many_objects(self, targets: Sequence[Target], num_queries: int) -> None:
        for index, target in enumerate(targets):
            if len(target) > num_queries and target.image_id not in self._warned:
                self._warned.add(target.image_id)
                logger.warning(
                    "%s has %d objects, but there are only %d queries: the other %d are not learned from "
                    "(a larger num_queries would take them in)",
                    image_name(targets, index),
                    len(target),
                    num_queries,
                    len(target) - num_queries,
                )


def _assign(costs: np.ndarray, counts: Sequence[int], copies: int, device: torch.device) -> Matching:
    """Solve every layer and image; `costs` are `[N, T, Q]`, of which each image has as many objects as `counts` says."""
    num_layers, _, num_queries = costs.shape
    images = np.repeat(np.arange(len(counts)), [min(count * copies, num_queries) for count in counts])
    pairs = np.empty((2, num_layers, len(images)), dtype=np.int64)
    borders = np.cumsum(counts)[:-1]
    for layer in range(num_layers):
        solved = [_solve(block, copies) for block in np.split(costs[layer], borders)]
        pairs[:, layer] = np.concatenate(solved, axis=1)
    objects, queries = torch.from_numpy(pairs).to(device)
    return Matching(torch.from_numpy(images).to(device), queries, objects)


def _solve(costs: np.ndarray, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Objects and queries of the cheapest pairs in `[T, Q]` costs, where each object may have up to `copies` queries."""
    objects, queries = linear_sum_assignment(np.tile(costs, (copies, 1)))
    return objects % max(1, len(costs)), queries
