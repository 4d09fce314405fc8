"""MS-DETR's assignment against an example worked out by hand and a plain Python implementation."""

from typing import Any

import pytest
import torch

from deformable_detr.criterion import QualityMatcher
from deformable_detr.criterion.targets import FlatTargets
from deformable_detr.structures import Target

FULL = [0.5, 0.5, 0.4, 0.4]


def wide(share):
    """A box whose IoU with FULL is `share`: the same, cut to a share of its width at one side."""
    return [0.5 - 0.2 * (1 - share), 0.5, 0.4 * share, 0.4]


def logit(p):
    return torch.logit(torch.tensor(p, dtype=torch.float64)).item()


def match(matcher, probabilities, boxes, targets):
    """One layer, one image: {query: object}."""
    logits = torch.tensor([[[logit(p) for p in row] for row in probabilities]], dtype=torch.float64)[None]
    (matching,) = matcher(logits, torch.tensor([[boxes]], dtype=torch.float64), targets)
    return dict(zip(*(x.tolist() for x in matching.of_image(0)), strict=True))


def target(*boxes, labels=None):
    return Target(torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4), torch.tensor(labels or [0] * len(boxes)))


def test_one_object_by_hand():
    # qualities .7 IoU + .3 p: .73, .41, .39, .28, .52
    boxes, probabilities = [wide(x) for x in (1.0, 0.5, 0.5, 0.4, 0.7)], [[0.1], [0.2], [0.4 / 3], [0.01], [0.1]]
    assert match(QualityMatcher(), probabilities, boxes, [target(FULL)]) == {0: 0, 1: 0, 4: 0}
    assert match(QualityMatcher(copies=2), probabilities, boxes, [target(FULL)]) == {0: 0, 4: 0}
    assert match(QualityMatcher(threshold=0.9), probabilities, boxes, [target(FULL)]) == {0: 0}  # the best one always
    assert match(QualityMatcher(iou_share=0.0, threshold=0.15), probabilities, boxes, [target(FULL)]) == {1: 0}


def test_a_query_of_two_objects_goes_to_the_better_one():
    far = [0.1, 0.1, 0.1, 0.1]
    # object 0 is FULL, object 1 half of it: query 0 fits object 0 (IoU 1) better than object 1 (IoU .5), and is the best of both
    matched = match(QualityMatcher(), [[0.5], [0.5]], [FULL, far], [target(FULL, wide(0.5))])
    assert matched == {0: 0}
    matched = match(QualityMatcher(), [[0.5], [0.5]], [FULL, wide(0.5)], [target(FULL, wide(0.5))])
    assert matched == {0: 0, 1: 1}


def plain_match(quality, copies, threshold):
    """`quality[object][query]` of one image and layer → {query: object}, as the docstring says it."""
    objects, queries = range(len(quality)), range(len(quality[0]) if quality else 0)
    counts = [0 for _ in objects]
    for q in queries:
        best = max(objects, key=lambda g: quality[g][q])
        best_of_some = any(q == max(queries, key=lambda other: quality[g][other]) for g in objects)
        counts[best] += quality[best][q] >= threshold or best_of_some
    wanted: dict[int, list[int]] = {}
    for g in objects:
        for q in sorted(queries, key=lambda q: -quality[g][q])[: min(copies, counts[g])]:
            wanted.setdefault(q, []).append(g)
    return {q: max(gs, key=lambda g: quality[g][q]) for q, gs in wanted.items()}


@pytest.mark.parametrize("seed", range(6))
def test_assignment_equals_a_plain_implementation(seed):
    torch.manual_seed(seed)
    counts, layers, queries, classes = (4, 0, 7), 3, 20, 3
    logits = torch.randn(layers, 3, queries, classes, dtype=torch.float64)
    boxes = torch.rand(layers, 3, queries, 4, dtype=torch.float64) * 0.3 + 0.3
    targets = [Target(torch.rand(n, 4, dtype=torch.float64) * 0.3 + 0.3, torch.randint(classes, (n,))) for n in counts]
    matcher = QualityMatcher(copies=3)
    found = matcher(logits, boxes, targets)
    quality = matcher.qualities(logits, boxes, FlatTargets.from_targets(targets, boxes.device, boxes.dtype))
    assert len(found) == layers
    for layer in range(layers):
        for image, start in ((0, 0), (1, 4), (2, 4)):
            expected = plain_match(quality[layer, start : start + counts[image]].tolist(), 3, 0.4)
            got = dict(zip(*(x.tolist() for x in found[layer].of_image(image)), strict=True))
            assert got == expected


def test_unsound_predictions_and_targets_name_their_image():
    boxes = torch.full((1, 1, 2, 4), 0.5)
    with pytest.raises(FloatingPointError, match="one-to-many predicted NaN"):
        QualityMatcher()(torch.full((1, 1, 2, 1), float("nan")), boxes, [target(FULL)])
    with pytest.raises(ValueError, match="image 0 of the batch has the label 3"):
        QualityMatcher()(torch.zeros(1, 1, 2, 1), boxes, [target(FULL, labels=[3])])
    wrong: tuple[dict[str, Any], ...] = ({"copies": 0}, {"iou_share": 1.5})
    for settings in wrong:
        with pytest.raises(ValueError, match=next(iter(settings))):
            QualityMatcher(**settings)
