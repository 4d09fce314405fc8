import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from deformable_detr.evaluation.matches import match_across_classes, match_greedily, match_within_classes

BOX = [0, 0, 10, 10]


def test_the_better_score_chooses_first():
    overlaps = np.array([[0.6, 0.7], [0.0, 0.9], [0.8, 0.0], [0.4, 0.4]])
    assert match_greedily(overlaps).tolist() == [1, -1, 0, -1]


def test_of_equal_overlaps_the_last_object_as_in_coco():
    assert match_greedily(np.array([[0.6, 0.6]])).tolist() == [1]


def test_exactly_half_is_enough():
    assert match_greedily(np.array([[0.5]])).tolist() == [0]
    assert match_greedily(np.array([[0.49999]])).tolist() == [-1]


def test_nothing_on_either_side(evaluated_image):
    assert match_within_classes(evaluated_image(truth=[(0, BOX)])).tolist() == []
    assert match_within_classes(evaluated_image([(0.5, 0, BOX)])).tolist() == [-1]


def test_overlaps_are_those_of_torchvision(random_images):
    for image in random_images(0, count=10):
        expected = box_iou(torch.from_numpy(image.boxes), torch.from_numpy(image.true_boxes))
        assert image.overlaps == pytest.approx(expected.numpy())


def test_classes_count_or_do_not(evaluated_image):
    image = evaluated_image([(0.9, 1, BOX), (0.8, 0, BOX)], truth=[(0, BOX)])
    assert match_within_classes(image).tolist() == [-1, 0]
    assert match_across_classes(image).tolist() == [0, -1]


def test_of_equal_overlaps_the_right_class_across_classes(evaluated_image):
    image = evaluated_image([(0.9, 0, BOX)], truth=[(0, BOX), (1, BOX)])
    assert match_across_classes(image).tolist() == [0]


def test_half_of_the_detection_in_a_crowd_of_its_class(evaluated_image):
    inside, half, outside = [2, 2, 4, 4], [5, 0, 15, 10], [6, 0, 16, 10]
    rows = [(0.9, 0, inside), (0.8, 1, inside), (0.7, 0, half), (0.6, 0, outside)]
    assert evaluated_image(rows, crowd=[(0, BOX)]).in_crowd.tolist() == [True, False, True, False]


def test_thresholds_of_the_classes(evaluated_image):
    image = evaluated_image([(0.9, 0, BOX), (0.5, 1, BOX), (0.4, 0, BOX), (0.3, 1, BOX)])
    kept = image.above(np.array([0.6, 0.3]))
    assert (kept.scores.tolist(), kept.labels.tolist()) == ([0.9, 0.5, 0.3], [0, 1, 1])
    assert kept.boxes.shape == (3, 4)
