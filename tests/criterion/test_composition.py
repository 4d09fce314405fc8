"""The whole loss of DINO and of H-DETR once more, image by image in float64, and eight steps of their optimisers written out.

Class cost and loss, boxes, divisors and weights stand here as the papers' code has them; only the assignment is SciPy's.
"""

import math
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from deformable_detr.config import LossConfig
from deformable_detr.criterion import SetCriterion
from deformable_detr.presets import model_preset
from deformable_detr.structures import Predictions, Target
from deformable_detr.training import build_optimizer

CLASSES, LAYERS = 4, 3


def corners(box: Tensor) -> Tensor:
    cx, cy, w, h = box.unbind(-1)
    return torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), -1)


def plain_giou(one: Tensor, other: Tensor, eps: float) -> Tensor:
    """Of two boxes `[4]` cxcywh."""
    a, b = corners(one), corners(other)
    inter = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inter
    around = (torch.maximum(a[2:], b[2:]) - torch.minimum(a[:2], b[:2])).prod()
    return inter / (union + eps) - (around - union) / (around + eps)


def plain_match(logits: Tensor, boxes: Tensor, target: Target, eps: float, copies: int = 1) -> list[tuple[int, int]]:
    """Pairs (query, object) of one image: costs 2 / 5 / 2."""
    order = [index for _ in range(copies) for index in range(len(target))]
    costs = torch.zeros(len(logits), len(order), dtype=torch.float64)
    for query in range(len(logits)):
        for column, index in enumerate(order):
            p = 1 / (1 + math.exp(-logits[query, target.labels[index]].item()))
            positive = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8)
            negative = 0.75 * p**2 * -math.log(1 - p + 1e-8)
            wanted = target.boxes[index]
            distance = (boxes[query] - wanted).abs().sum()
            costs[query, column] = 2 * (positive - negative) + 5 * distance - 2 * plain_giou(boxes[query], wanted, eps)
    queries, columns = linear_sum_assignment(costs.detach().numpy())
    return [(int(query), order[column]) for query, column in zip(queries, columns, strict=True)]


def plain_losses(logits: Tensor, boxes: Tensor, targets: list[Target], pairs: list, divisor: float, eps: float) -> Tensor:
    """Class, L1 and GIoU loss of one layer: `[3]`."""
    total = torch.zeros(3, dtype=torch.float64)
    for image, matched in enumerate(pairs):
        truth = torch.zeros_like(logits[image])
        for query, index in matched:
            truth[query, targets[image].labels[index]] = 1
            distance = (boxes[image, query] - targets[image].boxes[index]).abs().sum()
            overlap = plain_giou(boxes[image, query], targets[image].boxes[index], eps)
            total = total + torch.stack((torch.zeros_like(distance), distance, 1 - overlap))
        p = logits[image].sigmoid()
        focal = -truth * 0.25 * (1 - p) ** 2 * p.log() - (1 - truth) * 0.75 * p**2 * (1 - p).log()
        total = total + torch.stack((focal.sum(), torch.zeros_like(focal.sum()), torch.zeros_like(focal.sum())))
    return total / divisor


def plain_total(predictions: Predictions, targets: list[Target], *, dino: bool, groups: int, copies: int, weight: float) -> Tensor:
    """What DINO (1 / 5 / 2) or H-DETR (2 / 5 / 2) minimises."""
    eps, weights = (1e-6, [1.0, 5.0, 2.0]) if dino else (0.0, [2.0, 5.0, 2.0])
    objects = sum(map(len, targets))
    terms: list[Tensor] = []

    def matched(logits: Tensor, boxes: Tensor, wanted: list[Target], number: int = 1) -> Tensor:
        pairs = [plain_match(logits[i], boxes[i], wanted[i], eps, number) for i in range(len(wanted))]
        return plain_losses(logits, boxes, wanted, pairs, max(1, number * objects), eps)

    terms += [matched(logits, boxes, targets) for logits, boxes in zip(predictions.logits, predictions.boxes, strict=True)]
    assert predictions.encoder_logits is not None and predictions.encoder_boxes is not None
    objectness = [Target(target.boxes, torch.zeros_like(target.labels)) for target in targets]
    terms.append(matched(predictions.encoder_logits, predictions.encoder_boxes, targets if dino else objectness))
    if predictions.denoising_logits is not None and predictions.denoising_boxes is not None:
        most = max(map(len, targets))
        pairs = [[(2 * most * group + i, i) for group in range(groups) for i in range(len(target))] for target in targets]
        terms += [
            plain_losses(logits, boxes, targets, pairs, max(1, objects) * groups, eps)
            for logits, boxes in zip(predictions.denoising_logits, predictions.denoising_boxes, strict=True)
        ]
    if predictions.one_to_many_logits is not None and predictions.one_to_many_boxes is not None:
        terms += [
            weight * matched(logits, boxes, targets, copies)
            for logits, boxes in zip(predictions.one_to_many_logits, predictions.one_to_many_boxes, strict=True)
        ]
    return (torch.stack(terms).sum(0) * torch.tensor(weights, dtype=torch.float64)).sum()


def generated(counts: tuple[int, ...], *, dino: bool, groups: int, seed: int) -> tuple[dict[str, Tensor], list[Target]]:
    """Leaves of all branches before the sigmoid of the boxes, and targets."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    batch, most = len(counts), max(counts)
    leaves = {"logits": random(LAYERS, batch, 7, CLASSES), "boxes": random(LAYERS, batch, 7, 4)}
    leaves |= {"encoder_logits": random(batch, 9, CLASSES), "encoder_boxes": random(batch, 9, 4)}
    branch, queries = ("denoising", 2 * groups * most) if dino else ("one_to_many", 10)
    leaves |= {f"{branch}_logits": random(LAYERS, batch, queries, CLASSES), f"{branch}_boxes": random(LAYERS, batch, queries, 4)}
    targets = [
        Target(
            torch.rand(n, 4, generator=generator, dtype=torch.float64) * 0.4 + 0.2,
            torch.randint(CLASSES, (n,), generator=generator),
        )
        for n in counts
    ]
    return leaves, targets


def as_predictions(leaves: dict[str, Tensor]) -> Predictions:
    given: Any = {name: value.sigmoid() if name.endswith("boxes") else value for name, value in leaves.items()}
    return Predictions(**given)


@pytest.mark.parametrize("counts", [(3, 1), (0, 2), (0, 0), (9, 1)])  # 9 objects are more than the queries
@pytest.mark.parametrize("dino", [True, False], ids=["dino", "hdetr"])
def test_total_and_gradients_equal_a_plain_composition(dino: bool, counts: tuple[int, ...]) -> None:
    leaves, targets = generated(counts, dino=dino, groups=2, seed=sum(counts))
    model = model_preset("r50-dino" if dino else "r50-hdetr", num_classes=CLASSES)
    criterion = SetCriterion.from_config(model, LossConfig(one_to_many_weight=0.5, one_to_many_copies=3))
    gradients = []
    for total in (
        criterion.weighted_sum(criterion(as_predictions(leaves), targets)),
        plain_total(as_predictions(leaves), targets, dino=dino, groups=2, copies=3, weight=0.5),
    ):
        gradients.append((total.item(), torch.autograd.grad(total, list(leaves.values()), allow_unused=True)))
    (ours, our_gradients), (expected, gradients_expected) = gradients
    assert ours == pytest.approx(expected, rel=1e-9)
    for name, one, other in zip(leaves, our_gradients, gradients_expected, strict=True):
        zero = torch.zeros_like(leaves[name])
        torch.testing.assert_close(zero if one is None else one, zero if other is None else other, msg=name)


class Parts(torch.nn.Module):
    """A parameter in each of the optimiser's groups."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torch.nn.Linear(2, 2)
        self.sampling_offsets = torch.nn.Linear(2, 2)
        self.norm = torch.nn.LayerNorm(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.sampling_offsets(self.backbone(x).tanh()))


@pytest.mark.parametrize(("lr", "sampling", "rates"), [(1e-4, 1.0, (1e-5, 1e-4)), (2e-4, 0.1, (2e-5, 2e-5))], ids=["dino", "hdetr"])
def test_eight_steps_are_those_of_adamw_written_out(lr: float, sampling: float, rates: tuple[float, float]) -> None:
    """Clip at .1, decay 1e-4 on everything, moments .9 and .999, eps 1e-8."""
    torch.manual_seed(0)
    model = Parts().double()
    optimizer = build_optimizer(model, lr=lr, sampling_lr_scale=sampling)
    assert len(optimizer.param_groups) == (2 if sampling == 1 else 3)
    rate_of = {"backbone": rates[0], "sampling_offsets": rates[1], "norm": lr}
    values = {name: value.detach().clone() for name, value in model.named_parameters()}
    first = {name: torch.zeros_like(value) for name, value in values.items()}
    second = {name: torch.zeros_like(value) for name, value in values.items()}
    for step in range(1, 9):
        x = torch.randn(3, 2, dtype=torch.float64)
        optimizer.zero_grad()
        (model(x) - 1).pow(2).sum().backward()
        gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
        norm = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients.values()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        for name, value in values.items():
            gradient, rate = gradients[name] * min(1.0, 0.1 / (norm + 1e-6)), rate_of[name.split(".")[0]]
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient.square()
            moved = (first[name] / (1 - 0.9**step)) / ((second[name] / (1 - 0.999**step)).sqrt() + 1e-8)
            values[name] = value * (1 - rate * 1e-4) - rate * moved
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), values[name], rtol=1e-9, atol=1e-12, msg=name)
