"""Which query is responsible for which object: the cheapest one-to-one assignment (paper, section 4; DETR, section 3.1)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from deformable_detr.boxes import cxcywh_to_xyxy
from deformable_detr.criterion.losses import at_least_float32, elementwise_giou
from deformable_detr.criterion.targets import FlatTargets, image_name
from deformable_detr.structures import ImageId, Target

logger = logging.getLogger(__name__)

CLASS_COST_EPS = 1e-8  # inside the logarithms of the class cost, as in the official code


@dataclass(frozen=True)
class Matching:
    """The M matched pairs of a batch, for every decoder layer; an image has as many in each: min(Q, T)."""

    images: Tensor
    """`[M]` the image that the pair belongs to."""

    queries: Tensor
    """`[N, M]` the query."""

    objects: Tensor
    """`[N, M]` the object, counted within its image."""

    def of_image(self, image: int, layer: int = -1) -> tuple[Tensor, Tensor]:
        """The queries and the objects that they were given, in one image by one layer: two int64 `[min(Q, T)]`."""
        here = self.images == image
        return self.queries[layer, here], self.objects[layer, here]


class HungarianMatcher(nn.Module):
    """Assigns queries to objects so that the sum of the costs is smallest, for each image and each layer on its own."""

    def __init__(
        self,
        *,
        class_cost: float = 2.0,
        bbox_cost: float = 5.0,
        giou_cost: float = 2.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
    ) -> None:
        """Set the weights of the costs.

        Args:
            class_cost: of the focal cost of saying yes rather than no to the object's class.
            bbox_cost: of the L1 distance of the boxes (cxcywh).
            giou_cost: of the negative generalised IoU.
            focal_alpha: see :func:`~deformable_detr.criterion.losses.sigmoid_focal_loss`.
            focal_gamma: see there.

        Raises:
            ValueError: all costs are 0, so that every assignment would be as good as any other.
        """
        super().__init__()
        if class_cost == 0 and bbox_cost == 0 and giou_cost == 0:
            raise ValueError("class_cost, bbox_cost and giou_cost are all 0: the matcher has nothing to choose by")
        self.class_cost = class_cost
        self.bbox_cost = bbox_cost
        self.giou_cost = giou_cost
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self._warned: set[ImageId | None] = set()

    @torch.no_grad()
    def forward(self, logits: Tensor, boxes: Tensor, targets: Sequence[Target], source: str = "decoder") -> Matching:
        """Match every layer's predictions with the targets.

        Args:
            logits: `[N, B, Q, K]`.
            boxes: `[N, B, Q, 4]` cxcywh in [0, 1] of each image's own size.
            targets: one per image, in the same frame. Where an image has more objects than queries, the dearest stay unmatched.
            source: who predicted, for messages.

        Returns:
            The matched pairs, on the device of the predictions.

        Raises:
            ValueError: unsound targets; the message names the image.
            FloatingPointError: predictions with NaN or infinity; the message names the images.
        """
        logits, boxes = at_least_float32(logits), at_least_float32(boxes)
        flat = FlatTargets.from_targets(targets, boxes.device, boxes.dtype)
        self._warn_of_too_many_objects(targets, num_queries=logits.shape[2])
        finite = [x.isfinite().flatten(2).all(2) for x in (logits, boxes)]  # [N, B] each
        finite_logits, finite_boxes, valid_labels, valid_boxes, costs = _fetch(
            [*finite, *flat.validity(logits.shape[-1]), self.costs(logits, boxes, flat)]
        )
        flat.check(valid_labels > 0, valid_boxes > 0, logits.shape[-1])
        _check_finite({"class logits": finite_logits > 0, "boxes": finite_boxes > 0}, targets, source)
        return _assign(costs, flat.counts, device=logits.device)

    def costs(self, logits: Tensor, boxes: Tensor, targets: FlatTargets) -> Tensor:
        """What it costs to give each object to each query of its own image.

        Args:
            logits: `[N, B, Q, K]`.
            boxes: `[N, B, Q, 4]` cxcywh.
            targets: T objects in all images together.

        Returns:
            `[N, T, Q]`
        """
        images = targets.images()
        labels = targets.labels.clamp(0, logits.shape[-1] - 1)  # wrong ones are reported once the costs are on the host
        candidates, wanted = boxes[:, images], targets.boxes[:, None]  # [N, T, Q, 4], [T, 1, 4]
        class_cost = self._class_cost(logits.transpose(2, 3)[:, images, labels])  # [N, T, Q]
        bbox_cost = (candidates - wanted).abs().sum(-1)
        giou = elementwise_giou(cxcywh_to_xyxy(candidates), cxcywh_to_xyxy(wanted))
        return self.class_cost * class_cost + self.bbox_cost * bbox_cost - self.giou_cost * giou

    def _class_cost(self, logits: Tensor) -> Tensor:
        """Focal cost of a yes minus that of a no, with the official rounding (the eps) of certain decisions."""
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


def _fetch(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Tensors as arrays on the host, through a single transfer: on a GPU every transfer waits for all work before it."""
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    values = torch.cat([tensor.flatten().to(dtype) for tensor in tensors]).cpu().numpy()
    ends = np.cumsum([tensor.numel() for tensor in tensors])
    parts = np.split(values, ends[:-1])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _check_finite(finite: dict[str, np.ndarray], targets: Sequence[Target], source: str) -> None:
    """`finite`: kind of prediction → bool `[N, B]`."""
    found = []
    for kind, sound in finite.items():
        layers, images = np.nonzero(~sound)
        if len(images):
            names = ", ".join(image_name(targets, index) for index in sorted({*images.tolist()}))
            found.append(f"{kind} of {names} (layers {sorted({*layers.tolist()})})")
    if found:
        raise FloatingPointError(
            f"the {source} predicted NaN or infinity: {'; '.join(found)}; the images may be broken, or training has diverged"
        )


def _assign(costs: np.ndarray, counts: Sequence[int], device: torch.device) -> Matching:
    """Solve every layer and image; `costs` are `[N, T, Q]`, of which each image has as many objects as `counts` says."""
    num_layers, _, num_queries = costs.shape
    images = np.repeat(np.arange(len(counts)), [min(count, num_queries) for count in counts])
    pairs = np.empty((2, num_layers, len(images)), dtype=np.int64)
    borders = np.cumsum(counts)[:-1]
    for layer in range(num_layers):
        solved = [linear_sum_assignment(block) for block in np.split(costs[layer], borders)]
        pairs[:, layer] = np.concatenate(solved, axis=1)
    objects, queries = torch.from_numpy(pairs).to(device)
    return Matching(torch.from_numpy(images).to(device), queries, objects)
