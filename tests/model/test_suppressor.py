"""The suppressor against its definition written out with loops, and what it must leave alone."""

import math
from typing import Any

import pytest
import torch
from tests.model.test_modern import SMALL, batch, shaken
from torchvision.ops import box_iou

from deformable_detr.boxes import cxcywh_to_xyxy, elementwise_iou
from deformable_detr.checkpoints import load_pretrained, save_weights
from deformable_detr.checkpoints.convert import convert
from deformable_detr.criterion import SetCriterion
from deformable_detr.model import build_model
from deformable_detr.model.encoder import FeedForward
from deformable_detr.model.suppressor import Suppressor
from deformable_detr.structures import Predictions

WITH = {**SMALL, "num_queries": 9, "suppressor": True, "denoising_queries": 50, "dropout": 0.0}


def suppressor(hidden_dim: int) -> Suppressor:
    torch.manual_seed(0)
    return shaken(Suppressor(FeedForward(hidden_dim, 16, 0.0), hidden_dim).double())


def model(**settings: Any) -> Any:
    torch.manual_seed(0)
    return shaken(build_model("r50-two-stage", **{**WITH, **settings})).train()


def test_both_numbers_by_hand():
    part = suppressor(8)
    logits, boxes = torch.randn(2, 1, 4, 3, dtype=torch.float64), torch.rand(2, 1, 4, 4, dtype=torch.float64) * 0.5 + 0.1
    query = torch.randn(2, 1, 4, 8, dtype=torch.float64)
    found = part.eval()(Predictions(logits, boxes), query).logits
    assert torch.equal(found[0], logits[0])
    gate, start = part.overlap_gate.weight.item(), part.overlap_gate.bias.item()
    scores, corners = logits[-1, 0].amax(-1), cxcywh_to_xyxy(boxes[-1, 0])
    overlaps, classes = box_iou(corners, corners), logits[-1, 0].sigmoid()
    for i in range(4):
        x = query[-1, 0, i]
        ffn: Any = part.ffn
        own = part.score_head(part.norm(x + ffn.linear2(ffn.linear1(x).clamp(min=0)))).item()
        costs = [0.0]
        for j in range(4):
            if scores[j] > scores[i]:
                likeness = float(classes[i] @ classes[j] / classes[i].norm() / classes[j].norm())
                costs.append(1 / (1 + math.exp(-gate * overlaps[i, j].item() * likeness - start)))
        expected = logits[-1, 0, i] + own - part.strength.item() * max(costs)
        torch.testing.assert_close(found[-1, 0, i], expected, rtol=0, atol=1e-6)


def test_a_better_query_of_the_same_class_that_overlaps_costs_the_score():
    """Boxes of 2 x 2, one behind the other by 1 / 0.5 / 6: IoU 1/3, .6, and none; the fourth has the place of the best, but
    another class, and no better query of its own."""
    part = Suppressor(FeedForward(8, 16, 0.0), 8).double()
    boxes = torch.tensor([[[x, 5.0, 2.0, 2.0] for x in (4.0, 5.0, 4.5, 10.0, 4.0)]], dtype=torch.float64)
    classes = torch.tensor([[[0.9, 0.0], [0.8, 0.0], [0.7, 0.0], [0.6, 0.0], [0.0, 0.5]]], dtype=torch.float64)
    off = part.covered(classes.amax(-1), boxes, classes)[0, :, 0]
    cost = [5 / (1 + math.exp(12 - 20 * iou)) for iou in (0.0, 1 / 3, 0.6)]
    assert off.tolist() == pytest.approx([0.0, cost[1], cost[2], cost[0], cost[0]], rel=1e-6)
    assert cost[2] == pytest.approx(2.5)
    corners = cxcywh_to_xyxy(boxes[0])
    torch.testing.assert_close(elementwise_iou(corners[:, None], corners), box_iou(corners, corners))


def test_of_equal_scores_the_first_query_is_better():
    """Three queries with one box and one class, whose scores bfloat16 cannot tell apart: one keeps its score, two lose it."""
    part = Suppressor(FeedForward(8, 16, 0.0), 8).bfloat16()
    scores = torch.tensor([[0.7001, 0.7, 0.6999]]).bfloat16()
    off = part.covered(scores, torch.tensor([[[0.5, 0.5, 0.2, 0.2]] * 3]), scores[..., None])[0, :, 0]
    assert off.tolist() == pytest.approx([0.0, *[5 / (1 + math.exp(-8))] * 2], rel=0.01)


def test_at_first_only_the_overlap_has_an_influence():
    fresh: Any = build_model("r50-two-stage", **WITH).train()
    images, targets = batch()
    predictions = fresh(images, targets)
    last, boxes = predictions.one_to_many_logits[-1], predictions.one_to_many_boxes[-1]
    off = fresh.suppressor.covered(last.amax(-1), boxes, last.sigmoid())
    torch.testing.assert_close(predictions.logits[0], last - off, rtol=0, atol=1e-6)


def test_one_layer_learns_one_to_one_and_all_before_it_one_to_many():
    with_it = model()
    images, targets = batch()
    predictions = with_it(images, targets)
    assert predictions.logits.shape == (1, 2, 9, 5) and predictions.one_to_many_logits.shape == (3, 2, 9, 5)
    losses = SetCriterion.from_config(with_it.metadata.model)(predictions, targets)
    names = {name for name in losses if name.startswith("loss_class")}
    branches = ("_dn", "_dn_0", "_dn_1", "_one_to_many", "_one_to_many_0", "_one_to_many_1")
    assert names == {"loss_class", "loss_class_enc", *(f"loss_class{branch}" for branch in branches)}
    (losses["loss_class"] + losses["loss_bbox"] + losses["loss_giou"]).backward()
    reached = {name.split(".")[0] for name, p in with_it.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {"suppressor", "decoder", "encoder"} <= reached and "class_heads" not in reached
    assert not any(p.grad.any() for p in with_it.decoder.box_heads[-1].parameters() if p.grad is not None)


def test_answers_do_not_depend_on_the_mode_and_the_layers_before_are_a_plain_model():
    with_it = model()
    images, targets = batch((3,))
    training, inference = with_it(images, targets), with_it.eval()(images)
    plain = build_model("r50-two-stage", **{**WITH, "suppressor": False, "denoising_queries": 0}).eval()
    own = ("suppressor.", "denoising.")
    plain.load_state_dict({name: value for name, value in with_it.state_dict().items() if not name.startswith(own)})
    without = plain(images)
    assert inference.one_to_many_logits is None and torch.equal(inference.boxes, without.boxes)
    assert torch.equal(inference.logits[:-1], without.logits[:-1]) and not torch.equal(inference.logits[-1], without.logits[-1])
    torch.testing.assert_close(training.one_to_many_logits, plain.train()(images).logits, rtol=0, atol=0)
    torch.testing.assert_close(training.logits[-1] - training.one_to_many_logits[-1], inference.logits[-1] - without.logits[-1])


@pytest.mark.parametrize("counts", [(0, 3), (0, 0), (20, 1)])
def test_unusual_batches_train_every_parameter(counts):
    with_it = model()
    images, targets = batch(counts)
    criterion = SetCriterion.from_config(with_it.metadata.model)
    total = criterion.weighted_sum(criterion(with_it(images, targets), targets))
    total.backward()
    assert total.isfinite()
    for name, parameter in with_it.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_two_sources_of_a_one_to_many_branch_are_refused():
    with pytest.raises(ValueError, match="choose one of them"):
        build_model("r50-hdetr", suppressor=True)


def test_own_files_hold_it_also_without_a_header_and_other_layouts_refuse_it(tmp_path):
    with_it = model(denoising_queries=0).eval()
    images, _ = batch((3,))
    save_weights(tmp_path / "own.safetensors", with_it)
    torch.save(with_it.state_dict(), tmp_path / "bare.pth")
    cases: list[tuple[str, Any]] = [("own.safetensors", {}), ("bare.pth", {"num_heads": 4, "num_queries": 9})]
    for name, overrides in cases:
        again = load_pretrained(tmp_path / name, **overrides).eval()
        assert again.metadata.model.suppressor
        assert torch.equal(again(images).logits, with_it(images).logits), name
    for layout in ("official", "mmdet", "huggingface"):
        with pytest.raises(ValueError, match=r"suppressor=True \(False there\)"):
            convert(tmp_path / "own.safetensors", tmp_path / layout, layout, classes="keep")


def test_a_traced_one_takes_any_number_of_images():
    part = suppressor(8).eval()

    class Traced(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.part = part

        def forward(self, logits, boxes, hidden):
            return self.part(Predictions(logits, boxes), hidden).logits

    def inputs(images):
        return tuple(torch.rand(2, images, 5, channels, dtype=torch.float64) for channels in (3, 4, 8))

    traced = torch.export.export(Traced(), inputs(3), dynamic_shapes=[{1: torch.export.Dim("batch")}] * 3).module()
    for given in (inputs(2), inputs(7)):
        assert torch.allclose(traced(*given), Traced()(*given), rtol=0, atol=1e-12)
