"""Error types: each planted once with its cost worked out by hand, and a second reading of the paper in plain Python.

The numbers were also compared once with those of tidecv 1.0.1 on forty drawn sets: equal counts, and gains equal to 1e-15 once
both read precision off at the same recalls.
"""

import math

import numpy as np
import pytest

from deformable_detr.evaluation import ErrorType, error_types
from deformable_detr.evaluation.error_types import classify_errors

A, B = [0, 0, 10, 10], [40, 0, 50, 10]
LOOSE_A = [4, 0, 14, 10]  # IoU 6 / 14
FAR = [80, 80, 90, 90]


def types(evaluated_image, *found, truth):
    return [None if kind is None else str(kind) for kind in classify_errors(evaluated_image(found, truth)).types]


def test_each_type(evaluated_image):
    assert types(evaluated_image, (0.9, 0, A), truth=[(0, A)]) == [None]
    assert types(evaluated_image, (0.9, 0, LOOSE_A), truth=[(0, A)]) == ["localisation"]
    assert types(evaluated_image, (0.9, 1, A), truth=[(0, A)]) == ["classification"]
    assert types(evaluated_image, (0.9, 1, LOOSE_A), truth=[(0, A)]) == ["both"]
    assert types(evaluated_image, (0.9, 0, A), (0.8, 0, A), truth=[(0, A)]) == [None, "duplicate"]
    assert types(evaluated_image, (0.9, 0, FAR), truth=[(0, A)]) == ["background"]
    assert types(evaluated_image, (0.9, 0, FAR), truth=[]) == ["background"]


def test_the_first_type_that_fits(evaluated_image):
    """A duplicate that also lies well on an object of another class counts as a wrong class, as in the paper's order."""
    assert types(evaluated_image, (0.9, 0, A), (0.8, 0, A), truth=[(0, A), (1, A)]) == [None, "classification"]
    assert types(evaluated_image, (0.9, 0, LOOSE_A), truth=[(0, A), (1, LOOSE_A)]) == ["localisation"]


def test_missed_is_what_no_other_fix_would_detect(evaluated_image):
    """Of three false negatives, one has an inaccurate box and one the wrong class: only the third is missed."""
    errors = classify_errors(evaluated_image([(0.9, 0, LOOSE_A), (0.8, 1, B)], [(0, A), (0, B), (0, FAR)]))
    assert errors.detected.tolist() == [False] * 3
    assert errors.missed.tolist() == [False, False, True]
    assert errors.targets.tolist() == [0, 1]
    assert errors.error_mass == pytest.approx(0.9 + 0.8 + 3)


def test_crowds_are_neither_right_nor_wrong(evaluated_image):
    errors = classify_errors(evaluated_image([(0.9, 0, A)], crowd=[(0, A)]))
    assert errors.types == (None,) and errors.error_mass == 0


def one_class(evaluated_image, *found, truth):
    return error_types([evaluated_image(found, truth)], 1)


def test_cost_of_localisation(evaluated_image):
    """Found at .9, loose at .8: recall 1/2. Put right, both are found."""
    errors = one_class(evaluated_image, (0.9, 0, B), (0.8, 0, LOOSE_A), truth=[(0, A), (0, B)])
    assert errors.ap50 == pytest.approx(51 / 101)
    assert errors.gains[ErrorType.LOCALISATION] == pytest.approx(50 / 101)
    assert errors.gains[ErrorType.MISSED] == 0
    assert errors.counts[ErrorType.LOCALISATION] == 1
    assert errors.false_negative_gain == pytest.approx(50 / 101)


def test_an_object_is_gained_only_once(evaluated_image):
    """Two loose boxes on one object: the better one is put right, the other one deleted, and does not become a false positive."""
    errors = one_class(evaluated_image, (0.9, 0, LOOSE_A), (0.8, 0, [5, 0, 15, 10]), truth=[(0, A)])
    assert errors.ap50 == 0
    assert errors.gains[ErrorType.LOCALISATION] == pytest.approx(1)


@pytest.mark.parametrize(("kind", "row"), [(ErrorType.DUPLICATE, (0.8, 0, A)), (ErrorType.BACKGROUND, (0.8, 0, FAR))])
def test_cost_of_what_is_deleted(evaluated_image, kind, row):
    """Right, wrong, right: precision 1 up to recall 1/2, then 2/3."""
    errors = one_class(evaluated_image, (0.9, 0, A), row, (0.7, 0, B), truth=[(0, A), (0, B)])
    assert errors.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert errors.gains == {other: pytest.approx(50 / 3 / 101 if other is kind else 0) for other in ErrorType}
    assert errors.false_positive_gain == pytest.approx(50 / 3 / 101)
    assert errors.counts[kind] == 1


def test_cost_of_classification(evaluated_image):
    """The cat is called a dog above the real dog: AP 0 and 1/2 (right only in second place); put right, 1 and 1."""
    errors = error_types([evaluated_image([(0.9, 1, A), (0.8, 1, B)], [(0, A), (1, B)])], 2)
    assert errors.ap50 == pytest.approx((0 + 0.5) / 2)
    assert errors.gains[ErrorType.CLASSIFICATION] == pytest.approx(0.75)


def test_cost_of_both(evaluated_image):
    errors = error_types([evaluated_image([(0.9, 1, LOOSE_A), (0.8, 1, B)], [(0, A), (1, B)])], 2)
    assert errors.gains[ErrorType.BOTH] == pytest.approx(0.25)
    assert errors.counts == {kind: int(kind in (ErrorType.BOTH, ErrorType.MISSED)) for kind in ErrorType}


def test_cost_of_missed(evaluated_image):
    errors = one_class(evaluated_image, (0.9, 0, A), truth=[(0, A), (0, B)])
    assert errors.gains[ErrorType.MISSED] == pytest.approx(50 / 101)


def test_without_objects(evaluated_image):
    errors = error_types([evaluated_image([(0.9, 0, A)])], 2)
    assert math.isnan(errors.ap50)
    assert errors.counts[ErrorType.BACKGROUND] == 1


# ---- a second reading of the paper: records and loops instead of arrays


def iou(one, other):
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def slow_records(images):
    """All detections as dicts with `kind` and `repair` (the object that a repair would win), and all objects."""
    detections, objects = [], []
    for image in images:
        truth = [
            {"label": label, "box": box, "found": False, "near": False, "winner": None}
            for label, box in zip(image.true_labels.tolist(), image.true_boxes.tolist(), strict=True)
        ]
        rows = [
            {"score": score, "label": label, "box": box, "kind": "right", "repair": None}
            for score, label, box in zip(image.scores.tolist(), image.labels.tolist(), image.boxes.tolist(), strict=True)
        ]
        for row in rows:
            free = [item for item in truth if item["label"] == row["label"] and not item["found"]]
            best = max(free, key=lambda item: iou(row["box"], item["box"]), default=None)
            if best is not None and iou(row["box"], best["box"]) >= 0.5:
                best["found"] = True
            else:
                row["kind"] = None
        for row in rows:
            if row["kind"] is None:
                row["kind"] = slow_kind(row, truth)
        detections += rows
        objects += truth
    return detections, objects


def slow_kind(row, truth):
    same = [(iou(row["box"], item["box"]), item) for item in truth if item["label"] == row["label"]]
    other = [(iou(row["box"], item["box"]), item) for item in truth if item["label"] != row["label"]]
    best_same = max(same, key=lambda pair: pair[0], default=(0, None))
    best_other = max(other, key=lambda pair: pair[0], default=(0, None))
    for kind, (overlap, target), low, high in (("localisation", best_same, 0.1, 0.5), ("classification", best_other, 0.5, 2)):
        if target is not None and low <= overlap < high:
            row["repair"], target["near"] = target, True
            if not target["found"] and target["winner"] is None:
                target["winner"] = row
            return kind
    if any(overlap >= 0.5 and item["found"] for overlap, item in same):
        return "duplicate"
    return "background" if max(best_same[0], best_other[0]) <= 0.1 else "both"


def slow_ap(points, objects):
    """`points`: (score, label, right); `objects`: label of each; mean over the classes, by counting at each recall."""
    aps = []
    for label in sorted(set(objects)):
        ranked, total, hits = sorted((p for p in points if p[1] == label), reverse=True), objects.count(label), 0
        curve = []
        for place, (_, _, right) in enumerate(ranked, 1):
            hits += right
            curve.append((hits / total, hits / place))
        aps.append(sum(max((p for r, p in curve if r >= level), default=0) for level in np.linspace(0, 1, 101)) / 101)
    return sum(aps) / len(aps)


@pytest.mark.parametrize("seed", range(6))
def test_as_a_second_reading_of_the_paper(random_images, seed):
    images = random_images(seed, count=15, crowds=False)
    detections, objects = slow_records(images)
    labels = [item["label"] for item in objects]
    base = slow_ap([(row["score"], row["label"], row["kind"] == "right") for row in detections], labels)
    expected = {}
    for kind in ("localisation", "classification", "duplicate", "background", "both"):
        points = [(row["score"], row["label"], row["kind"] == "right") for row in detections if row["kind"] != kind]
        winners = [row for row in detections if row["kind"] == kind and row["repair"] and row["repair"]["winner"] is row]
        points += [(row["score"], row["repair"]["label"], True) for row in winners]
        expected[kind] = slow_ap(points, labels) - base
    missed = [item for item in objects if not item["found"] and not item["near"]]
    points = [(row["score"], row["label"], row["kind"] == "right") for row in detections]
    expected["missed"] = slow_ap(points, [item["label"] for item in objects if all(item is not other for other in missed)]) - base
    errors = error_types(images, 4)
    assert errors.ap50 == pytest.approx(base)
    assert errors.gains == pytest.approx(expected)
    counts = {kind: sum(row["kind"] == kind for row in detections) for kind in expected} | {"missed": len(missed)}
    assert errors.counts == counts
    only_right = [point for point in points if point[2]]
    assert errors.false_positive_gain == pytest.approx(slow_ap(only_right, labels) - base)
    found = [item["label"] for item in objects if item["found"]]
    assert errors.false_negative_gain == pytest.approx(slow_ap(points, found) - base)
