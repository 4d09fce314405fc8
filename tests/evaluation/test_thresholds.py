"""Curves and thresholds against numbers worked out by hand, counting one threshold after the other, and COCO's own evaluation."""

import json
import math

import numpy as np
import pytest
import torch

from deformable_detr.categories import Categories
from deformable_detr.evaluation import CocoEvaluator, class_thresholds, score_curves
from deformable_detr.evaluation.thresholds import ScoreCurve, joint_curve

A, B, C = [0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]
NAMES = ("a", "b", "c", "d")


def curve(*rows, objects):
    """`rows`: (score, true positive), highest score first."""
    return ScoreCurve("x", objects, np.array([row[0] for row in rows], dtype=float), np.array([row[1] for row in rows], dtype=bool))


def test_by_hand():
    """Two objects; found at .9, wrong at .6, found at .4: F1 is 2/3, 2/4, 4/5."""
    found = curve((0.9, True), (0.6, False), (0.4, True), objects=2)
    assert found.precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3])
    assert found.recall.tolist() == pytest.approx([1 / 2, 1 / 2, 1])
    assert found.f1_at(np.array([0.95, 0.9, 0.7, 0.5, 0.4, 0.0])).tolist() == pytest.approx([0, 2 / 3, 2 / 3, 1 / 2, 4 / 5, 4 / 5])
    point = found.at(0.5)
    assert (point.true_positives, point.false_positives, point.false_negatives) == (1, 1, 1)
    assert (point.precision, point.recall, point.f1) == (0.5, 0.5, 0.5)
    assert found.average_precision() == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert found.best_threshold() == pytest.approx(0.2)  # the middle of 0 to .4


def test_the_middle_of_a_plateau():
    """All are found above .7, everything below .3 is wrong: any threshold between is best."""
    rows = [(0.9, True), (0.8, True), (0.7, True), (0.3, False), (0.2, False)]
    assert curve(*rows, objects=3).best_threshold() == pytest.approx(0.5)


def test_a_lucky_peak_does_not_beat_a_broad_top():
    """150 found from 1 down to .851 step by step; then F1 falls by less than 1 % over .85 to .35, and rises to its peak at .35."""
    rows = [(1 - 0.001 * step, True) for step in range(150)] + [(0.85, False), (0.35, True), (0.34, False), (0.339, False)]
    found = curve(*rows, *((0.33 - 0.001 * step, False) for step in range(100)), objects=151)
    assert found.f1_at(np.array([0.35]))[0] > found.f1_at(np.array([0.5]))[0]
    threshold = found.best_threshold()
    assert threshold is not None and 0.5 < threshold < 0.7
    assert found.at(threshold).f1 >= 0.99 * found.steps[1].max()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_that_differ_in_their_last_place(dtype):
    """Six digits of the middle lay outside the only good range: nothing was detected, or the false positive, too."""
    for score in np.random.default_rng(0).uniform(0.01, 0.99, 50).astype(dtype):
        low, high = float(score), float(np.nextafter(score, dtype(1)))
        found = curve((high, True), (low, False), (low / 2, False), objects=1)
        threshold = found.best_threshold()
        assert threshold is not None and low < threshold <= high and found.at(threshold).f1 == 1


def test_equal_scores_stand_or_fall_together():
    found = curve((0.5, True), (0.5, False), (0.5, True), objects=2)
    assert found.steps[0].tolist() == [0.5]
    assert found.steps[1].tolist() == pytest.approx([4 / 5])


def test_classes_without_objects_or_true_positives_get_the_common_threshold(evaluated_image):
    image = evaluated_image([(0.9, 0, A), (0.1, 0, C), (0.8, 1, C), (0.7, 2, B)], truth=[(0, A), (1, B)])
    curves = score_curves([image], NAMES[:3])
    assert [found.best_threshold() for found in curves] == [pytest.approx(0.5), None, None]
    common = joint_curve(curves).best_threshold()  # .9 alone is right: F1 2/3, with .8 2/4
    assert common == pytest.approx(0.85)
    assert class_thresholds(curves) == (pytest.approx(0.5), common, common)


def test_no_true_positive_at_all(evaluated_image):
    image = evaluated_image([(0.9, 0, A)], truth=[(1, A)])
    assert class_thresholds(score_curves([image], NAMES)) is None
    assert class_thresholds(score_curves([evaluated_image()], NAMES)) is None


def test_without_objects_there_are_no_numbers(evaluated_image):
    (found,) = score_curves([evaluated_image([(0.9, 0, A)])], ["a"])
    assert math.isnan(found.average_precision())
    assert math.isnan(found.at(0.5).recall) and found.at(0.5).precision == 0


def slow_counts(images, label, threshold):
    """True positives, false positives, objects of a class at one threshold; boxes compared one by one."""

    def area(box):
        return max(0, box[2] - box[0]) * max(0, box[3] - box[1])

    def common(one, other):
        return area([max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])])

    right = wrong = objects = 0
    for image in images:
        truth = [box for box, its in zip(image.true_boxes.tolist(), image.true_labels, strict=True) if its == label]
        crowd = [box for box, its in zip(image.crowd_boxes.tolist(), image.crowd_labels, strict=True) if its == label]
        objects += len(truth)
        for score, its, box in zip(image.scores, image.labels, image.boxes.tolist(), strict=True):
            if its != label or score < threshold:
                continue
            overlaps = [common(box, other) / (area(box) + area(other) - common(box, other)) for other in truth]
            if overlaps and max(overlaps) >= 0.5:
                right += 1
                truth.pop(overlaps.index(max(overlaps)))
            elif not any(common(box, region) >= 0.5 * area(box) for region in crowd):
                wrong += 1
    return right, wrong, objects


@pytest.mark.parametrize("seed", range(4))
def test_counts_at_any_threshold_as_counted_one_by_one(random_images, seed):
    images = random_images(seed)
    curves = score_curves(images, NAMES)
    for label, found in enumerate(curves):
        best = 0.0
        for threshold in np.linspace(0, 1, 21):
            right, wrong, objects = slow_counts(images, label, threshold)
            point = found.at(threshold)
            assert (point.true_positives, point.false_positives, point.num_objects) == (right, wrong, objects)
            f1 = 2 * right / max(1, right + wrong + objects)
            assert found.f1_at(np.array([threshold]))[0] == pytest.approx(f1)
            best = max(best, f1)
        best_threshold = found.best_threshold()
        assert best_threshold is not None
        chosen = found.at(best_threshold)
        assert chosen.f1 >= 0.99 * best
        assert (chosen.true_positives, chosen.false_positives) == slow_counts(images, label, best_threshold)[:2]


def write_coco(path, images):
    """The truth of images as a COCO file; category ids are 10, 20, …"""

    def entries(image):
        columns = ((image.true_labels, image.true_boxes, 0), (image.crowd_labels, image.crowd_boxes, 1))
        for labels, boxes, iscrowd in columns:
            for label, (left, top, right, bottom) in zip(labels.tolist(), boxes.tolist(), strict=True):
                box = [left, top, right - left, bottom - top]
                yield {"image_id": image.image_id, "category_id": 10 * label + 10, "bbox": box, "iscrowd": iscrowd}

    content = {
        "images": [{"id": image.image_id} for image in images],
        "annotations": [{"id": number} | entry for number, entry in enumerate((e for i in images for e in entries(i)), 1)],
        "categories": [{"id": 10 * label + 10, "name": name} for label, name in enumerate(NAMES)],
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def evaluator(tmp_path, random_images):
    """COCO's evaluation of drawn images, by a model with the classes in another order, and one more."""
    images = random_images(7, count=40)
    model = Categories(("other", *reversed(NAMES)), (1, 40, 30, 20, 10))
    evaluator = CocoEvaluator(write_coco(tmp_path / "truth.json", images), model)
    for image in images:
        result = {"scores": image.scores, "labels": 4 - image.labels, "boxes": image.boxes}
        evaluator.update([image.image_id], [{name: torch.from_numpy(column) for name, column in result.items()}])
    return evaluator, images


def test_ap50_is_that_of_coco(evaluator):
    metrics = evaluator[0].compute()
    curves = score_curves(evaluator[0].images(), NAMES)
    assert [found.average_precision() for found in curves] == pytest.approx([entry.ap50 for entry in metrics.per_class])
    for found, entry in zip(curves, metrics.per_class, strict=True):
        assert found.interpolated_precision().tolist() == pytest.approx(entry.precision)
        assert (found.num_objects, found.at(entry.threshold).f1) == (entry.num_objects, entry.f1)


def test_the_evaluator_gives_its_images_back(evaluator):
    for found, expected in zip(evaluator[0].images(), evaluator[1], strict=True):
        for name in ("scores", "labels", "boxes", "true_labels", "true_boxes", "crowd_labels", "crowd_boxes"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name)), name


def test_metrics_have_a_threshold_for_each_label_of_the_model(evaluator):
    curves = score_curves(evaluator[1], NAMES)
    own = [found.best_threshold() for found in curves]
    assert evaluator[0].compute().thresholds == (joint_curve(curves).best_threshold(), *reversed(own))
