"""The single losses against numbers worked out by hand, torchvision and transformers."""

import math
from types import SimpleNamespace

import pytest
import torch
from torchvision.ops import generalized_box_iou
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from deformable_detr.criterion import SetCriterion
from deformable_detr.criterion.class_losses import focal_loss
from deformable_detr.criterion.losses import elementwise_giou
from deformable_detr.structures import Predictions, Target


@pytest.mark.parametrize(
    ("box", "other", "expected"),
    [
        ([0, 0, 2, 2], [0, 0, 2, 2], 1),
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7 - 2 / 9),  # union 7, enclosing 9
        ([0, 0, 1, 1], [2, 0, 3, 1], -1 / 3),  # apart: union 2, enclosing 3
        ([0, 0, 4, 4], [1, 1, 2, 3], 2 / 16),  # one inside the other
        ([0, 0, 1, 1], [1, 0, 2, 1], 0),  # touching
    ],
)
def test_giou_by_hand(box, other, expected):
    giou = elementwise_giou(torch.tensor(box, dtype=torch.float64), torch.tensor(other, dtype=torch.float64))
    assert giou.item() == pytest.approx(expected, abs=1e-12)


def test_giou_of_all_pairs_equals_torchvision():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(20, 2, 2, generator=generator, dtype=torch.float64).sort(dim=1).values.flatten(1)
    boxes, others = corners[:12], corners[12:]
    torch.testing.assert_close(elementwise_giou(boxes[:, None], others), generalized_box_iou(boxes, others))


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 1.5)])
def test_focal_loss_equals_torchvision(alpha, gamma):
    logits = torch.linspace(-12, 12, 41, dtype=torch.float64).repeat(2, 1)
    positive = torch.tensor([[True], [False]]).expand(2, 41)
    expected = torchvision_focal_loss(logits, positive.double(), alpha, gamma)
    loss = focal_loss(alpha, gamma)(logits, positive.nonzero(as_tuple=True), torch.rand(41, dtype=torch.float64))
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-14)


def test_focal_loss_keeps_its_slope_at_certain_mistakes():
    logits = torch.tensor([-100.0, 100.0], requires_grad=True)
    loss = focal_loss()(logits, (torch.tensor([0]),), torch.rand(1))
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0.25 * 100, 0.75 * 100])
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx([-0.25, 0.75])


def test_losses_agree_with_transformers():
    """They differ only in what is said of no class weight (1) and in the proposals, which have no loss there."""
    from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss

    torch.manual_seed(1)
    layers, images, queries, classes = 3, 3, 12, 4
    logits = torch.randn(layers, images, queries, classes)
    boxes = torch.rand(layers, images, queries, 4) * 0.4 + 0.1
    targets = [Target(torch.rand(n, 4) * 0.4 + 0.1, torch.randint(classes, (n,))) for n in (3, 0, 5)]
    config = SimpleNamespace(
        class_cost=2, bbox_cost=5, giou_cost=2, num_labels=classes, focal_alpha=0.25, auxiliary_loss=True, decoder_layers=layers
    )
    config.bbox_loss_coefficient, config.giou_loss_coefficient = 5, 2
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in targets]
    total, theirs, _ = DeformableDetrForObjectDetectionLoss(logits[-1], labels, "cpu", boxes[-1], config, logits, boxes)
    criterion = SetCriterion(classes, class_weight=1)
    ours = criterion(Predictions(logits, boxes), targets)
    for name, loss in ours.items():
        assert loss.item() == pytest.approx(theirs[name.replace("class", "ce")].item(), rel=1e-5), name
    assert criterion.weighted_sum(ours).item() == pytest.approx(float(total), rel=1e-5)


def test_perfect_predictions_cost_nearly_nothing():
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.7, 0.3, 0.1]])
    logits = torch.full((1, 1, 3, 2), -20.0)
    logits[0, 0, 0, 1] = logits[0, 0, 2, 0] = 20.0
    predicted = torch.stack((boxes[0], torch.tensor([0.5, 0.5, 1.0, 1.0]), boxes[1]))[None, None]
    criterion = SetCriterion(2)
    losses = criterion(Predictions(logits, predicted), [Target(boxes, torch.tensor([1, 0]))])
    assert criterion.weighted_sum(losses).item() == pytest.approx(0, abs=1e-5)
    assert math.isfinite(criterion.weighted_sum(losses))
