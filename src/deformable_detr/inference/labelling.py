"""Annotations proposed for new images, and which images are worth correcting first: uncertainty x diversity.

The uncertainty of an image is the number of bits that answering all of its "is this one?" would give: the sum of the entropies of
its scores. Its distance to the images before it is that of a small thumbnail and of the expected number of objects per class.
Images are then taken one after the other, each time the one with the largest product of the two.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from deformable_detr.data.writing import LabelledImage
from deformable_detr.inference.predictor import Result

CANDIDATE = 0.05
"""Detections below this score are no questions."""

THUMBNAIL = 4
"""Side of the thumbnail of the descriptor, in cells."""

GREEDY = 2000
"""So many images are put into order by uncertainty and diversity; those after them by uncertainty alone."""


@dataclass(frozen=True, eq=False)
class Proposal:
    """One image with the annotations proposed for it."""

    image: LabelledImage
    """With the detections from the class thresholds on."""

    uncertainty: float
    """Bits, at least 0."""

    descriptor: np.ndarray
    """`[D]` what tells the image from others."""


def propose(results: Iterable[Result], limits: np.ndarray) -> list[Proposal]:
    """A proposal for each image.

    Args:
        results: of files, with all detections from :data:`CANDIDATE` on.
        limits: `[K]` the score from which on a detection of each label becomes an annotation.

    Raises:
        ValueError: a result that belongs to no file.
    """
    proposals = []
    for result in results:
        if result.path is None:
            raise ValueError(f"{result.name}: labels are proposed for files, not for images in memory")
        found = result.detections
        labels, scores = np.asarray(found.class_id, dtype=np.int64), np.asarray(found.confidence)
        kept = scores >= limits[labels]
        image = LabelledImage(result.path, result.image_size, found.xyxy[kept], labels[kept])
        expected = np.bincount(labels, weights=scores, minlength=len(limits))
        proposals.append(Proposal(image, entropy(scores), np.concatenate((_thumbnail(result.image), np.sqrt(expected)))))
    return proposals


def entropy(scores: np.ndarray) -> float:
    """The sum of the entropies of yes-or-no questions with these probabilities, in bits."""
    p = np.clip(scores.astype(np.float64), 1e-12, 1 - 1e-12)
    return float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)).sum())


def by_usefulness(proposals: list[Proposal]) -> list[Proposal]:
    """The proposals, the most helpful one first; equal ones stay in their order."""
    if not proposals:
        return []
    uncertainty = np.array([proposal.uncertainty for proposal in proposals])
    first = np.argsort(-uncertainty, kind="stable")
    candidates = first[:GREEDY]
    features = _standardised(np.stack([proposals[index].descriptor for index in candidates]))
    order = greedy_order(uncertainty[candidates], features)
    return [proposals[index] for index in (*candidates[order], *first[GREEDY:])]


def greedy_order(uncertainty: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Take one after the other: the largest uncertainty times distance to the nearest one taken before.

    Args:
        uncertainty: `[I]`, at least 0.
        features: `[I, D]`.

    Returns:
        `[I]` positions.
    """
    left = np.ones(len(uncertainty), dtype=bool)
    distance = np.ones(len(uncertainty))  # of the first one, only the uncertainty counts
    order = np.empty(len(uncertainty), dtype=np.int64)
    for place in range(len(order)):
        value = np.where(left, (uncertainty + 1e-9) * (distance + 1e-9), -1.0)
        order[place] = chosen = int(value.argmax())
        left[chosen] = False
        away = np.linalg.norm(features - features[chosen], axis=1)
        distance = away if place == 0 else np.minimum(distance, away)
    return order


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    """`[3 x THUMBNAIL²]` mean colours of the cells of an image, in [0, 1]."""
    return cv2.resize(pixels, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA).flatten() / 255.0


def _standardised(features: np.ndarray) -> np.ndarray:
    spread = features.std(axis=0)
    return (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1)
