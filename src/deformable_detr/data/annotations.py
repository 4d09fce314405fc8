"""What training makes of a split's annotations: compact arrays of clipped boxes, in the wanted classes."""

import logging
from dataclasses import dataclass

import numpy as np

from deformable_detr.categories import Categories
from deformable_detr.class_names import list_classes, match_classes
from deformable_detr.data.annotation_file import AnnotationFile
from deformable_detr.structures import ImageId

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Annotations:
    """What a dataset keeps of its annotation file. Arrays, so that forked workers share them without copying."""

    image_ids: tuple[ImageId, ...]
    """The ids as written in the file, in its order."""

    image_sizes: np.ndarray
    """`[I, 2]` int32, (height, width) in pixels."""

    first_box: np.ndarray
    """`[I + 1]` int64: the boxes of image i are `boxes[first_box[i] : first_box[i + 1]]`."""

    boxes: np.ndarray
    """`[A, 4]` float32, xyxy in pixels, clipped to the image, each with an area; crowd regions are not among them."""

    labels: np.ndarray
    """`[A]` int64 in [0, K)."""

    categories: Categories
    """What the labels mean."""


def target_annotations(file: AnnotationFile, categories: Categories | None = None) -> Annotations:
    """The boxes that are targets, image by image.

    Crowd regions are left out; boxes are clipped to the image, and those without an area are dropped with one logged line, as
    in the official code. Images without a box are kept.

    Args:
        file: what was read, and found in order.
        categories: the classes to map to, by name; None takes those of the file, sorted by id.

    Raises:
        ValueError: boxes of a class that `categories` lacks.
    """
    rows = np.flatnonzero(~file.crowd)
    limits = file.image_sizes[file.images[rows]][:, ::-1].astype(np.float64)  # [A, 2] width, height
    lower, upper = file.boxes[rows, :2], file.boxes[rows, :2] + file.boxes[rows, 2:]
    clipped = np.concatenate((lower.clip(0, limits), upper.clip(0, limits)), axis=1).astype(np.float32)
    keep = np.asarray((clipped[:, 2:] > clipped[:, :2]).all(axis=1))
    if not keep.all():
        examples = file.annotation_ids[rows[~keep][:5]].tolist()
        logger.warning(
            "%s: left out %d of %d boxes that have no area (annotations %s)", file.path, (~keep).sum(), len(keep), examples
        )
    clipped, rows = clipped[keep], rows[keep]
    order = np.argsort(file.images[rows], kind="stable")
    rows = rows[order]
    labels, wanted = file.labels[rows], file.categories
    if categories is not None and categories != file.categories:
        labels, wanted = _mapped(file, labels, categories), categories
    return Annotations(
        image_ids=file.image_ids,
        image_sizes=file.image_sizes,
        first_box=np.searchsorted(file.images[rows], np.arange(len(file.image_ids) + 1)),
        boxes=clipped[order],
        labels=labels,
        categories=wanted,
    )


def _mapped(file: AnnotationFile, labels: np.ndarray, wanted: Categories) -> np.ndarray:
    """Labels of the file → labels of `wanted`."""
    own = file.categories
    found = match_classes(own, wanted, what=str(file.path))
    used = set(np.unique(labels).tolist())
    unknown = [(own.names[label], own.ids[label]) for label, mate in enumerate(found) if mate is None and label in used]
    if unknown:
        known = list_classes(zip(wanted.names, wanted.ids, strict=True))
        raise ValueError(
            f"{file.path}: has boxes of categories that the model or the training data do not know: {list_classes(unknown)}; "
            f"known are {known}. Rename or remove them, or train with them"
        )
    return np.array([-1 if mate is None else mate for mate in found], dtype=np.int64)[labels]
