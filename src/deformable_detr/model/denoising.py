"""Contrastive denoising: in training, further queries start from ground-truth boxes with noise (DINO, section 3.3).

They come in groups: for each object one positive query, whose box is a little wrong, and one negative, whose box is clearly
wrong. A positive query has to find its object again, a negative one has to say that nothing is there. No matching is needed, so
the decoder learns to correct boxes from the first step on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from deformable_detr.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from deformable_detr.model.queries import Proposals, Queries
from deformable_detr.structures import Target

SMALLEST_NUMBER = 100
"""From this number of positive and negative queries on, it is shared out over groups; below, DINO's code takes the number itself
for that of the groups."""


@dataclass(frozen=True)
class DenoisingNoise:
    """The random numbers of a batch, for M = copies · T noisy objects: T objects in all images together, copy after copy.

    Copies 0, 2, 4 … are the positives of groups 0, 1, 2 …, copies 1, 3, 5 … their negatives.
    """

    label_p: Tensor
    """`[M]` in [0, 1): an object whose number is below half of the label noise gets a random label."""

    label_new: Tensor
    """int64 in [0, K): the random labels of those objects, in their order; or `[M]`, of which theirs are read."""

    box_sign: Tensor
    """`[M, 4]`, −1 or 1: the direction in which left, top, right and bottom move."""

    box_part: Tensor
    """`[M, 4]` in [0, 1): how far they move, as a share of the largest distance; negatives move by one more."""


def draw_noise(
    num_objects: int, num_classes: int, label_noise: float, box_noise: float, device: torch.device | str = "cpu"
) -> DenoisingNoise:
    """Draw the noise of a batch, in the order and shapes of DINO's code, so that equal seeds give equal numbers.

    Args:
        num_objects: M.
        num_classes: K.
        label_noise: see :class:`ContrastiveDenoising`; 0 draws nothing for labels.
        box_noise: see there; 0 draws nothing for boxes.
        device: whose generator is used.
    """
    label_p = torch.ones(num_objects, dtype=torch.float32, device=device)
    label_new = torch.zeros(0, dtype=torch.int64, device=device)
    box_sign = box_part = torch.zeros(num_objects, 4, dtype=torch.float32, device=device)
    if label_noise > 0:
        label_p = torch.rand(num_objects, dtype=torch.float32, device=device)
        count = int((label_p < label_noise / 2).sum())
        label_new = torch.randint(num_classes, (count,), dtype=torch.int64, device=device)
    if box_noise > 0:
        box_sign = torch.randint(0, 2, (num_objects, 4), dtype=torch.float32, device=device) * 2 - 1
        box_part = torch.rand(num_objects, 4, dtype=torch.float32, device=device)
    return DenoisingNoise(label_p, label_new, box_sign, box_part)


class ContrastiveDenoising(nn.Module):
    """Makes the denoising queries of a batch.

    Args:
        num_classes: K.
        hidden_dim: C.
        num_queries: approximate number of positives, with as many negatives (DINO's `dn_number`). Below 50, twice this is the
            number of groups.
        label_noise: half of this share of the queries, in [0, 1], gets a random label.
        box_noise: the largest distance that a positive's corner moves, as a share of half the box's width and height.
        eps: boxes are kept this far from 0 and 1 before their logit is taken.
        first_layer: the decoder layer that the queries enter at.
    """

    def __init__(
        self,
        num_classes: int,
        hidden_dim: int,
        *,
        num_queries: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
        eps: float = 1e-3,
        first_layer: int = 0,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_queries = num_classes, num_queries
        self.label_noise, self.box_noise, self.eps = label_noise, box_noise, eps
        self.first_layer = first_layer
        self.label_embed = nn.Embedding(num_classes + 1, hidden_dim)  # DINO's table has one row more than there are classes

    def forward(
        self, query_source: Proposals, memory: Tensor, targets: Sequence[Target] | None, noise: DenoisingNoise | None = None
    ) -> Queries | None:
        """The denoising queries of a batch; None outside training.

        Args:
            query_source: `Proposals`, which turns boxes into positions as it does for its own.
            memory: `[B, S, C]`; its dtype and device are those of the queries.
            targets: one per image.
            noise: None draws it from the global generator of the device.

        Returns:
            `[B, G, C]` queries: for each group n positives, then n negatives, where n is the largest number of objects in an
            image; queries without an object have content 0 and box logit 0. Groups do not see each other.

        Raises:
            ValueError: no targets in training, or noise for another number of objects.
        """
        if not self.training:
            return None
        if targets is None:
            raise ValueError("this model learns by denoising: in training call model(images, targets)")
        counts = [len(target) for target in targets]
        labels = torch.cat([target.labels for target in targets]).to(memory.device)
        boxes = torch.cat([target.boxes for target in targets]).to(memory.device, torch.float32)
        most = max(counts)
        groups = self._num_groups(most, len(labels), noise)
        if noise is None:
            number = 2 * groups * len(labels)
            noise = draw_noise(number, self.num_classes, self.label_noise, self.box_noise, memory.device)
        content = self.label_embed(self.noisy_labels(labels, noise, 2 * groups))
        box_logits = inverse_sigmoid(self.noisy_boxes(boxes, noise, 2 * groups), self.eps)
        at = _places(counts, most, 2 * groups, memory.device)
        shape = len(counts), 2 * groups * most
        query = memory.new_zeros(*shape, content.shape[-1]).index_put(at, content.to(memory.dtype))
        box_logits = box_logits.new_zeros(*shape, 4).index_put(at, box_logits)
        queries = query_source.queries(box_logits, memory.dtype)
        mask = _other_groups(groups, 2 * most, memory.device)
        return replace(queries, query=query, attn_mask=mask, first_layer=self.first_layer)

    def noisy_labels(self, labels: Tensor, noise: DenoisingNoise, copies: int) -> Tensor:
        """Labels `[T]` → labels of all copies, `[copies * T]`, some of them random (possibly the right one)."""
        labels = labels.repeat(copies)
        changed = (noise.label_p.to(labels.device) < self.label_noise / 2).nonzero()[:, 0]
        new = noise.label_new.to(labels.device)
        return labels.index_put((changed,), new if len(new) == len(changed) else new[changed])

    def noisy_boxes(self, boxes: Tensor, noise: DenoisingNoise, copies: int) -> Tensor:
        """Boxes `[T, 4]` → boxes of all copies, `[copies * T, 4]` cxcywh; a negative's size may be below 0."""
        negative = torch.arange(copies, dtype=torch.int64, device=boxes.device).remainder(2).repeat_interleave(len(boxes))[:, None]
        boxes = boxes.repeat(copies, 1)
        part = (noise.box_part.to(boxes.device) + negative) * noise.box_sign.to(boxes.device)
        corners = cxcywh_to_xyxy(boxes) + part * (boxes[:, 2:] / 2).repeat(1, 2) * self.box_noise
        return xyxy_to_cxcywh(corners.clamp(0, 1))

    def _num_groups(self, most: int, total: int, noise: DenoisingNoise | None) -> int:
        """One group where there are no objects; it has no queries."""
        if most == 0:
            return 1
        if noise is None:
            return max(1, 2 * self.num_queries // (2 * most) if 2 * self.num_queries >= SMALLEST_NUMBER else 2 * self.num_queries)
        groups, rest = divmod(len(noise.label_p), 2 * total)
        if rest or groups < 1:
            raise ValueError(
                f"the noise is for {len(noise.label_p)} objects, but the batch has {total}: it must be a multiple of {2 * total}"
            )
        return groups


class NoDenoising(nn.Module):
    """The part of a model that is trained without denoising."""

    def forward(
        self, query_source: nn.Module, memory: Tensor, targets: Sequence[Target] | None, noise: DenoisingNoise | None
    ) -> None:
        """No queries.

        Raises:
            ValueError: noise was given.
        """
        if noise is not None:
            raise ValueError("noise was given, but this model learns without denoising (denoising_queries is 0)")


def _places(counts: Sequence[int], most: int, copies: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Image and query of each object of each copy, copy after copy: two int64 `[copies * T]`."""
    images = torch.tensor([image for image, count in enumerate(counts) for _ in range(count)], dtype=torch.int64, device=device)
    within = torch.tensor([index for count in counts for index in range(count)], dtype=torch.int64, device=device)
    starts = most * torch.arange(copies, dtype=torch.int64, device=device)[:, None]
    return images.repeat(copies), (within + starts).flatten()


def _other_groups(groups: int, size: int, device: torch.device) -> Tensor:
    """`[G, G]` float: minus infinity where a query and another one belong to different groups, else 0."""
    group = torch.arange(groups, dtype=torch.int64, device=device).repeat_interleave(size)
    return torch.zeros(len(group), len(group), dtype=torch.float32, device=device).masked_fill(group[:, None] != group, -math.inf)
