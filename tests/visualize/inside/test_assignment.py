"""The matching of one image against costs worked out by hand and a search through all assignments."""

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import permutations
from typing import cast

import pytest
import torch
from matplotlib.patches import Rectangle

from deformable_detr.criterion.matcher import HungarianMatcher
from deformable_detr.structures import Predictions, Target
from deformable_detr.visualize import look_inside, view_assignment

SCORES = [[0.9, 0.1, 0.1], [0.1, 0.6, 0.1], [0.8, 0.1, 0.1], [0.1, 0.1, 0.1]]
BOXES = [[0.3, 0.5, 0.2, 0.4], [0.7, 0.5, 0.4, 0.4], [0.25, 0.5, 0.3, 0.4], [0.5, 0.2, 0.2, 0.2]]
TARGETS, LABELS = [[0.3, 0.5, 0.2, 0.2], [0.7, 0.5, 0.2, 0.4], [0.2, 0.5, 0.3, 0.4]], [0, 1, 0]


@pytest.fixture
def made(two_stage, photo):
    """Four queries written by hand as the last layer's answer; the layer before it says the opposite."""
    logits, boxes = torch.tensor(SCORES).logit()[None, None], torch.tensor(BOXES)[None, None]
    both = Predictions(torch.cat((logits.flip(2), logits)), torch.cat((boxes.flip(2), boxes)))
    return replace(look_inside(two_stage, photo, encoder=False), predictions=both)


def target(count=3):
    return Target(torch.tensor(TARGETS[:count]), torch.tensor(LABELS[:count]), "a", (120, 160))


def focal(score, gamma=2, alpha=0.25):
    return -alpha * (1 - score) ** gamma * math.log(score) + (1 - alpha) * score**gamma * math.log(1 - score)


def test_cost_parts_by_hand(made):
    view = view_assignment(made, target())
    assert view.costs.shape == (3, 3, 4)
    assert view.costs[0].tolist() == [pytest.approx([2 * focal(row[label]) for row in SCORES], abs=1e-4) for label in LABELS]
    expected = [[5 * sum(abs(a - b) for a, b in zip(box, wanted, strict=True)) for box in BOXES] for wanted in TARGETS]
    assert view.costs[1].tolist() == [pytest.approx(row, abs=1e-5) for row in expected]
    # The box of query 0 is twice target 0, which lies in it; of query 1's box, target 1 is the middle half.
    assert [float(view.costs[2, index, index]) for index in (0, 1)] == pytest.approx([-2 * 0.5, -2 * 0.5], abs=1e-5)


def test_no_other_assignment_is_cheaper(made):
    for layer, mirrored in ((-1, False), (0, True)):
        view = view_assignment(made, target(), layer=layer)
        total = view.costs.sum(0)
        cheapest = min(permutations(range(4), 3), key=lambda chosen: sum(float(total[row, q]) for row, q in enumerate(chosen)))
        assert tuple(view.queries.tolist()) == cheapest == ((3, 2, 1) if mirrored else (0, 1, 2))
    only_boxes = view_assignment(made, target(), HungarianMatcher(class_cost=0.0))
    assert not only_boxes.costs[0].any()


def test_drawing_names_pairs_and_keeps_to_its_limits(made):
    view = view_assignment(made, target(), num_targets=2, num_queries=3)
    _, table, *parts = view.figure.axes
    assert [axes.get_title() for axes in parts] == ["a 0 → query 0", "b 1 → query 1"]
    assert [label.get_text() for label in table.get_xticklabels()] == ["0", "1", "2"]
    total = view.costs.sum(0)
    texts = [text.get_text() for text in table.texts]
    assert texts == [f"{float(total[row, query]):.1f}" for row in range(2) for query in range(3)]
    frames = [(patch.get_x() + 0.5, patch.get_y() + 0.5) for patch in cast(Iterable[Rectangle], table.patches)]
    assert frames == [(0, 0), (1, 1)]


def test_more_targets_than_queries_and_none(made):
    crowded = Target(torch.tensor(TARGETS * 2), torch.tensor(LABELS * 2), "crowd", (120, 160))
    view = view_assignment(made, crowded)
    assert sorted(view.queries.tolist()) == [-1, -1, 0, 1, 2, 3]
    assert sum("no query" in axes.get_title() for axes in view.figure.axes) == 2
    with pytest.raises(ValueError, match="no targets"):
        view_assignment(made, target(0))
