"""The matcher against brute force, and what it says of bad predictions and targets."""

import itertools
import logging

import pytest
import torch

from deformable_detr.criterion import HungarianMatcher, SetCriterion
from deformable_detr.criterion.targets import FlatTargets
from deformable_detr.structures import Predictions, Target


def batch(counts, queries=5, classes=4, layers=2, seed=0):
    torch.manual_seed(seed)
    logits = torch.randn(layers, len(counts), queries, classes)
    boxes = torch.rand(layers, len(counts), queries, 4) * 0.4 + 0.1
    targets = [
        Target(torch.rand(count, 4) * 0.4 + 0.1, torch.randint(classes, (count,)), image_id=f"{i}.jpg")
        for i, count in enumerate(counts)
    ]
    return logits, boxes, targets


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("counts", [(3, 1), (0, 5), (7, 2)])
def test_assignment_is_the_cheapest_of_all(counts, seed):
    logits, boxes, targets = batch(counts, seed=seed)
    matcher = HungarianMatcher()
    matching = matcher(logits, boxes, targets)
    costs = matcher.costs(logits, boxes, FlatTargets.from_targets(targets, boxes.device, boxes.dtype))
    for image, count in enumerate(counts):
        pairs = min(5, count)
        for layer in range(2):
            cost = costs[layer, sum(counts[:image]) : sum(counts[: image + 1])].T  # [Q, T]
            queries, objects = matching.of_image(image, layer)
            assert len(queries) == len(set(queries.tolist())) == len(set(objects.tolist())) == pairs
            rows, columns = (cost, count) if count <= 5 else (cost.T, 5)
            cheapest = min(
                sum(rows[row, column].item() for column, row in enumerate(way))
                for way in itertools.permutations(range(len(rows)), columns)
            )
            assert cost[queries, objects].sum().item() == pytest.approx(cheapest, abs=1e-4)


def test_costs_agree_with_transformers():
    from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher

    logits, boxes, targets = batch((3, 0, 4), layers=1, queries=20)
    theirs = DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)(
        {"logits": logits[0], "pred_boxes": boxes[0]}, [{"class_labels": t.labels, "boxes": t.boxes} for t in targets]
    )
    matching = HungarianMatcher()(logits, boxes, targets)
    for image, (queries, objects) in enumerate(theirs):
        ours = zip(*(x.tolist() for x in matching.of_image(image)), strict=True)
        assert set(ours) == set(zip(queries.tolist(), objects.tolist(), strict=True))


def test_images_do_not_influence_each_other():
    logits, boxes, targets = batch((3, 2, 4))
    matcher = HungarianMatcher()
    together = matcher(logits, boxes, targets)
    for image in range(3):
        alone = matcher(logits[:, [image]], boxes[:, [image]], [targets[image]])
        for layer in range(2):
            pairs = zip(together.of_image(image, layer), alone.of_image(0, layer), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


def test_more_objects_than_queries_warns_once_per_image(caplog):
    logits, boxes, targets = batch((9, 2, 7))
    matcher = HungarianMatcher()
    with caplog.at_level(logging.WARNING):
        matcher(logits, boxes, targets)
        matcher(logits, boxes, targets)
    assert [record.args[:3] for record in caplog.records] == [("image '0.jpg'", 9, 5), ("image '2.jpg'", 7, 5)]


def test_costs_that_are_all_zero_are_refused():
    with pytest.raises(ValueError, match="nothing to choose by"):
        HungarianMatcher(class_cost=0, bbox_cost=0, giou_cost=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_name_their_images(value):
    logits, boxes, targets = batch((1, 0, 2))
    logits[1, 1, 2, 0] = value  # an image without objects
    boxes[0, 2, 0, 3] = value
    with pytest.raises(FloatingPointError, match=r"decoder .*logits of image '1.jpg' \(layers \[1\]\); boxes of image '2.jpg'"):
        HungarianMatcher()(logits, boxes, targets)


def test_proposals_that_are_not_finite_are_called_so():
    logits, boxes, targets = batch((1, 2))
    proposals = boxes[0].clone()
    proposals[1, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"encoder predicted .* boxes of image '1.jpg'"):
        SetCriterion(4)(Predictions(logits, boxes, logits[0], proposals), targets)


@pytest.mark.parametrize(
    ("boxes", "labels", "message"),
    [
        ([[0.5, 0.5, 0.1, 0.1]], [4], "image 'bad.jpg' has the label 4, but this model has 4 classes: labels go from 0 to 3"),
        ([[0.5, 0.5, 0.1, 0.1]], [-1], "image 'bad.jpg' has the label -1"),
        ([[0.5, 0.5, 0.1, float("nan")]], [0], "image 'bad.jpg' has the box .*finite"),
        ([[0.5, 0.5, -0.1, 0.1]], [0], "image 'bad.jpg' has the box"),
        ([[320.0, 240.0, 50.0, 60.0]], [0], "image 'bad.jpg' has the box .*not pixels"),
        ([[0.5, 0.5, 0.1]], [0], r"image 'bad.jpg': boxes have shape \[1, 3\]; expected \[T, 4\]"),
        ([], [], r"image 'bad.jpg': boxes have shape \[0\]"),
        ([[0.5, 0.5, 0.1, 0.1]], [0, 1], "image 'bad.jpg': 1 boxes but labels of shape"),
        ([[0.5, 0.5, 0.1, 0.1]], [0.5], "image 'bad.jpg': labels are torch.float32"),
    ],
)
def test_unsound_targets_name_their_image(boxes, labels, message):
    logits, predicted, targets = batch((2, 1))
    targets[1] = Target(torch.tensor(boxes), torch.tensor(labels), image_id="bad.jpg")
    with pytest.raises(ValueError, match=message):
        HungarianMatcher()(logits, predicted, targets)


def test_images_without_ids_are_named_by_their_place():
    logits, boxes, targets = batch((1, 1))
    targets[1] = Target(targets[1].boxes, torch.tensor([7]))
    with pytest.raises(ValueError, match="image 1 of the batch has the label 7"):
        HungarianMatcher()(logits, boxes, targets)
