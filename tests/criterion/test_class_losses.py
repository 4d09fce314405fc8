"""The class losses against numbers worked out in plain Python, and against transformers' RT-DETR and DEIMv2."""

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from deformable_detr.categories import Categories
from deformable_detr.config import LossConfig, ModelConfig
from deformable_detr.criterion import SetCriterion
from deformable_detr.criterion.class_losses import class_loss_function
from deformable_detr.structures import Predictions, Target

KINDS = ("focal", "ia-bce", "varifocal", "mal")


def loss_of(kind):
    return class_loss_function(kind, focal_alpha=0.25, focal_gamma=2.0, mal_gamma=1.5)


def bce(p, t):
    return -t * math.log(p) - (1 - t) * math.log(1 - p)


def plain(kind, p, positive, u):
    """The loss of one element as the papers write it."""
    if kind == "focal":
        return 0.25 * (1 - p) ** 2 * bce(p, 1) if positive else 0.75 * p**2 * bce(p, 0)
    if kind == "ia-bce":
        return bce(p, max(p**0.25 * u**0.75, 0.01)) if positive else p**2 * bce(p, 0)
    if kind == "varifocal":
        return u * bce(p, u) if positive else 0.75 * p**2 * bce(p, 0)
    return bce(p, u**1.5) if positive else p**1.5 * bce(p, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("u", [0.0, 0.3, 0.85, 1.0])
def test_value_is_the_formula_of_the_paper(kind, positive, u):
    for x in (-3.0, -0.4, 0.0, 2.5):
        logit, quality = torch.tensor([x], dtype=torch.float64), torch.tensor([u] * positive, dtype=torch.float64)
        got = loss_of(kind)(logit, (torch.tensor([positive]),), quality).item()
        assert got == pytest.approx(plain(kind, 1 / (1 + math.exp(-x)), positive, u), rel=1e-9)


@pytest.mark.parametrize(
    ("kind", "positive", "slope"),
    [
        # d BCE(p, t) / dx = p - t, for the goals and weights that are held constant
        ("ia-bce", True, lambda p, u: p - p**0.25 * u**0.75),
        ("ia-bce", False, lambda p, u: p**2 * p + 2 * p * p * (1 - p) * -math.log(1 - p)),  # the weight p² has a gradient
        ("varifocal", True, lambda p, u: u * (p - u)),
        ("varifocal", False, lambda p, u: 0.75 * p**2 * p),
        ("mal", True, lambda p, u: p - u**1.5),
        ("mal", False, lambda p, u: p**1.5 * p),
    ],
)
def test_slope_shows_what_is_held_constant(kind, positive, slope):
    logit = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    loss_of(kind)(logit, (torch.tensor([positive]),), torch.tensor([0.6] * positive, dtype=torch.float64)).sum().backward()
    assert logit.grad is not None
    assert logit.grad.item() == pytest.approx(slope(1 / (1 + math.exp(-0.7)), 0.6), rel=1e-9)


def matched_batch():
    """Predictions near their targets, so that IoUs are neither 0 nor 1."""
    generator = torch.Generator().manual_seed(5)
    targets = [
        Target(torch.rand(n, 4, generator=generator) * 0.3 + 0.2, torch.randint(4, (n,), generator=generator)) for n in (3, 0, 5)
    ]
    boxes = torch.rand(3, 10, 4, generator=generator) * 0.3 + 0.2
    for image, target in enumerate(targets):
        boxes[image, : len(target)] = target.boxes * 1.1
    logits = torch.randn(3, 10, 4, generator=generator)
    return logits, boxes, targets


@pytest.mark.parametrize("kind", ["varifocal", "mal"])
def test_losses_agree_with_transformers(kind):
    from transformers.loss.loss_deimv2 import Deimv2Loss
    from transformers.loss.loss_rt_detr import RTDetrLoss

    logits, boxes, targets = matched_batch()
    criterion = SetCriterion(4, class_loss=kind)
    matching = criterion.match(Predictions(logits[None], boxes[None]), targets).decoder
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in targets]
    settings = SimpleNamespace(
        num_classes=4, alpha=0.75, gamma=2.0 if kind == "varifocal" else 1.5, mal_alpha=None,
        _get_source_permutation_idx=lambda pairs: RTDetrLoss._get_source_permutation_idx(cast(Any, None), pairs),
    )  # fmt: skip
    theirs = RTDetrLoss.loss_labels_vfl if kind == "varifocal" else Deimv2Loss.loss_labels_mal
    indices = [matching.of_image(image) for image in range(3)]
    (expected,) = theirs(cast(Any, settings), {"logits": logits, "pred_boxes": boxes}, labels, indices, 8).values()
    ours = criterion(Predictions(logits[None], boxes[None]), targets)["loss_class"]
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_stay_finite_and_boxes_get_no_gradient(kind):
    logits = torch.tensor([[[[80.0, -80.0], [-80.0, 80.0]]]], requires_grad=True)
    boxes = torch.tensor([[[[0.5, 0.5, 0.0, 0.0], [0.2, 0.2, 0.1, 0.3]]]], requires_grad=True)
    targets = [Target(torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.2, 0.2, 0.1, 0.3]]), torch.tensor([1, 0]))]
    loss = SetCriterion(2, class_loss=kind)(Predictions(logits, boxes), targets)["loss_class"]
    loss.backward()
    assert loss.isfinite() and logits.grad is not None and logits.grad.isfinite().all()
    assert boxes.grad is None


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown class loss 'hinge'; known are focal, ia-bce, varifocal, mal"):
        SetCriterion(2, class_loss="hinge")


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_classes(kind):
    """In the decoder and in denoising each class's loss has its weight, matched or not; objectness of proposals has none."""
    config = ModelConfig(num_classes=2, box_refinement=True, two_stage=True, denoising_queries=1)
    loss = LossConfig(class_loss=kind, weight_per_class={"cat": 3.0})
    criterion = SetCriterion.from_config(config, loss, Categories.from_names(["dog", "cat"]))
    box, apart = [0.5, 0.5, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]
    targets = [Target(torch.tensor([box], dtype=torch.float64), torch.tensor([1]))]
    logits = torch.tensor([[[[0.3, 0.9], [-1.2, -0.6]]]], dtype=torch.float64)  # one layer, two queries: dog, cat
    boxes = torch.tensor([[[box, apart]]], dtype=torch.float64)
    branches = {"encoder_logits": logits[0], "encoder_boxes": boxes[0], "denoising_logits": logits, "denoising_boxes": boxes}
    losses = criterion(Predictions(logits, boxes, **branches), targets)

    p = [[1 / (1 + math.exp(-x)) for x in row] for row in logits[0, 0].tolist()]
    dogs = plain(kind, p[0][0], False, 1.0) + plain(kind, p[1][0], False, 1.0)
    cats = plain(kind, p[0][1], True, 1.0) + plain(kind, p[1][1], False, 1.0)
    assert losses["loss_class"].item() == pytest.approx(dogs + 3 * cats, rel=1e-9)
    assert losses["loss_class_dn"].item() == pytest.approx(dogs + 3 * cats, rel=1e-9)
    anything = plain(kind, p[0][0], True, 1.0) + plain(kind, p[1][0], False, 1.0)
    nothing = plain(kind, p[0][1], False, 1.0) + plain(kind, p[1][1], False, 1.0)
    assert losses["loss_class_enc"].item() == pytest.approx(anything + nothing, rel=1e-9)


def test_weights_of_unknown_classes():
    loss = LossConfig(weight_per_class={"cats": 2.0})
    with pytest.raises(ValueError, match=r"weight_per_class 'cats'; did you mean 'cat'\? known are dog, cat"):
        SetCriterion.from_config(ModelConfig(num_classes=2), loss, Categories.from_names(["dog", "cat"]))
    with pytest.raises(ValueError, match="needs 2 numbers of at least 0"):
        SetCriterion(2, weight_per_class=[1.0, -1.0])
