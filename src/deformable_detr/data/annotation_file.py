"""A COCO annotation file → checked arrays, as it is written; every fault is an error that says where it stands."""

import io
import json
import logging
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from deformable_detr.categories import Categories
from deformable_detr.data.cache import derived_folder, fingerprint, write_whole
from deformable_detr.structures import ImageId

logger = logging.getLogger(__name__)

LARGE_FILE = 20_000_000
"""Bytes from which on the arrays of an annotation file are kept beside it."""

ARRAYS = 2
"""Version of the kept arrays."""

ARRAY_FIELDS = ("file_names", "image_sizes", "annotation_ids", "images", "labels", "boxes", "crowd")


@dataclass(frozen=True)
class AnnotationFile:
    """All that is read of an annotation file, in its order: I images and N annotations. The arrays are shared, do not write."""

    image_ids: tuple[ImageId, ...]
    """The ids of the images."""

    file_names: np.ndarray
    """`[I]` str, relative to the image folder."""

    image_sizes: np.ndarray
    """`[I, 2]` int32, (height, width) in pixels."""

    annotation_ids: np.ndarray
    """`[N]` int64, or str where one is no whole number; `number 7` where there is none."""

    images: np.ndarray
    """`[N]` int64: the position of the image."""

    labels: np.ndarray
    """`[N]` int64: the position in `categories`."""

    boxes: np.ndarray
    """`[N, 4]` float64: left, top, width, height as they are written, finite, sizes of 0 or more."""

    crowd: np.ndarray
    """`[N]` bool."""

    categories: Categories
    """Sorted by id."""

    annotated: bool = True
    """False for a file without the key `annotations`, such as COCO's test-dev."""


def read_annotation_file(path: str | Path) -> AnnotationFile:
    """Read and check a COCO annotation file.

    The last few files are remembered as long as they do not change, so that what stands at the start of a training (recipe, data
    set, checks) reads each once. Of a large file (20 MB and more) the arrays are kept among the derived files, as parsing takes
    long.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not JSON, lacks a key, contradicts itself, or holds a box that is none.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")
    return _read(path, fingerprint([path], ARRAYS))


@lru_cache(maxsize=2)
def _read(path: Path, version: str) -> AnnotationFile:
    if path.stat().st_size < LARGE_FILE:
        return _parse(path)
    kept = derived_folder(path.parent) / f"{path.stem}-{version}.npz"
    if kept.is_file():
        return _load_arrays(kept)
    found = _parse(path)
    if found.annotated:
        _save_arrays(kept, found)
        counts = len(found.image_ids), len(found.boxes)
        logger.info("%s: %d images, %d annotations; the next start takes them from %s", path, *counts, kept)
    return found


def forget_annotation_files() -> None:
    """Give the memory of the remembered files back."""
    _read.cache_clear()


def _parse(path: Path) -> AnnotationFile:
    record = read_json(path)
    categories = _read_categories(record, path)
    positions, file_names, sizes = _read_images(record, path)
    annotated = "annotations" in record
    entries = _section(record, "annotations", path) if annotated else []
    images, category_ids, boxes = _read_boxes(entries, path, positions, set(categories.ids))
    label_of = categories.label_of
    return AnnotationFile(
        image_ids=tuple(positions),
        file_names=np.array(file_names),
        image_sizes=sizes,
        annotation_ids=_read_ids(entries),
        images=np.array(images, dtype=np.int64),
        labels=np.array([label_of[category_id] for category_id in category_ids], dtype=np.int64),
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        crowd=np.array([bool(entry.get("iscrowd", 0)) for entry in entries], dtype=bool),
        categories=categories,
        annotated=annotated,
    )


def _save_arrays(path: Path, found: AnnotationFile) -> None:
    """Keep what was read of a large file."""
    names = {"image_ids": found.image_ids, "categories": found.categories.to_dict()}
    buffer = io.BytesIO()
    arrays = {field: getattr(found, field) for field in ARRAY_FIELDS}
    np.savez(buffer, allow_pickle=False, names=np.frombuffer(json.dumps(names).encode(), dtype=np.uint8), **arrays)
    write_whole(path, buffer.getvalue())


def _load_arrays(path: Path) -> AnnotationFile:
    """The inverse of :func:`_save_arrays`."""
    with np.load(path, allow_pickle=False) as arrays:
        found = dict(arrays)
    names = json.loads(found.pop("names").tobytes())
    return AnnotationFile(image_ids=tuple(names["image_ids"]), categories=Categories.from_dict(names["categories"]), **found)


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
    file_names, sizes = [], []
    for position, entry in enumerate(entries):
        image_id = _value(entry, "id", (int, str), f"{path}: images[{position}]")
        where = f"{path}: image {image_id!r}"
        if image_id in positions:
            raise ValueError(f"{where}: two images have this id (images[{positions[image_id]}] and images[{position}])")
        positions[image_id] = position
        file_names.append(_value(entry, "file_name", (str,), where))
        sizes.append([_value(entry, key, (int,), where) for key in ("height", "width")])
        if min(sizes[-1]) < 1:
            raise ValueError(f"{where}: height and width must be at least 1 pixel, not {sizes[-1]}")
    return positions, file_names, np.array(sizes, dtype=np.int32)


def _read_ids(entries: list[dict[str, Any]]) -> np.ndarray:
    """The annotations' ids, `[N]`."""
    ids = [entry.get("id", f"number {index}") for index, entry in enumerate(entries)]
    whole = all(type(value) is int and abs(value) < 2**63 for value in ids)
    return np.array(ids, dtype=np.int64) if whole else np.array([str(value) for value in ids])


def _read_boxes(
    entries: list[dict[str, Any]], path: Path, positions: dict[ImageId, int], known: set[int]
) -> tuple[list[int], list[int], list[list[float]]]:
    """Of every annotation the position of its image, its category id, and its box: left, top, width, height in pixels."""
    images, category_ids, boxes = [], [], []
    for index, entry in enumerate(entries):
        image_id, category_id, box = entry.get("image_id"), entry.get("category_id"), entry.get("bbox")
        if not (_is_id(image_id) and image_id in positions and type(category_id) is int and category_id in known and _is_box(box)):
            _check_annotation(entry, index, path, positions, known)
        images.append(positions[image_id])  # pyright: ignore[reportArgumentType]
        category_ids.append(category_id)
        boxes.append(box)
    return images, category_ids, boxes


def _is_id(value: Any) -> bool:
    return type(value) is int or type(value) is str


def _is_box(box: Any) -> bool:
    if type(box) is not list or len(box) != 4 or not {int, float}.issuperset(map(type, box)):
        return False
    left, top, width, height = box
    return math.isfinite(left) and math.isfinite(top) and 0 <= width < math.inf and 0 <= height < math.inf


def _check_annotation(entry: dict[str, Any], index: int, path: Path, positions: dict[ImageId, int], known: set[int]) -> None:
    """Raise what is wrong with an annotation."""
    where = f"{path}: annotation {entry.get('id', f'number {index}')}"
    image_id = _value(entry, "image_id", (int, str), where)
    if image_id not in positions:
        raise ValueError(f"{where}: belongs to image {image_id!r}, which is not among 'images'")
    where += f" (image {image_id!r})"
    category_id = _value(entry, "category_id", (int,), where)
    if category_id not in known:
        raise ValueError(f"{where}: unknown category id {category_id}; known are {sorted(known)}")
    _check_box(_value(entry, "bbox", (list,), where), where)


def _check_box(box: list[Any], where: str) -> None:
    if len(box) != 4 or not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in box):
        raise ValueError(f"{where}: 'bbox' must be four numbers [left, top, width, height], but is {box}")
    if not np.isfinite(box).all():
        raise ValueError(f"{where}: 'bbox' {box} has non-finite values; correct or remove this annotation")
    if box[2] < 0 or box[3] < 0:
        raise ValueError(
            f"{where}: 'bbox' {box} has a negative width or height; COCO boxes are [left, top, width, height] in pixels"
        )
