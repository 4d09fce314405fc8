"""A pass through the network written by hand, so that every place and number on the page is known beforehand."""

import pytest
import torch
from torch import Tensor

from deformable_detr.categories import Categories
from deformable_detr.structures import FlatFeatures, Predictions
from deformable_detr.visualize.inside.inside import Inside, LayerSampling, Proposals, Queries, Stage

HEIGHT, WIDTH = 100, 200
SHAPES = ((2, 5), (1, 3))
RATIOS = ((0.8, 1.0), (2 / 3, 1.0))  # the right fifth of level 0 and the right third of level 1 are padding


def sampling(stage: Stage, layer: int, num_queries: int, references: Tensor) -> LayerSampling:
    """M = 2, L = 2, P = 1. In the image head 0 looks at (50, 25) on both levels, head 1 at (150, 75) and (220, 50)."""
    in_image = torch.tensor([[[[0.25, 0.25]], [[0.25, 0.25]]], [[[0.75, 0.75]], [[1.1, 0.5]]]])  # [M, L, P, 2]
    locations = in_image * torch.tensor(RATIOS)[None, :, None]
    weights = torch.tensor([[[0.25], [0.75]], [[0.9], [0.1]]])  # [M, L, P]
    return LayerSampling(
        stage,
        layer,
        references,
        locations.expand(1, num_queries, -1, -1, -1, -1),
        weights.expand(1, num_queries, -1, -1, -1),
    )


def make_inside(*, learned: bool) -> Inside:
    """Q = 3 queries, N = 2 layers, K = 2 classes; query 1 is a sure dog, query 0 a less sure cat, query 2 nothing."""
    starts = torch.tensor([[0.2, 0.3, 0.2, 0.2], [0.7, 0.5, 0.4, 0.4], [0.5, 0.5, 0.2, 0.2]])
    boxes = torch.stack([starts + 0.05, torch.tensor([[0.25, 0.5, 0.3, 0.6], [0.75, 0.5, 0.3, 0.8], [0.5, 0.5, 0.1, 0.1]])])
    probabilities = torch.tensor([[[0.5, 0.1], [0.2, 0.6], [0.1, 0.1]], [[0.6, 0.1], [0.1, 0.9], [0.05, 0.02]]])
    references = starts[:, :2] if learned else starts
    tokens = sum(h * w for h, w in SHAPES)
    on_levels = references[None, :, None] * torch.tensor(RATIOS).repeat(1, references.shape[1] // 2)[None, None]
    centres = torch.full((1, tokens, 2, 2), 0.5)
    empty = torch.zeros(1, tokens, 4)
    proposals = Proposals(torch.rand(tokens), torch.rand(tokens, 4), torch.ones(tokens, dtype=torch.bool), torch.tensor([3, 10, 1]))
    return Inside(
        image=torch.full((3, HEIGHT, WIDTH), 128, dtype=torch.uint8),
        input_size=(HEIGHT, WIDTH),
        categories=Categories.from_names(["cat", "dog <b>"]),
        predictions=Predictions(probabilities.logit()[:, None], boxes[:, None]),
        backbone_levels=(),
        neck_levels=(),
        flat=FlatFeatures(empty, None, SHAPES, torch.tensor(RATIOS)[None], centres, None, None, features=empty),
        memory=empty,
        queries=Queries(torch.zeros(1, 3, 4), torch.zeros(1, 3, 4), references[None]),
        encoder=(sampling("encoder", 0, tokens, centres),),
        decoder=tuple(sampling("decoder", layer, 3, on_levels) for layer in range(2)),
        proposals=None if learned else proposals,
    )


@pytest.fixture
def inside() -> Inside:
    return make_inside(learned=False)


@pytest.fixture
def learned_inside() -> Inside:
    return make_inside(learned=True)
