"""Detections worked out by hand."""

import math

import pytest
import torch

from deformable_detr.postprocessing import postprocess
from deformable_detr.structures import Predictions


def logit(p):
    return math.log(p / (1 - p))


def two_queries():
    earlier = torch.full((1, 2, 3), 9.0)  # an earlier layer, to be ignored
    last = torch.tensor([[[logit(0.9), logit(0.2), logit(0.6)], [logit(0.1), logit(0.7), logit(0.3)]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.1, 0.75, 0.4, 0.5]]])
    return Predictions(torch.stack((earlier, last)), torch.stack((torch.zeros_like(boxes), boxes)))


def test_best_pairs_of_query_and_class_in_pixels():
    (result,) = postprocess(two_queries(), [(100, 200)], top_k=4)
    assert result["scores"].tolist() == pytest.approx([0.9, 0.7, 0.6, 0.3])
    assert result["labels"].tolist() == [0, 1, 2, 2]
    first, second = [80, 30, 120, 70], [-20, 50, 60, 100]  # width 200, height 100
    assert result["boxes"].flatten().tolist() == pytest.approx([*first, *second, *first, *second], abs=1e-4)


def test_clipping_ends_at_the_border():
    (result,) = postprocess(two_queries(), [(100, 200)], top_k=2, clip=True)
    assert result["boxes"].flatten().tolist() == pytest.approx([80, 30, 120, 70, 0, 50, 60, 100], abs=1e-4)


def test_fewer_candidates_than_asked_for():
    (result,) = postprocess(two_queries(), [(10, 10)], top_k=100)
    assert len(result["scores"]) == len(result["labels"]) == len(result["boxes"]) == 6


def test_a_pair_without_a_score_is_none():
    none = float("-inf")  # as exported files that choose the best have them
    predictions = Predictions(torch.tensor([[[[none, 2.0], [0.0, none]], [[none, none], [none, none]]]]), torch.rand(1, 2, 2, 4))
    for nms_iou in (None, 0.9):
        first, second = postprocess(predictions, [(9, 9), (9, 9)], nms_iou=nms_iou)
        assert first["scores"].tolist() == pytest.approx([1 / (1 + math.exp(-2)), 0.5]) and first["labels"].tolist() == [1, 0]
        assert second["scores"].shape == second["labels"].shape == (0,) and second["boxes"].shape == (0, 4)


def test_every_image_has_its_own_size():
    predictions = Predictions(torch.zeros(1, 2, 1, 1), torch.tensor([0.5, 0.5, 1.0, 1.0]).expand(1, 2, 1, 4))
    results = postprocess(predictions, [(30, 40), (50, 20)])
    assert [r["boxes"].tolist() for r in results] == [[[0, 0, 40, 30]], [[0, 0, 20, 50]]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_out_as_float32(dtype):
    predictions = Predictions(torch.zeros(1, 1, 1, 2, dtype=dtype), torch.full((1, 1, 1, 4), 0.5, dtype=dtype))
    (result,) = postprocess(predictions, [(1001, 3003)])
    assert result["scores"].dtype == result["boxes"].dtype == torch.float32
    assert result["boxes"][0].tolist() == [0.25 * 3003, 0.25 * 1001, 0.75 * 3003, 0.75 * 1001]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="2 image sizes for a batch of 1"):
        postprocess(two_queries(), [(1, 1), (2, 2)])
    with pytest.raises(ValueError, match="top_k"):
        postprocess(two_queries(), [(1, 1)], top_k=0)


def test_second_boxes_on_an_object_are_dropped_within_a_class():
    """Boxes of 10 x 10 shifted by 1, 2 and 5 pixels overlap the first by 9/11, 8/12 and 5/15; the last one is of another class."""
    boxes = torch.tensor([[[0.5 + shift / 100, 0.5, 0.1, 0.1] for shift in (0, 1, 2, 5, 0)]])
    scores = [(0.9, 0.01), (0.8, 0.01), (0.7, 0.01), (0.6, 0.01), (0.01, 0.85)]
    logits = torch.tensor([[[logit(one), logit(two)] for one, two in scores]])
    predictions = Predictions(logits[None], boxes[None])
    for iou, kept in (
        (None, [0.9, 0.85, 0.8, 0.7, 0.6]),
        (0.7, [0.9, 0.85, 0.7, 0.6]),
        (0.5, [0.9, 0.85, 0.6]),
        (1.0, [0.9, 0.85, 0.8, 0.7, 0.6]),
    ):
        (result,) = postprocess(predictions, [(100, 100)], top_k=5, nms_iou=iou)
        assert result["scores"].tolist() == pytest.approx(kept)
        assert len(result["boxes"]) == len(result["labels"]) == len(kept)


def test_other_classes_have_no_say_in_what_is_dropped():
    """Of a thousand classes, each loses the same duplicates among small boxes of a large image."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.cat((0.9 + torch.rand(60, 2, generator=generator) * 0.003, torch.full((60, 2), 0.001)), dim=1)
    logits = torch.rand(60, generator=generator)
    kept = []
    for label in (0, 1202):
        all_logits = torch.full((60, 1203), -math.inf)
        all_logits[:, label] = logits
        (found,) = postprocess(Predictions(all_logits[None, None], boxes[None, None]), [(6000, 6000)], nms_iou=0.5)
        kept.append(found["boxes"].tolist())
    assert kept[0] == kept[1] and 1 < len(kept[0]) < 60


def test_boxes_beyond_the_image_do_not_reach_into_another_class():
    """One ends with the image, one of the next class begins beyond its other end: they do not touch."""
    boxes = torch.tensor([[[0.9, 0.9, 0.2, 0.2], [0.0, 0.0, 0.4, 0.4]]])
    logits = torch.tensor([[[logit(0.9), -math.inf], [-math.inf, logit(0.8)]]])
    (found,) = postprocess(Predictions(logits[None], boxes[None]), [(1000, 1000)], nms_iou=0.2)
    assert found["labels"].tolist() == [0, 1]


@pytest.mark.parametrize("iou", [0.0, -0.1, 1.1])
def test_an_iou_out_of_range(iou):
    with pytest.raises(ValueError, match="nms_iou must lie in"):
        postprocess(two_queries(), [(10, 10)], nms_iou=iou)
