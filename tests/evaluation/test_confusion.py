"""The confusion matrix against a table written by hand, counting one by one, and supervision's."""

import numpy as np
import pytest
import supervision as sv
from supervision.metrics.detection import ConfusionMatrix as SupervisionMatrix

from deformable_detr.evaluation import confusion_matrix

NAMES = ("cat", "dog", "bird")
A, B, C, D = [0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]


def test_by_hand(evaluated_image):
    """A cat detected, a cat detected as a dog, a dog not detected; a bird on background; a duplicate counts as background, too."""
    found = [(0.9, 0, A), (0.8, 1, B), (0.7, 2, D), (0.6, 0, A)]
    matrix = confusion_matrix([evaluated_image(found, truth=[(0, A), (0, B), (1, C)])], NAMES)
    assert matrix.counts.tolist() == [
        [1, 1, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 0, 0],
        [1, 0, 1, 0],
    ]
    assert matrix.shares()[0].tolist() == [0.5, 0.5, 0, 0]
    assert matrix.shares()[2].tolist() == [0, 0, 0, 0]
    (confusion,) = matrix.confusions()
    assert (confusion.ground_truth, confusion.confused_with, confusion.count, confusion.share) == ("cat", "dog", 1, 0.5)


def test_crowds_are_ignored(evaluated_image):
    image = evaluated_image([(0.9, 0, A), (0.8, 1, A)], crowd=[(0, A)])
    assert confusion_matrix([image], NAMES).counts.tolist()[-1] == [0, 1, 0, 0]


def test_without_images_all_is_zero():
    assert confusion_matrix([], NAMES).counts.tolist() == [[0] * 4] * 4


@pytest.mark.parametrize("seed", range(3))
def test_rows_and_columns_add_up(random_images, seed):
    """Each object stands once in its row, each detection outside a crowd once in its column; the diagonal as counted one by one."""
    images = random_images(seed)
    counts = confusion_matrix(images, ("a", "b", "c", "d")).counts
    expected = np.zeros((5, 5), dtype=int)
    for image in images:
        free = dict(enumerate(zip(image.true_labels.tolist(), image.true_boxes.tolist(), strict=True)))
        for label, box, ignored in zip(image.labels.tolist(), image.boxes.tolist(), image.in_crowd, strict=True):
            overlaps = {number: iou(box, other) for number, (_, other) in free.items()}
            best = max(overlaps, key=overlaps.__getitem__, default=None)
            if best is not None and overlaps[best] >= 0.5:
                expected[free.pop(best)[0], label] += 1
            elif not ignored:
                expected[4, label] += 1
        for label, _ in free.values():
            expected[label, 4] += 1
    assert counts.tolist() == expected.tolist()


def iou(one, other):
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def test_as_supervision_where_objects_lie_apart(evaluated_image):
    """One detection or none for each object, on a grid, so that there is only one way to match."""
    rng = np.random.default_rng(3)
    images = []
    for _ in range(12):
        found, truth = [], []
        for place in range(8):
            box = np.array([place * 50, 0, place * 50 + 30, 30.0])
            if rng.random() < 0.8:
                truth.append((int(rng.integers(3)), box.tolist()))
            if rng.random() < 0.8:
                found.append((float(rng.uniform(0.5, 1)), int(rng.integers(3)), (box + rng.uniform(-2, 2, 4)).tolist()))
        images.append(evaluated_image(found, truth))
    theirs = SupervisionMatrix.from_detections(
        predictions=[sv.Detections(xyxy=i.boxes, confidence=i.scores, class_id=i.labels) for i in images],
        targets=[sv.Detections(xyxy=i.true_boxes, class_id=i.true_labels) for i in images],
        classes=list(NAMES),
        conf_threshold=0.3,
        iou_threshold=0.5,
    )
    assert confusion_matrix(images, NAMES).counts.tolist() == theirs.matrix.astype(int).tolist()


def test_many_classes_are_reduced_to_those_with_errors(evaluated_image):
    names = tuple(f"class {label}" for label in range(30))
    truth = [(label, [50 * label, 0, 50 * label + 30, 30]) for label in range(30)]
    found = [(0.9, 7 if label == 3 else label, box) for label, box in truth if label != 20]
    matrix = confusion_matrix([evaluated_image(found, truth)], names)
    small = matrix.largest(4)
    assert small.names == ("class 3", "class 7", "class 20", "27 others")
    assert small.counts.tolist() == [
        [0, 1, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 0, 0, 0, 1],
        [0, 0, 0, 27, 0],
        [0, 0, 0, 0, 0],
    ]
    assert matrix.largest(30) is matrix
