"""The criterion against losses computed by a plain Python implementation that shares no code with it."""

import itertools
import math

import pytest
import torch

from deformable_detr.config import ModelConfig
from deformable_detr.criterion import SetCriterion
from deformable_detr.structures import Predictions, Target

ALPHA, GAMMA, EPS = 0.25, 2.0, 1e-8


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def plain_giou(a, b):
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = ((x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (a, b))
    inside = max(0, min(ax1, bx1) - max(ax0, bx0)) * max(0, min(ay1, by1) - max(ay0, by0))
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - inside
    around = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return inside / union - (around - union) / around


def plain_cost(logits, box, label, target_box):
    p = sigmoid(logits[label])
    yes = ALPHA * (1 - p) ** GAMMA * -math.log(p + EPS)
    no = (1 - ALPHA) * p**GAMMA * -math.log(1 - p + EPS)
    l1 = sum(abs(x - y) for x, y in zip(box, target_box, strict=True))
    return 2 * (yes - no) + 5 * l1 - 2 * plain_giou(box, target_box)


def plain_match(logits, boxes, labels, target_boxes):
    """The cheapest of all ways to give every object a query of its own (or every query an object, if those are more)."""
    queries, objects = range(len(boxes)), range(len(labels))
    cost = [[plain_cost(logits[q], boxes[q], labels[t], target_boxes[t]) for t in objects] for q in queries]
    if len(objects) <= len(queries):
        ways = [list(zip(way, objects, strict=True)) for way in itertools.permutations(queries, len(objects))]
    else:
        ways = [list(zip(queries, way, strict=True)) for way in itertools.permutations(objects, len(queries))]
    return min(ways, key=lambda pairs: sum(cost[q][t] for q, t in pairs))


def plain_losses(logits, boxes, targets, num_boxes):
    """One layer: nested lists in, (class, bbox, giou) out."""
    loss_class = loss_bbox = loss_giou = 0.0
    for image, (labels, target_boxes) in enumerate(targets):
        pairs = plain_match(logits[image], boxes[image], labels, target_boxes)
        yes = {(q, labels[t]) for q, t in pairs}
        for q, row in enumerate(logits[image]):
            for k, x in enumerate(row):
                p = sigmoid(x)
                positive = (q, k) in yes
                loss_class += ALPHA * (1 - p) ** 2 * -math.log(p) if positive else (1 - ALPHA) * p**2 * -math.log(1 - p)
        for q, t in pairs:
            loss_bbox += sum(abs(x - y) for x, y in zip(boxes[image][q], target_boxes[t], strict=True))
            loss_giou += 1 - plain_giou(boxes[image][q], target_boxes[t])
    return [x / num_boxes for x in (loss_class, loss_bbox, loss_giou)]


def random_boxes(*shape, dtype=torch.float64):
    return torch.rand(*shape, 4, dtype=dtype) * 0.4 + 0.1


def random_batch(counts, *, layers=3, queries=4, classes=3, positions=0, dtype=torch.float64):
    torch.manual_seed(7)
    batch = len(counts)
    encoder = (
        (torch.randn(batch, positions, classes, dtype=dtype), random_boxes(batch, positions, dtype=dtype)) if positions else ()
    )
    decoder = (torch.randn(layers, batch, queries, classes, dtype=dtype), random_boxes(layers, batch, queries, dtype=dtype))
    predictions = Predictions(*decoder, *(encoder if positions else ()))
    targets = [
        Target(random_boxes(count, dtype=dtype), torch.randint(classes, (count,)), image_id=100 + i)
        for i, count in enumerate(counts)
    ]
    return predictions, targets


def as_lists(targets, labels_zero=False):
    return [([0] * len(t) if labels_zero else t.labels.tolist(), t.boxes.tolist()) for t in targets]


@pytest.mark.parametrize("counts", [(2, 3), (4, 0, 1), (0, 0), (6, 1)])
def test_losses_equal_a_plain_implementation(counts):
    predictions, targets = random_batch(counts, positions=6)
    losses = SetCriterion(3)(predictions, targets)
    num_boxes = max(1, sum(counts))
    for layer, suffix in ((2, ""), (0, "_0"), (1, "_1")):
        expected = plain_losses(predictions.logits[layer].tolist(), predictions.boxes[layer].tolist(), as_lists(targets), num_boxes)
        got = [losses[f"loss_{kind}{suffix}"].item() for kind in ("class", "bbox", "giou")]
        assert got == pytest.approx(expected, rel=1e-9)
    logits, boxes = predictions.encoder_logits, predictions.encoder_boxes
    assert logits is not None and boxes is not None
    expected = plain_losses(logits.tolist(), boxes.tolist(), as_lists(targets, labels_zero=True), num_boxes)
    assert [losses[f"loss_{kind}_enc"].item() for kind in ("class", "bbox", "giou")] == pytest.approx(expected, rel=1e-9)
    assert len(losses) == 12


def test_losses_worked_out_by_hand():
    # One query, one class, probability 1/2; the box is the target shifted by half its width.
    predictions = Predictions(torch.zeros(1, 1, 1, 1), torch.tensor([[[[0.5, 0.5, 0.2, 0.2]]]]))
    losses = SetCriterion(1)(predictions, [Target(torch.tensor([[0.6, 0.5, 0.2, 0.2]]), torch.tensor([0]))])
    assert losses["loss_class"].item() == pytest.approx(0.25 * 0.25 * math.log(2))
    assert losses["loss_bbox"].item() == pytest.approx(0.1)
    # intersection .1 x .2, union .06, enclosing .3 x .2: IoU 1/3 and nothing of the enclosing box is empty
    assert losses["loss_giou"].item() == pytest.approx(2 / 3)


def test_weighted_sum_takes_all_layers_and_the_encoder():
    criterion = SetCriterion(3, class_weight=2, bbox_weight=5, giou_weight=3)
    predictions, targets = random_batch((2, 1), positions=5)
    losses = criterion(predictions, targets)
    weight = {"class": 2, "bbox": 5, "giou": 3}
    expected = sum(weight[kind] * losses[f"loss_{kind}{s}"].item() for kind in weight for s in ("", "_0", "_1", "_enc"))
    assert criterion.weighted_sum(losses).item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="loss_mask"):
        criterion.weighted_sum({"loss_mask_0": torch.zeros(())})


def test_batch_without_objects_trains_the_classes_alone():
    predictions, targets = random_batch((0, 0))
    logits, boxes = predictions.logits.requires_grad_(), predictions.boxes.requires_grad_()
    criterion = SetCriterion(3)
    losses = criterion(Predictions(logits, boxes), targets)
    criterion.weighted_sum(losses).backward()
    assert losses["loss_bbox"].item() == losses["loss_giou"].item() == 0
    assert losses["loss_class"].item() > 0
    assert logits.grad is not None and boxes.grad is not None
    assert logits.grad.abs().min() > 0
    assert boxes.grad.abs().max() == 0  # there, but zero: other processes of a run expect a gradient


def test_gradients_are_those_of_finite_differences():
    predictions, targets = random_batch((2, 0), layers=2, queries=3, classes=2, positions=4)
    criterion = SetCriterion(2)

    def total(*tensors):
        return criterion.weighted_sum(criterion(Predictions(*tensors), targets))

    inputs = (predictions.logits, predictions.boxes, predictions.encoder_logits, predictions.encoder_boxes)
    given = tuple(x.requires_grad_() for x in inputs if x is not None)
    assert len(given) == 4 and torch.autograd.gradcheck(total, given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_predictions_give_float32_losses(dtype):
    predictions, targets = random_batch((3, 2), positions=8, dtype=torch.float32)
    half = Predictions(*(x.to(dtype) for x in vars(predictions).values() if x is not None))
    rounded = Predictions(*(x.float() for x in vars(half).values() if x is not None))
    criterion = SetCriterion(3)
    with torch.autocast("cpu", dtype=dtype):
        losses = criterion(half, targets)
    expected = criterion(rounded, targets)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx({n: x.item() for n, x in expected.items()})


def test_boxes_may_have_less_precision_than_logits():
    predictions, targets = random_batch((3, 2))
    mixed = Predictions(predictions.logits, predictions.boxes.float())
    losses = SetCriterion(3, class_loss="varifocal")(mixed, targets)
    expected = SetCriterion(3, class_loss="varifocal")(predictions, targets)
    assert {n: x.item() for n, x in losses.items()} == pytest.approx({n: x.item() for n, x in expected.items()}, rel=1e-5)


def test_extreme_logits_and_boxes_without_area_stay_finite():
    logits = torch.tensor([[[[60.0, -60.0], [-60.0, 60.0]]]], requires_grad=True)
    boxes = torch.tensor([[[[0.5, 0.5, 0.0, 0.0], [0.2, 0.2, 0.0, 0.3]]]], requires_grad=True)
    targets = [Target(torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.2, 0.2, 0.1, 0.3]]), torch.tensor([1, 0]))]
    criterion = SetCriterion(2)
    total = criterion.weighted_sum(criterion(Predictions(logits, boxes), targets))
    total.backward()
    assert logits.grad is not None and boxes.grad is not None
    assert total.isfinite() and logits.grad.isfinite().all() and boxes.grad.isfinite().all()


def test_order_of_the_objects_does_not_matter():
    predictions, targets = random_batch((4, 3))
    criterion = SetCriterion(3)
    turned = [Target(t.boxes.flip(0), t.labels.flip(0)) for t in targets]
    first, second = criterion(predictions, targets), criterion(predictions, turned)
    assert {n: x.item() for n, x in first.items()} == pytest.approx({n: x.item() for n, x in second.items()}, rel=1e-12)


def test_match_names_queries_and_objects_of_each_layer():
    boxes = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.2, 0.2], [0.5, 0.5, 0.3, 0.3]])
    predictions = Predictions(torch.zeros(2, 1, 3, 2), torch.stack((boxes, boxes.flip(0)))[:, None])
    matching = SetCriterion(2).match(predictions, [Target(boxes[[1, 0]], torch.tensor([0, 1]))])
    found = [dict(zip(*(x.tolist() for x in matching.decoder.of_image(0, layer)), strict=True)) for layer in (0, 1)]
    assert found == [{1: 0, 0: 1}, {1: 0, 2: 1}]
    assert matching.encoder is None


def test_batch_and_classes_must_fit():
    predictions, targets = random_batch((1, 1))
    with pytest.raises(ValueError, match="1 targets for a batch of 2"):
        SetCriterion(3)(predictions, targets[:1])
    with pytest.raises(ValueError, match="made for 5 classes"):
        SetCriterion(5)(predictions, targets)
    with pytest.raises(ValueError, match="num_classes"):
        SetCriterion(0)


def test_build_uses_the_official_weights():
    assert SetCriterion.from_config(ModelConfig(num_classes=4)).weights == {"loss_class": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0}
