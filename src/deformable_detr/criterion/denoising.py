"""Which denoising query has which target: known from the order of the queries, without any matching (DN-DETR, section 4)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deformable_detr.criterion.matcher import Matching
from deformable_detr.structures import Target


class DenoisingMatcher(nn.Module):
    """Gives the positive queries of each group their objects; negatives and padding have none.

    A group consists of n positive queries, then n negative ones, where n is the largest number of objects in an image.
    """

    def forward(self, logits: Tensor, boxes: Tensor, targets: Sequence[Target], source: str = "denoising") -> Matching:
        """Pair queries and objects.

        Args:
            logits: `[N, B, Q, K]`; only its shape matters.
            boxes: `[N, B, Q, 4]`, likewise.
            targets: one per image, those that the queries were made from.
            source: who predicted, for messages.

        Raises:
            ValueError: a number of queries that these targets cannot have.
        """
        del boxes
        num_layers, _, num_queries, _ = logits.shape
        groups = self._num_groups(num_queries, targets, source)
        whole = {"dtype": torch.int64, "device": logits.device}
        starts = torch.arange(groups, **whole)[:, None] * (num_queries // groups)  # [groups, 1]
        objects = [torch.arange(len(target), **whole) for target in targets]
        images = torch.cat([torch.full((groups * len(target),), image, **whole) for image, target in enumerate(targets)])
        queries = torch.cat([(starts + of_image).flatten() for of_image in objects])
        repeated = torch.cat([of_image.repeat(groups) for of_image in objects])
        return Matching(images, queries.expand(num_layers, -1), repeated.expand(num_layers, -1))

    def divisor(self, num_boxes: Tensor, num_queries: int, targets: Sequence[Target]) -> Tensor:
        """The number of objects, at least 1, times the number of groups; arguments as of `HungarianMatcher.divisor`."""
        return num_boxes.clamp(min=1) * self._num_groups(num_queries, targets)

    def _num_groups(self, num_queries: int, targets: Sequence[Target], source: str = "denoising") -> int:
        size = 2 * max((len(target) for target in targets), default=0)
        if num_queries % size if size else num_queries:
            raise ValueError(
                f"{num_queries} {source} queries do not belong to these targets, whose groups have {size}: "
                "the model must have seen the same targets as the criterion"
            )
        return max(1, num_queries // size) if size else 1
