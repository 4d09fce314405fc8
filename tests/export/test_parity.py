from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deformable_detr.config import Metadata
from deformable_detr.export.form import ExportForm, level_strides, smallest_side
from deformable_detr.export.parity import difference, difference_of_best, parity_batches
from deformable_detr.presets import model_preset

LOGITS = torch.tensor([[[0.0, -1.0], [2.0, 0.5], [1.0, -3.0]]])
BOXES = torch.tensor([[[0.1, 0.2, 0.1, 0.1], [0.5, 0.5, 0.2, 0.4], [0.7, 0.1, 0.3, 0.2]]])


def test_queries_may_change_places_but_not_content():
    order = [2, 0, 1]
    assert difference((LOGITS[:, order], BOXES[:, order]), (LOGITS, BOXES)).box == 0
    mixed = difference((LOGITS[:, order], BOXES), (LOGITS, BOXES))
    assert max(mixed.box, mixed.score) > 0.1


def test_numbers_that_are_not_finite_are_infinitely_far():
    broken = BOXES.clone()
    broken[0, 0, 0] = float("nan")
    assert difference((LOGITS, broken), (LOGITS, BOXES)).box == float("inf")


def test_best_detections_must_be_the_best_with_their_boxes():
    scores = torch.tensor([[2.0, 1.0]]).sigmoid()
    labels = torch.tensor([[0, 0]])
    boxes = torch.tensor([[[0.4, 0.3, 0.6, 0.7], [0.55, 0.0, 0.85, 0.2]]])  # xyxy of queries 1 and 2
    assert difference_of_best((scores, labels, boxes), (LOGITS, BOXES)).box < 1e-6
    assert difference_of_best((scores, labels, boxes.flip(1)), (LOGITS, BOXES)).box > 0.01
    assert difference_of_best((scores - 0.01, labels, boxes), (LOGITS, BOXES)).score == pytest.approx(0.01, abs=1e-6)
    assert difference_of_best((scores, 1 - labels, boxes), (LOGITS, BOXES)).box > 0.01


@pytest.mark.parametrize(
    ("preset", "strides"),
    [
        ("r50", (8, 16, 32, 64)),
        ("r50-single-scale", (32,)),
        ("r50-single-scale-dc5", (16,)),
        ("r50-dino-5scale", (4, 8, 16, 32, 64)),
    ],
)
def test_strides(preset, strides):
    assert level_strides(model_preset(preset)) == strides


def test_a_two_stage_model_needs_as_many_positions_as_queries():
    side = smallest_side(model_preset("r50-two-stage"))
    positions = [sum((-(-pixels // stride)) ** 2 for stride in (8, 16, 32, 64)) for pixels in (side, side - 1)]
    assert positions[0] >= 300 > positions[1]
    assert smallest_side(model_preset("r50")) == 65  # two pixels on the level of stride 64


def test_batches_of_several_sizes_some_padded():
    batches = parity_batches(ExportForm(Metadata(model_preset("tiny")), smallest_side=65))
    assert len({tuple(batch.images.shape) for batch in batches}) == 4
    assert [bool(batch.padding_mask.any()) for batch in batches] == [False, False, False, True]
    assert all(batch.image_sizes is None for batch in batches)
    fixed = parity_batches(ExportForm(Metadata(model_preset("tiny")), size=(96, 128), batch_size=2))
    assert {tuple(batch.images.shape) for batch in fixed} == {(2, 3, 96, 128)}
    assert fixed[1].padding_mask.any()


def test_the_record_of_a_file_keeps_the_thresholds():
    metadata = Metadata(replace(model_preset("tiny"), num_classes=2), thresholds=(0.25, 0.75))
    form = ExportForm(metadata, size=(96, 128), top_k=5)
    assert ExportForm.from_json(form.to_json(), Path("a.onnx")) == form
