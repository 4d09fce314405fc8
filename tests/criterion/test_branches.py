"""The losses of what exists in training alone: denoising queries, one-to-many branches, copies of the targets."""

import dataclasses

import pytest
import torch
from tests.criterion.test_criterion import plain_giou, random_batch, sigmoid

from deformable_detr.config import LossConfig, ModelConfig
from deformable_detr.criterion import HungarianMatcher, QualityMatcher, SetCriterion
from deformable_detr.criterion.denoising import DenoisingMatcher
from deformable_detr.structures import Predictions, Target

DINO = ModelConfig(
    num_classes=3, box_refinement=True, two_stage=True, proposal_classes=True, proposal_loss="selected", denoising_queries=100
)


def random_layers(layers, batch, queries, classes=3):
    logits = torch.randn(layers, batch, queries, classes, dtype=torch.float64)
    return logits, torch.rand(layers, batch, queries, 4, dtype=torch.float64) * 0.4 + 0.1


def plain_pair_losses(logits, boxes, pairs, targets, divisor):
    """Focal, L1 and GIoU of one layer whose pairs `{(image, query): object}` are known."""
    loss_class = loss_bbox = loss_giou = 0.0
    for image, rows in enumerate(logits):
        for query, row in enumerate(rows):
            found = pairs.get((image, query))
            for k, x in enumerate(row):
                p = torch.tensor(sigmoid(x), dtype=torch.float64)
                yes = found is not None and targets[image].labels[found] == k
                loss_class += (0.25 * (1 - p) ** 2 * -p.log() if yes else 0.75 * p**2 * -(1 - p).log()).item()
            if found is not None:
                box, wanted = boxes[image][query], targets[image].boxes[found].tolist()
                loss_bbox += sum(abs(x - y) for x, y in zip(box, wanted, strict=True))
                loss_giou += 1 - plain_giou(box, wanted)
    return [x / divisor for x in (loss_class, loss_bbox, loss_giou)]


def test_denoising_pairs_by_hand():
    # two objects at most: a group is 2 positives and 2 negatives; 3 groups
    targets = [Target(torch.rand(n, 4), torch.zeros(n, dtype=torch.int64)) for n in (1, 2, 0)]
    matching = DenoisingMatcher()(torch.zeros(2, 3, 12, 4), torch.zeros(2, 3, 12, 4), targets)
    for layer in (0, 1):
        found = [list(zip(*(x.tolist() for x in matching.of_image(image, layer)), strict=True)) for image in range(3)]
        assert found == [[(0, 0), (4, 0), (8, 0)], [(0, 0), (1, 1), (4, 0), (5, 1), (8, 0), (9, 1)], []]


def test_denoising_losses_equal_a_plain_implementation():
    predictions, targets = random_batch((1, 2, 0))
    logits, boxes = random_layers(3, 3, 12)
    losses = SetCriterion(3)(dataclasses.replace(predictions, denoising_logits=logits, denoising_boxes=boxes), targets)
    pairs = {(0, q): 0 for q in (0, 4, 8)} | {(1, q): q % 4 for q in (0, 1, 4, 5, 8, 9)}
    for layer, suffix in ((2, "_dn"), (0, "_dn_0"), (1, "_dn_1")):
        expected = plain_pair_losses(logits[layer].tolist(), boxes[layer].tolist(), pairs, targets, divisor=3 * 3)
        got = [losses[f"loss_{kind}{suffix}"].item() for kind in ("class", "bbox", "giou")]
        assert got == pytest.approx(expected, rel=1e-9)
    assert len(losses) == 18


def test_denoising_of_a_batch_without_objects_is_zero_and_keeps_its_gradient():
    predictions, targets = random_batch((0, 0))
    seed = torch.ones((), dtype=torch.float64, requires_grad=True)
    logits, boxes = seed * torch.zeros(3, 2, 0, 3), seed * torch.zeros(3, 2, 0, 4)
    losses = SetCriterion(3)(dataclasses.replace(predictions, denoising_logits=logits, denoising_boxes=boxes), targets)
    assert all(losses[f"loss_{kind}_dn"].item() == 0 for kind in ("class", "bbox", "giou"))
    losses["loss_class_dn"].backward()
    assert seed.grad is not None and seed.grad.item() == 0


def test_denoising_queries_of_other_targets_are_refused():
    predictions, targets = random_batch((1, 2))
    for queries in (6, 10):
        logits, boxes = random_layers(3, 2, queries)
        other = dataclasses.replace(predictions, denoising_logits=logits, denoising_boxes=boxes)
        with pytest.raises(ValueError, match="the model must have seen the same targets as the criterion"):
            SetCriterion(3)(other, targets)


def repeated(targets, copies):
    return [Target(target.boxes.repeat(copies, 1), target.labels.repeat(copies)) for target in targets]


@pytest.mark.parametrize("counts", [(2, 1), (0, 2), (0, 0), (5, 1)])  # 5 objects twice are more than the 6 queries
def test_hybrid_branch_is_a_matching_with_repeated_targets(counts):
    predictions, targets = random_batch(counts)
    logits, boxes = random_layers(3, 2, 6)
    criterion = SetCriterion(3, one_to_many_copies=2)
    losses = criterion(dataclasses.replace(predictions, one_to_many_logits=logits, one_to_many_boxes=boxes), targets)
    alone = SetCriterion(3)(Predictions(logits, boxes), repeated(targets, 2))
    for kind in ("class", "bbox", "giou"):
        for layer in ("", "_0", "_1"):
            assert losses[f"loss_{kind}_one_to_many{layer}"].item() == pytest.approx(alone[f"loss_{kind}{layer}"].item(), rel=1e-9)
    others = SetCriterion(3)(predictions, targets)
    assert all(losses[name].item() == loss.item() for name, loss in others.items())


def test_copies_in_the_decoder_repeat_the_targets():
    predictions, targets = random_batch((1, 2), positions=7)
    ours = SetCriterion(3, copies=2)(predictions, targets)
    theirs = SetCriterion(3)(predictions, repeated(targets, 2))
    for name, loss in ours.items():
        other = SetCriterion(3)(predictions, targets) if name.endswith("_enc") else theirs
        assert loss.item() == pytest.approx(other[name].item(), rel=1e-9), name


def test_objects_of_copies_are_counted_within_the_image():
    predictions, targets = random_batch((2, 1), queries=8)
    matching = HungarianMatcher(copies=3)(predictions.logits, predictions.boxes, targets)
    assert sorted(matching.of_image(0)[1].tolist()) == [0, 0, 0, 1, 1, 1]
    assert matching.of_image(1)[1].tolist() == [0, 0, 0]
    assert len(set(matching.of_image(0)[0].tolist())) == 6


def test_quality_branch_is_divided_by_the_objects_and_may_differ_from_layer_to_layer():
    predictions, targets = random_batch((2, 1))
    logits, boxes = random_layers(3, 2, 8)
    boxes[1, 0, :4] = targets[0].boxes[0]  # many good ones in the second layer alone
    criterion = SetCriterion(3, one_to_many=QualityMatcher(copies=3))
    both = dataclasses.replace(predictions, one_to_many_logits=logits, one_to_many_boxes=boxes)
    losses, matching = criterion(both, targets), criterion.match(both, targets).one_to_many
    assert isinstance(matching, tuple) and len({len(layer.images) for layer in matching}) > 1
    for layer, suffix in ((2, ""), (0, "_0"), (1, "_1")):
        pairs = {
            (image, query): obj
            for image, query, obj in zip(
                *(x.flatten().tolist() for x in (matching[layer].images, matching[layer].queries, matching[layer].objects)),
                strict=True,
            )
        }
        expected = plain_pair_losses(logits[layer].tolist(), boxes[layer].tolist(), pairs, targets, divisor=3)
        got = [losses[f"loss_{kind}_one_to_many{suffix}"].item() for kind in ("class", "bbox", "giou")]
        assert got == pytest.approx(expected, rel=1e-9)


def test_selected_proposals_learn_their_true_classes():
    predictions, targets = random_batch((2, 1), positions=5)
    losses = SetCriterion(3, encoder_classes=True)(predictions, targets)
    logits, boxes = predictions.encoder_logits, predictions.encoder_boxes
    assert logits is not None and boxes is not None
    expected = SetCriterion(3)(Predictions(logits[None], boxes[None]), targets)
    assert all(losses[f"{name}_enc"].item() == pytest.approx(loss.item(), rel=1e-12) for name, loss in expected.items())


def test_giou_eps_enters_both_denominators_in_loss_and_cost():
    box, other = torch.tensor([0.5, 0.5, 2e-3, 1e-3]), torch.tensor([0.5, 0.5, 1e-3, 1e-3])
    predictions = Predictions(torch.zeros(1, 1, 1, 1), box[None, None, None])
    losses = SetCriterion(1, giou_eps=1e-6)(predictions, [Target(other[None], torch.tensor([0]))])
    # shared 1e-6, union and enclosing box 2e-6
    assert losses["loss_giou"].item() == pytest.approx(1 - 1e-6 / 3e-6, rel=1e-4)
    assert SetCriterion(1, giou_eps=1e-6).matcher.giou_eps == 1e-6


def test_weights_of_a_branch():
    predictions, targets = random_batch((1, 1), positions=4)
    logits, boxes = random_layers(3, 2, 4)
    both = dataclasses.replace(predictions, denoising_logits=logits, denoising_boxes=boxes)
    criterion = SetCriterion(3, class_weight=2, branch_weights={"loss_class_dn": 0.5, "loss_bbox_enc": 0.0})
    losses = criterion(both, targets)
    expected = 0.0
    for name, loss in losses.items():
        weight = {"class": 2.0, "bbox": 5.0, "giou": 2.0}[name.split("_")[1]]
        weight = 0.5 if name.startswith("loss_class_dn") else 0.0 if name == "loss_bbox_enc" else weight
        expected += weight * loss.item()
    assert criterion.weighted_sum(losses).item() == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match=r"loss_clas_dn.*known are loss_class, loss_class_enc, loss_class_dn"):
        SetCriterion(3, branch_weights={"loss_clas_dn": 1.0})


def test_settings_fit_the_model():
    dino = SetCriterion.from_config(DINO)
    assert dino.weights == {"loss_class": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    assert (dino.matcher.class_cost, dino.matcher.giou_eps, dino.encoder_classes) == (2.0, 1e-6, True)
    assert SetCriterion.from_config(DINO, LossConfig(class_weight=2.0, giou_eps=0.0)).weights["loss_class"] == 2.0
    hybrid = ModelConfig(box_refinement=True, two_stage=True, one_to_many_queries=1500)
    criterion = SetCriterion.from_config(hybrid, LossConfig(one_to_many_weight=0.5, branch_weights={"loss_bbox_one_to_many": 9.0}))
    assert criterion.one_to_many_matcher.copies == 6
    assert criterion.weights["loss_class"] == 2.0 and criterion.branch_weights["loss_class_one_to_many"] == 1.0
    assert criterion.branch_weights["loss_bbox_one_to_many"] == 9.0 and not criterion.encoder_classes
    assert isinstance(SetCriterion.from_config(ModelConfig()).one_to_many_matcher, QualityMatcher)
    assert SetCriterion.from_config(ModelConfig(), LossConfig(class_loss="mal")).weights["loss_class"] == 1.0
    silent = ModelConfig(suppressor=True)
    assert [LossConfig().class_loss_of(model) for model in (ModelConfig(), DINO, silent)] == ["focal", "focal", "ia-bce"]
    assert SetCriterion.from_config(silent).weights["loss_class"] == 2.0
