"""The predictions of all layers and branches one below the other, so that losses are computed for all of them at once.

A small network spends much of a step on starting operations, whose number would otherwise grow with the layers and branches.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from deformable_detr.criterion.losses import at_least_float32
from deformable_detr.criterion.matcher import Matching
from deformable_detr.criterion.targets import FlatTargets
from deformable_detr.structures import Branch, Target


@dataclass(frozen=True)
class MatchedRows:
    """R queries of Z layers, layer after layer and image after image within each, and P pairs of queries and objects."""

    logits: Tensor
    """`[R, K]`"""

    queries: Tensor
    """`[P]` int64: the row of each pair's query; the pairs of one layer after those of the other."""

    labels: Tensor
    """`[P]` int64: the class of each pair's object."""

    matched: Tensor
    """`[P, 4]` cxcywh: the box of each pair's query."""

    wanted: Tensor
    """`[P, 4]` cxcywh: that of its object."""

    queries_of_layer: tuple[int, ...]
    """Z numbers of rows."""

    pairs_of_layer: tuple[int, ...]
    """Z numbers of pairs."""

    @classmethod
    def of_branches(
        cls,
        branches: Mapping[Branch, tuple[Tensor, Tensor]],
        matchings: Mapping[str, Matching | tuple[Matching, ...]],
        targets: Sequence[Target],
        without_classes: Collection[Branch],
    ) -> Self:
        """Put together what belongs together, in float32 or float64.

        Args:
            branches: logits `[N, B, ·, K]` and boxes `[N, B, ·, 4]` of each branch.
            matchings: its pairs.
            targets: what there is to find, one per image.
            without_classes: the branches that learn whether there is an object, as class 0, whatever its own.
        """
        logits = torch.cat([at_least_float32(logits).flatten(0, 2) for logits, _ in branches.values()])
        boxes = torch.cat([at_least_float32(boxes).flatten(0, 2) for _, boxes in branches.values()])
        flat = FlatTargets.from_targets(targets, boxes.device, boxes.dtype)
        starts = torch.tensor([0, *flat.counts[:-1]], dtype=torch.int64, device=boxes.device).cumsum(0)
        queries, objects, labels = [], [], []
        queries_of_layer, pairs_of_layer = [], []
        first = 0  # row of the next layer
        for branch, (of_branch, _) in branches.items():
            num_layers, num_images, num_queries, _ = of_branch.shape
            size, matching = num_images * num_queries, matchings[branch]
            for pairs in matching if isinstance(matching, tuple) else (matching,):
                begins = first + size * torch.arange(len(pairs.queries), dtype=torch.int64, device=boxes.device)[:, None]
                queries.append((begins + pairs.images * num_queries + pairs.queries).flatten())
                objects.append((starts[pairs.images] + pairs.objects).flatten())
                labels.append(torch.zeros_like(objects[-1]) if branch in without_classes else flat.labels[objects[-1]])
                pairs_of_layer += [pairs.queries.shape[1]] * len(pairs.queries)
                first += size * len(pairs.queries)
            queries_of_layer += [size] * num_layers
        rows = torch.cat(queries)
        return cls(
            logits=logits,
            queries=rows,
            labels=torch.cat(labels),
            matched=boxes.index_select(0, rows),
            wanted=flat.boxes.index_select(0, torch.cat(objects)),
            queries_of_layer=tuple(queries_of_layer),
            pairs_of_layer=tuple(pairs_of_layer),
        )
