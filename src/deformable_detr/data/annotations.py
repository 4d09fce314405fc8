"""A COCO annotation file → checked, compact arrays; every fault is an error that says where it stands."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deformable_detr.categories import Categories
from deformable_detr.class_names import list_classes, match_classes
from deformable_detr.data.annotation_file import AnnotationFile, read_annotation_file
from deformable_detr.structures import ImageId

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Annotations:
    """What a dataset keeps of its annotation file. Arrays, so that forked workers share them without copying."""

    image_ids: tuple[ImageId, ...]
    """The ids as they stand in the file, in its order."""

    file_names: np.ndarray
    """`[I]` str, relative to the image folder."""

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


def read_annotations(path: str | Path, *, categories: Categories | None = None, boxes_required: bool = True) -> Annotations:
    """Read and check a COCO annotation file.

    Crowd regions are left out; boxes are clipped to the image, and those without an area are dropped with one logged line, as
    in the official code. Images without a box are kept.

    Args:
        path: the JSON file.
        categories: the classes to map to; None takes those of the file, sorted by id.
        boxes_required: False accepts a file without `annotations`, such as COCO's test-dev.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not JSON, lacks a key, contradicts itself or `categories`, or holds an impossible box.
    """
    path = Path(path)
    file = read_annotation_file(path)
    if boxes_required and not file.annotated:
        raise ValueError(f"{path}: the key 'annotations' is missing; a COCO file has images, annotations and categories")
    own = _usable(file, path)
    if categories is None or categories == own.categories:
        return own
    used = np.unique(own.labels)
    label_of = _label_mapping(own.categories, categories, {own.categories.ids[label] for label in used}, path)
    labels = np.array([label_of.get(category_id, -1) for category_id in own.categories.ids], dtype=np.int64)
    return replace(own, labels=labels[own.labels], categories=categories)


def _usable(file: AnnotationFile, path: Path) -> Annotations:
    """The boxes that are targets, image by image, in the file's own categories."""
    clipped, keep = _clip_boxes(file, np.flatnonzero(~file.crowd), path)
    order = np.argsort(file.images[keep], kind="stable")
    rows = keep[order]
    images = np.arange(len(file.image_ids) + 1)
    return Annotations(
        image_ids=file.image_ids,
        file_names=file.file_names,
        image_sizes=file.image_sizes,
        first_box=np.searchsorted(file.images[rows], images),
        boxes=clipped[order].astype(np.float32),
        labels=file.labels[rows],
        categories=file.categories,
    )


def _clip_boxes(file: AnnotationFile, rows: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of these rows, xyxy and clipped to their images, where an area is left; and the rows that these are."""
    images, boxes, ids = file.images[rows], file.boxes[rows], file.annotation_ids[rows].tolist()
    limits = file.image_sizes[images][:, ::-1].astype(np.float64)  # [A, 2] width, height
    lower, upper = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    outside = ((lower >= limits) | (upper <= 0)).any(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        image_id = file.image_ids[images[first]]
        raise ValueError(
            f"{path}: annotation {ids[first]} (image {image_id!r}): 'bbox' {boxes[first].tolist()} lies outside the image of "
            f"{limits[first, 0]:.0f} x {limits[first, 1]:.0f} pixels (width x height); {outside.sum()} such boxes in the file. "
            "COCO boxes are [left, top, width, height] in pixels: correct or remove these annotations"
        )
    if len(boxes) and (upper <= 1).all() and limits.max() > 1:
        raise ValueError(
            f"{path}: every box lies within [0, 1], so they seem to be shares of the image's size; COCO boxes are in pixels: "
            "multiply them by the image's width and height"
        )
    clipped = np.concatenate((lower.clip(0, limits), upper.clip(0, limits)), axis=1)
    keep = np.asarray((clipped[:, 2:] > clipped[:, :2]).all(axis=1))
    if not keep.all():
        examples = [ids[i] for i in np.flatnonzero(~keep)[:5]]
        logger.warning("%s: left out %d of %d boxes that have no area (annotations %s)", path, (~keep).sum(), len(keep), examples)
    return clipped[keep], rows[keep]


def _label_mapping(found: Categories, wanted: Categories, used: set[int], path: Path) -> dict[int, int]:
    """Category id of the file → label of `wanted`."""
    labels = match_classes(found, wanted, what=str(path))
    mapping = {category_id: label for category_id, label in zip(found.ids, labels, strict=True) if label is not None}
    unknown = [(name, i) for name, i in zip(found.names, found.ids, strict=True) if i in used and i not in mapping]
    if unknown:
        known = list_classes(zip(wanted.names, wanted.ids, strict=True))
        raise ValueError(
            f"{path}: has boxes of categories that the model or the training data do not know: {list_classes(unknown)}; "
            f"known are {known}. Rename or remove them, or train with them"
        )
    return mapping
