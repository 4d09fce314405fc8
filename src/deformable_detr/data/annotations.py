"""A COCO annotation file → checked, compact arrays; every fault is an error that says where it stands."""

import io
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deformable_detr.data.cache import derived_folder, fingerprint, write_whole
from deformable_detr.structures import Categories, ImageId

logger = logging.getLogger(__name__)

LARGE_FILE = 20_000_000
"""Bytes from which on the arrays of an annotation file are kept beside it."""

ARRAYS = 1
"""Version of the kept arrays."""


@dataclass(frozen=True)
class Annotations:
    """What a data set keeps of its annotation file. Arrays, so that forked workers share them without copying."""

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
    in the official code. Images without a box are kept. Of a large file (20 MB and more) the arrays are kept among the derived
    files, as parsing takes long.

    Args:
        path: the JSON file.
        categories: the classes to map to; None takes those of the file, sorted by id.
        boxes_required: False accepts a file without `annotations`, such as COCO's test-dev.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not JSON, lacks a key, contradicts itself or `categories`, or holds an impossible box.
    """
    path = Path(path)
    kept = None
    if path.is_file() and path.stat().st_size >= LARGE_FILE:
        kept = derived_folder(path.parent) / f"{path.stem}-{fingerprint([path], ARRAYS)}.npz"
    if kept is not None and kept.is_file():
        own = _load_arrays(kept)
    else:
        own = _read_own(path, boxes_required)
        if kept is not None and len(own.boxes):
            _save_arrays(kept, own)
            logger.info(
                "%s: %d pictures, %d boxes; the next start takes them from %s", path, len(own.image_ids), len(own.boxes), kept
            )
    if categories is None or categories == own.categories:
        return own
    used = np.unique(own.labels)
    label_of = _label_mapping(own.categories, categories, {own.categories.ids[label] for label in used}, path)
    labels = np.array([label_of.get(category_id, -1) for category_id in own.categories.ids], dtype=np.int64)
    return replace(own, labels=labels[own.labels], categories=categories)


def _read_own(path: Path, boxes_required: bool) -> Annotations:
    """The file in its own categories."""
    record = read_json(path)
    categories = _read_categories(record, path)
    image_ids, file_names, sizes = _read_images(record, path)
    image_of, images, category_ids, boxes, annotation_ids = _read_boxes(record, path, image_ids, boxes_required)
    clipped, keep = _clip_boxes(boxes, images, sizes, annotation_ids, image_ids, path)
    order = np.argsort(images[keep], kind="stable")
    kept_images = images[keep][order]
    label_of = categories.label_of
    labels = np.array([label_of[category_id] for category_id in category_ids], dtype=np.int64)
    return Annotations(
        image_ids=tuple(image_of),
        file_names=np.array(file_names),
        image_sizes=sizes,
        first_box=np.searchsorted(kept_images, np.arange(len(image_ids) + 1)),
        boxes=clipped[keep][order].astype(np.float32),
        labels=labels[keep][order],
        categories=categories,
    )


def _save_arrays(path: Path, found: Annotations) -> None:
    """Keep what was read of a large file."""
    names = {"image_ids": found.image_ids, "categories": found.categories.to_dict()}
    buffer = io.BytesIO()
    arrays = {field: getattr(found, field) for field in ("file_names", "image_sizes", "first_box", "boxes", "labels")}
    np.savez(buffer, allow_pickle=False, names=np.frombuffer(json.dumps(names).encode(), dtype=np.uint8), **arrays)
    write_whole(path, buffer.getvalue())


def _load_arrays(path: Path) -> Annotations:
    """The inverse of :func:`_save_arrays`."""
    with np.load(path, allow_pickle=False) as arrays:
        found = dict(arrays)
    names = json.loads(found.pop("names").tobytes())
    return Annotations(image_ids=tuple(names["image_ids"]), categories=Categories.from_dict(names["categories"]), **found)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or not an object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}); "
            "the file may be cut off or empty: write or download it again"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not valid JSON (not UTF-8 text: {error})") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path}: expected a COCO object with the keys images, annotations, categories; found a {_kind(record)}")
    return record


def _kind(value: Any) -> str:
    return {list: "list", str: "string", int: "number", float: "number", dict: "object", type(None): "null"}.get(
        type(value), type(value).__name__
    )


def _section(record: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    if key not in record:
        raise ValueError(f"{path}: the key {key!r} is missing; a COCO file has images, annotations and categories")
    if not isinstance(record[key], list):
        raise ValueError(f"{path}: {key!r} must be a list, but is a {_kind(record[key])}")
    for position, entry in enumerate(record[key]):
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: {key}[{position}] must be an object, but is a {_kind(entry)}")
    return record[key]


def _value(entry: dict[str, Any], key: str, kinds: tuple[type, ...], where: str) -> Any:
    """`entry[key]`, checked to be there and to be one of `kinds`."""
    if key not in entry:
        raise ValueError(f"{where}: the key {key!r} is missing")
    value = entry[key]
    if not isinstance(value, kinds) or isinstance(value, bool):
        wanted = " or ".join({int: "a whole number", str: "a string", list: "a list", float: "a number"}[kind] for kind in kinds)
        raise ValueError(f"{where}: {key!r} must be {wanted}, but is {value!r}")
    return value


def _repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _read_categories(record: dict[str, Any], path: Path) -> Categories:
    """The file's categories, sorted by id."""
    names: dict[int, str] = {}
    for position, entry in enumerate(_section(record, "categories", path)):
        where = f"{path}: categories[{position}]"
        category_id = _value(entry, "id", (int,), where)
        if category_id in names:
            raise ValueError(f"{path}: two categories have the id {category_id}; give each its own")
        names[category_id] = _value(entry, "name", (str,), where)
    if not names:
        raise ValueError(f"{path}: 'categories' is empty; name at least one class")
    return Categories(tuple(names[i] for i in sorted(names)), tuple(sorted(names)))


def _read_images(record: dict[str, Any], path: Path) -> tuple[dict[ImageId, int], list[str], np.ndarray]:
    """Image id → position, file names, and sizes `[I, 2]` (height, width)."""
    entries = _section(record, "images", path)
    if not entries:
        raise ValueError(f"{path}: no images: 'images' is an empty list")
    positions: dict[ImageId, int] = {}
    file_names, sizes = [], np.zeros((len(entries), 2), dtype=np.int32)
    for position, entry in enumerate(entries):
        image_id = _value(entry, "id", (int, str), f"{path}: images[{position}]")
        where = f"{path}: image {image_id!r}"
        if image_id in positions:
            raise ValueError(f"{where}: two images have this id (images[{positions[image_id]}] and images[{position}])")
        positions[image_id] = position
        file_names.append(_value(entry, "file_name", (str,), where))
        sizes[position] = [_value(entry, key, (int,), where) for key in ("height", "width")]
        if sizes[position].min() < 1:
            raise ValueError(f"{where}: height and width must be at least 1 pixel, not {sizes[position].tolist()}")
    return positions, file_names, sizes


def _read_boxes(
    record: dict[str, Any], path: Path, positions: dict[ImageId, int], required: bool
) -> tuple[dict[ImageId, int], np.ndarray, list[int], np.ndarray, list[Any]]:
    """Of every annotation that is no crowd region: image position, category id, box xywh in pixels, and annotation id."""
    entries = _section(record, "annotations", path) if required or "annotations" in record else []
    known_categories = {entry["id"] for entry in record["categories"]}
    images, category_ids, boxes, ids = [], [], [], []
    for index, entry in enumerate(entries):
        annotation_id = entry.get("id", f"number {index}")
        where = f"{path}: annotation {annotation_id}"
        image_id = _value(entry, "image_id", (int, str), where)
        if image_id not in positions:
            raise ValueError(f"{where}: belongs to image {image_id!r}, which is not among 'images'")
        where += f" (image {image_id!r})"
        category_id = _value(entry, "category_id", (int,), where)
        if category_id not in known_categories:
            raise ValueError(f"{where}: unknown category id {category_id}; known are {sorted(known_categories)}")
        box = _value(entry, "bbox", (list,), where)
        _check_box(box, where)
        if entry.get("iscrowd", 0):
            continue
        images.append(positions[image_id])
        category_ids.append(category_id)
        boxes.append(box)
        ids.append(annotation_id)
    return positions, np.array(images, dtype=np.int64), category_ids, np.array(boxes, dtype=np.float64).reshape(-1, 4), ids


def _check_box(box: list[Any], where: str) -> None:
    if len(box) != 4 or not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in box):
        raise ValueError(f"{where}: 'bbox' must be four numbers [left, top, width, height], but is {box}")
    if not np.isfinite(box).all():
        raise ValueError(f"{where}: 'bbox' {box} is not finite; correct or remove this annotation")
    if box[2] < 0 or box[3] < 0:
        raise ValueError(
            f"{where}: 'bbox' {box} has a negative width or height; COCO boxes are [left, top, width, height] in pixels"
        )


def _clip_boxes(
    boxes: np.ndarray, images: np.ndarray, sizes: np.ndarray, ids: list[Any], image_ids: dict[ImageId, int], path: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes `[A, 4]` xywh → xyxy clipped to their images, and `[A]` whether an area is left."""
    limits = sizes[images][:, ::-1].astype(np.float64)  # [A, 2] width, height
    lower, upper = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    outside = ((lower >= limits) | (upper <= 0)).any(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        image_id = list(image_ids)[images[first]]
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
    return clipped, keep


def _label_mapping(found: Categories, wanted: Categories, used: set[int], path: Path) -> dict[int, int]:
    """Category id of the file → label of `wanted`: by name, or by id where not one name is known."""
    by_name = {name: label for label, name in enumerate(wanted.names) if wanted.names.count(name) == 1}
    mapping = {i: by_name[name] for name, i in zip(found.names, found.ids, strict=True) if name in by_name}
    if found == wanted or (not mapping and used <= set(wanted.ids)):
        return wanted.label_of
    unknown = [f"{name!r} (id {i})" for name, i in zip(found.names, found.ids, strict=True) if i in used and i not in mapping]
    if unknown:
        raise ValueError(
            f"{path}: has boxes of categories that the model or the training data do not know: {', '.join(unknown)}; "
            f"known are {_listed(wanted.names)}. Rename or remove them, or train with them"
        )
    return mapping


def _listed(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
