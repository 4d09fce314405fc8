"""Images with detections and truth, written down or drawn at random."""

import numpy as np
import pytest

from deformable_detr.evaluation.matches import EvaluatedImage


def build(detections=(), truth=(), crowd=(), image_id=0):
    """`detections`: (score, label, xyxy); `truth` and `crowd`: (label, xyxy)."""
    rows = sorted(detections, key=lambda row: -row[0])

    def boxes(found):
        return np.array([row[-1] for row in found], dtype=np.float64).reshape(-1, 4)

    def labels(found):
        return np.array([row[-2] for row in found], dtype=np.int64)

    scores = np.array([row[0] for row in rows], dtype=np.float64)
    return EvaluatedImage(image_id, scores, labels(rows), boxes(rows), labels(truth), boxes(truth), labels(crowd), boxes(crowd))


def draw(seed, *, count=20, num_classes=4, crowds=True):
    """Images with every error type: loose boxes, wrong classes, duplicates, inventions, objects not found."""
    rng = np.random.default_rng(seed)

    def box(least, most):
        corner = rng.uniform(0, 100 - most, 2)
        return [*corner, *(corner + rng.uniform(least, most, 2))]

    images = []
    for image_id in range(count):
        truth = [(int(rng.integers(num_classes)), box(10, 40)) for _ in range(rng.integers(0, 6))]
        found = [(int(rng.integers(num_classes)), box(5, 30)) for _ in range(rng.integers(0, 4))]
        for label, place in truth:
            for _ in range(rng.integers(0, 4)):
                moved = np.array(place) + rng.normal(0, 4, 4) * rng.choice([0.3, 1, 2])
                moved[2:] = np.maximum(moved[2:], moved[:2] + 2)
                found.append((label if rng.random() < 0.75 else int(rng.integers(num_classes)), moved.tolist()))
        crowd = [(int(rng.integers(num_classes)), box(30, 60))] if crowds and rng.random() < 0.3 else []
        images.append(build([(float(rng.uniform(0.01, 1)), *row) for row in found], truth, crowd, image_id))
    return images


@pytest.fixture
def evaluated_image():
    """Builds one image."""
    return build


@pytest.fixture
def random_images():
    """Draws many."""
    return draw
