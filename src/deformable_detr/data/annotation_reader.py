"""A COCO annotation file → :class:`AnnotationFile`: the one reader of training, evaluation and doctor."""

import io
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deformable_detr.categories import Categories
from deformable_detr.data.annotation_file import PER_BOX, AnnotationFile
from deformable_detr.data.cache import derived_folder, fingerprint
from deformable_detr.data.entries import angle_of, as_box, as_flag, as_id, as_number, as_size, box_of_segmentation, crowd_of, short
from deformable_detr.data.findings import Found, Item
from deformable_detr.data.text import SECTIONS, Record, kind_of, read_json
from deformable_detr.files import atomic_file
from deformable_detr.structures import ImageId

logger = logging.getLogger(__name__)

FOUND = "deformable-detr findings"
"""Key of a converted file for what was found while converting."""

XYWH_MODES = (None, 1, "1", "XYWH_ABS", "BoxMode.XYWH_ABS")
"""What detectron2's `bbox_mode` may be: of COCO's boxes. Its 0 are corners."""

LARGE_FILE = 20_000_000
"""Bytes from which on the arrays of an annotation file are kept beside it."""

ARRAYS = 5
"""Version of the kept arrays."""

ARRAY_FIELDS = ("file_names", "image_sizes", "image_rows", *PER_BOX)


def read_annotation_file(path: str | Path) -> AnnotationFile:
    """Read a COCO annotation file. Its content raises no error here: :meth:`AnnotationFile.check` raises what was found.

    Of a large file (20 MB and more) the arrays are kept among the
    derived files, as parsing takes long.

    Raises:
        FileNotFoundError: no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")
    if path.stat().st_size < LARGE_FILE:
        return _parse(path)
    kept = derived_folder(path.parent) / f"{path.stem}-{fingerprint([path], ARRAYS)}.npz"
    if kept.is_file():
        return _load_arrays(kept, path)
    parsed = _parse(path)
    if parsed.annotated:
        _save_arrays(kept, parsed)
        counts = len(parsed.image_ids), len(parsed.boxes)
        logger.info("%s: %d images, %d annotations; the next start takes them from %s", path, *counts, kept)
    return parsed


def _parse(path: Path) -> AnnotationFile:
    try:
        record = read_json(path)
    except ValueError as error:
        found = Found("", {"file-damaged": [Item(str(error), file=str(path))]})
        return replace(parse_record({key: [] for key in SECTIONS}, path), found=found)
    return parse_record(record, path)


def parse_record(record: Record, path: Path) -> AnnotationFile:
    """Read a parsed COCO file.

    Args:
        record: its content; it stays as it is.
        path: where it comes from.
    """
    found = Found.from_lists(record.get(FOUND, {}))
    sections = {key: _section(record, key, path, found) for key in SECTIONS}
    labels, categories = _read_categories(sections["categories"], found)
    images = _read_images(sections["images"], found)
    if not sections["images"] and not found.errors:
        found.add("no-images", Item(f"{path}: no images: 'images' is an empty list", file=str(path)))
    read = (_read_annotation(entry, row, images, labels, found) for row, entry in enumerate(sections["annotations"]))
    boxes, listed = [box for box in read if box is not None], list(images.values())
    for box in boxes[:: max(1, len(boxes) // OUTLINES_COMPARED)]:
        _compare(sections["annotations"][box.row], box, listed[box.image], found)
    return AnnotationFile(
        path=path,
        image_ids=tuple(image.image_id for image in listed),
        file_names=np.array([image.name for image in listed], dtype=str),
        image_sizes=np.array([image.size for image in listed], dtype=np.int32).reshape(-1, 2),
        image_rows=np.array([image.row for image in listed], dtype=np.int64),
        annotation_ids=_id_array([box.annotation_id for box in boxes]),
        annotation_rows=np.array([box.row for box in boxes], dtype=np.int64),
        images=np.array([box.image for box in boxes], dtype=np.int64),
        labels=np.array([box.label for box in boxes], dtype=np.int64),
        boxes=np.array([box.box for box in boxes], dtype=np.float64).reshape(-1, 4),
        areas=np.array([box.area for box in boxes], dtype=np.float64),
        crowd=np.array([box.crowd for box in boxes], dtype=bool),
        categories=categories,
        found=found,
        annotated="annotations" in record,
    )


def _section(record: Record, key: str, path: Path, found: Found) -> list[Any]:
    if isinstance(record.get(key), list):
        return record[key]
    if key in record:
        found.add("file-damaged", Item(f"{path}: {key!r} must be a list, but is a {kind_of(record[key])}", file=str(path)))
    elif key != "annotations":
        text = f"{path}: the key {key!r} is missing; a COCO file has images, annotations and categories"
        found.add("file-damaged", Item(text, file=str(path)))
    return []


def _read_categories(entries: list[Any], found: Found) -> tuple[dict[int | str | None, int], Categories]:
    """Category id in its one form (:func:`as_id`) → label; and the categories, sorted by id.

    Ids that are no numbers (names, UUIDs) are numbered in their order, beginning after the largest number.
    """
    names: dict[int | str, str] = {}
    for position, entry in enumerate(entries):
        key, name = (as_id(entry.get("id")), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if key is None or isinstance(name, (bool, list, dict, type(None))):
            text = f"categories[{position}] is {short(entry)}: needs an `id` and a `name`"
            found.add("entry-malformed", Item(text))
        elif key in names:
            found.add("category-id-twice", Item(f"two categories have the id {key!r}: {names[key]!r} and {name!r}"))
        else:
            names[key] = str(name)
    if not names and not found.errors:
        found.add("file-damaged", Item("'categories' is empty; name at least one class"))
    numbers = [key for key in names if isinstance(key, int) and abs(key) < 2**62]
    free = max((0, *numbers)) + 1
    others = sorted((key for key in names if key not in numbers), key=lambda key: (isinstance(key, str), key))
    ids = {key: key for key in numbers} | {key: free + index for index, key in enumerate(others)}
    ordered = sorted(ids, key=lambda key: ids[key])
    return {key: label for label, key in enumerate(ordered)}, Categories(
        tuple(names[key] for key in ordered), tuple(ids[key] for key in ordered)
    )


OUTLINES_COMPARED = 2000
"""Of how many annotations of a file, evenly spread, at most twice as many, boxes and outlines are compared."""


class _Image(NamedTuple):
    """A usable image of a file."""

    image_id: ImageId
    name: str
    size: tuple[int, int]
    row: int
    position: int


def _read_images(entries: list[Any], found: Found) -> dict[int | str | None, _Image]:
    """The usable images in their order, by their ids in one form (:func:`as_id`)."""
    images: dict[int | str | None, _Image] = {}
    for row, entry in enumerate(entries):
        if not isinstance(entry, dict) or (key := as_id(entry.get("id"))) is None:
            found.add("entry-malformed", Item(f"images[{row}] is {short(entry)}: needs an `id`"))
            continue
        image_id, name, position = entry["id"], entry.get("file_name"), len(images)
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            found.add("file-name-missing", Item(f"images[{row}] is {short(entry)}: needs a `file_name`", position))
            name = ""
        if isinstance(image_id, float):
            image_id = key
        if key in images:
            text = f"{name} has the id {image_id!r} of another image, {images[key].name}"
            found.add("image-id-twice", Item(text, None, None, name, image_id))
            continue
        size = as_size(entry.get("height"), entry.get("width"))
        if size is None:
            text = f"{name}: height {entry.get('height')!r}, width {entry.get('width')!r}"
            found.add("size-missing", Item(text, position, None, name, image_id))
        images[key] = _Image(image_id, name, size or (0, 0), row, position)
    splits = {entry["split"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("split"), str)}
    if len(splits) > 1:
        found.add("image-split", Item(f"'split' is {', '.join(sorted(splits)[:5])}: all are taken for those of this file"))
    return images


class _Box(NamedTuple):
    """A usable annotation of a file."""

    annotation_id: Any
    row: int
    image: int
    label: int
    box: list[float]
    area: float
    crowd: bool


def _read_annotation(
    entry: Any, row: int, images: Mapping[int | str | None, _Image], labels: Mapping[int | str | None, int], found: Found
) -> _Box | None:
    """Make sense of an annotation, also of one that is written unusually; None where it cannot be used, which is noted."""
    if not isinstance(entry, dict):
        found.add("entry-malformed", Item(f"annotations[{row}] is {short(entry)}, not an object", None, row))
        return None
    annotation_id = entry.get("id", f"number {row}")
    image, label = images.get(as_id(entry.get("image_id"))), labels.get(as_id(entry.get("category_id")))

    def note(code: str, text: str) -> None:
        position, name = (None, None) if image is None else (image.position, image.name)
        text = f"{'' if name is None else name + ', '}annotation {annotation_id}: {text}"
        found.add(code, Item(text, position, row, name, entry.get("image_id"), annotation_id))

    crowd, box, computed = as_flag(crowd_of(entry)), as_box(entry.get("bbox")), None
    if image is None:
        return note("image-unknown", f"image_id is {short(entry.get('image_id'))}, which is not among 'images'")
    if label is None:
        known = ", ".join(map(str, list(labels)[:20]))
        return note("category-unknown", f"category_id is {short(entry.get('category_id'))}; known are {known}")
    if crowd is None:
        return note("entry-malformed", f"iscrowd is {short(crowd_of(entry))}, neither 0 nor 1")
    if not any(box[2:]) if box else not entry.get("bbox"):
        try:
            computed = box_of_segmentation(entry.get("segmentation"), image.size)
        except ValueError as error:
            return note("box-malformed", f"bbox is {short(entry.get('bbox'))}, and {error}")
    if computed:
        box = computed
        note("box-computed", f"bbox {[round(value, 2) for value in box]} of its outline")
    if not box:
        return note("box-malformed", f"bbox is {short(entry.get('bbox'))}: not [left, top, width, height] in pixels")
    if (mode := entry.get("bbox_mode")) not in XYWH_MODES:
        return note("box-malformed", f"bbox_mode is {short(mode)}: boxes must be [left, top, width, height] in pixels (mode 1)")
    if (angle := angle_of(entry)) and not computed:
        note("box-turned", f"bbox {[round(value, 2) for value in box]}, turned by {angle:g} degrees")
    if entry.get("score") is not None:
        note("scores", f"score {short(entry['score'])}")
    area = as_number(entry.get("area"))
    area = box[2] * box[3] if area is None or area < 0 else area
    return _Box(annotation_id, row, image.position, label, box, area, crowd)


def _compare(entry: Record, annotation: _Box, image: _Image, found: Found) -> None:
    """Note a box whose outline lies elsewhere."""
    outline = entry.get("segmentation")
    box = box_of_segmentation(outline) if isinstance(outline, list) and not annotation.crowd else None
    if box is None or min(*box[2:], *annotation.box[2:]) < 8:  # pixels: rounding counts for much below
        return
    (left, top, width, height), (x, y, w, h) = box, annotation.box
    common = max(0.0, min(left + width, x + w) - max(left, x)) * max(0.0, min(top + height, y + h) - max(top, y))
    if common < 0.5 * (width * height + w * h - common):
        where = f"bbox {[round(value, 2) for value in annotation.box]}, but its outline is in {[round(value, 2) for value in box]}"
        text = f"{image.name}, annotation {annotation.annotation_id}: {where}"
        item = Item(text, image.position, annotation.row, image.name, entry.get("image_id"), annotation.annotation_id)
        found.add("box-elsewhere", item)


def _id_array(ids: list[Any]) -> np.ndarray:
    whole = all(type(value) is int and abs(value) < 2**63 for value in ids)
    return np.array(ids, dtype=np.int64) if whole else np.array([str(value) for value in ids], dtype=str)


def _save_arrays(path: Path, file: AnnotationFile) -> None:
    """Keep what was read of a large file."""
    rest = {"image_ids": file.image_ids, "categories": file.categories.to_dict(), "found": file.found.items}
    buffer = io.BytesIO()
    arrays = {field: getattr(file, field) for field in ARRAY_FIELDS}
    encoded = json.dumps(rest, default=str).encode()
    np.savez(buffer, allow_pickle=False, rest=np.frombuffer(encoded, dtype=np.uint8), **arrays)
    with atomic_file(path) as partial:
        partial.write_bytes(buffer.getvalue())


def _load_arrays(kept: Path, path: Path) -> AnnotationFile:
    """The inverse of :func:`_save_arrays`."""
    with np.load(kept, allow_pickle=False) as arrays:
        values = dict(arrays)
    rest = json.loads(values.pop("rest").tobytes())
    found, categories = Found.from_lists(rest["found"]), Categories.from_dict(rest["categories"])
    return AnnotationFile(path=path, image_ids=tuple(rest["image_ids"]), categories=categories, found=found, **values)
