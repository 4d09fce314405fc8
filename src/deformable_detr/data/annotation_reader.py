"""A COCO annotation file → :class:`AnnotationFile`: the one reader of training, evaluation and doctor."""

import io
import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from deformable_detr.categories import Categories
from deformable_detr.data.annotation_file import PER_BOX, AnnotationFile
from deformable_detr.data.cache import derived_folder, fingerprint
from deformable_detr.data.entries import angle_of, as_box, as_flag, as_id, as_number, as_side, box_of_segmentation, crowd_of, short
from deformable_detr.data.findings import Found, Item
from deformable_detr.data.text import SECTIONS, Record, kind_of, read_json
from deformable_detr.files import atomic_file
from deformable_detr.structures import ImageId

__all__ = ["FOUND", "parse_record", "read_annotation_file"]

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
    found = Found("", {code: [Item(*item) for item in items] for code, items in record.get(FOUND, {}).items()})
    sections = {key: _section(record, key, path, found) for key in SECTIONS}
    labels, categories = _read_categories(sections["categories"], found)
    images = _Images(sections["images"], found)
    if not sections["images"] and not found.errors:
        found.add("no-images", Item(f"{path}: no images: 'images' is an empty list", file=str(path)))
    boxes = _Boxes(sections["annotations"], images, labels, found)
    return AnnotationFile(
        path=path,
        image_ids=tuple(images.ids),
        file_names=np.array(images.names, dtype=str),
        image_sizes=np.array(images.sizes, dtype=np.int32).reshape(-1, 2),
        image_rows=np.array(images.rows, dtype=np.int64),
        annotation_ids=_id_array(boxes.ids),
        annotation_rows=np.array(boxes.rows, dtype=np.int64),
        images=np.array(boxes.images, dtype=np.int64),
        labels=np.array(boxes.labels, dtype=np.int64),
        boxes=np.array(boxes.boxes, dtype=np.float64).reshape(-1, 4),
        areas=np.array(boxes.areas, dtype=np.float64),
        crowd=np.array(boxes.crowd, dtype=bool),
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


def _read_categories(entries: list[Any], found: Found) -> tuple[dict[int | str, int], Categories]:
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


class _Images:
    """The images of a file: parallel lists, and the position of each id."""

    def __init__(self, entries: list[Any], found: Found) -> None:
        self.ids: list[ImageId] = []
        self.names: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.rows: list[int] = []
        self.position_of: dict[int | str, int] = {}
        for row, entry in enumerate(entries):
            self._add(entry, row, found)
        splits = {entry["split"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("split"), str)}
        if len(splits) > 1:
            found.add("image-split", Item(f"'split' is {', '.join(sorted(splits)[:5])}: all are taken for those of this file"))

    def _add(self, entry: Any, row: int, found: Found) -> None:
        if not isinstance(entry, dict) or (key := as_id(entry.get("id"))) is None:
            found.add("entry-malformed", Item(f"images[{row}] is {short(entry)}: needs an `id`"))
            return
        image_id, name = entry["id"], entry.get("file_name")
        if not _is_name(name):
            found.add("file-name-missing", Item(f"images[{row}] is {short(entry)}: needs a `file_name`", len(self.ids)))
            name = ""
        image_id = int(image_id) if isinstance(image_id, float) and image_id.is_integer() else image_id
        if isinstance(image_id, float):
            image_id = str(image_id)
        if key in self.position_of:
            text = f"{name} has the id {image_id!r} of another image, {self.names[self.position_of[key]]}"
            found.add("image-id-twice", Item(text, None, None, name, image_id))
            return
        self.position_of[key] = len(self.ids)
        size = as_side(entry.get("height")), as_side(entry.get("width"))
        if not all(size):
            text = f"{name}: height {entry.get('height')!r}, width {entry.get('width')!r}"
            found.add("size-missing", Item(text, len(self.ids), None, name, image_id))
            size = (0, 0)
        self.ids.append(image_id)
        self.names.append(str(name))
        self.sizes.append(size)
        self.rows.append(row)


class _Boxes:
    """The usable annotations of a file: parallel lists."""

    def __init__(self, entries: list[Any], images: _Images, labels: dict[int | str, int], found: Found) -> None:
        self._images, self._labels, self._found = images, labels, found
        self.ids: list[Any] = []
        self.rows: list[int] = []
        self.images: list[int] = []
        self.labels: list[int] = []
        self.boxes: list[list[float]] = []
        self.areas: list[float] = []
        self.crowd: list[bool] = []
        for row, entry in enumerate(entries):
            # the fast way for what is as COCO has it, which is nearly everything
            if type(entry) is dict and type(image_id := entry.get("image_id")) is int and _is_box(box := entry.get("bbox")):
                image, label = images.position_of.get(image_id), labels.get(_hashable(entry.get("category_id")))
                plain = (
                    (crowd := crowd_of(entry)) in (0, 1)
                    and "score" not in entry
                    and "bbox_mode" not in entry
                    and not angle_of(entry)
                )
                box = cast(list[float], box)
                if plain and image is not None and label is not None and (box[2] or box[3]):
                    self._append(entry, row, image, label, box, bool(crowd))
                    continue
            self._read(entry, row)
        for place in range(0, len(self.rows), max(1, len(self.rows) // OUTLINES_COMPARED)):
            self._compare(entries[self.rows[place]], place)

    def _compare(self, entry: Record, place: int) -> None:
        """Note a box whose outline lies elsewhere."""
        outline = entry.get("segmentation")
        box = box_of_segmentation(outline) if isinstance(outline, list) and not self.crowd[place] else None
        if box is None or min(*box[2:], *self.boxes[place][2:]) < 8:  # pixels: rounding counts for much below
            return
        (left, top, width, height), (x, y, w, h) = box, self.boxes[place]
        common = max(0.0, min(left + width, x + w) - max(left, x)) * max(0.0, min(top + height, y + h) - max(top, y))
        if common < 0.5 * (width * height + w * h - common):
            image = self.images[place]
            name, text = self._images.names[image], f"bbox {[round(value, 2) for value in self.boxes[place]]}"
            text = f"{name}, annotation {self.ids[place]}: {text}, but its outline is in {[round(value, 2) for value in box]}"
            self._found.add("box-elsewhere", Item(text, image, self.rows[place], name, entry.get("image_id"), self.ids[place]))

    def _append(self, entry: Record, row: int, image: int, label: int, box: list[float], crowd: bool) -> None:
        area = entry.get("area")
        if not ((type(area) is float or type(area) is int) and 0 <= area < 1e300):
            area = as_number(area)
            area = box[2] * box[3] if area is None or area < 0 else area
        self.ids.append(entry.get("id", f"number {row}"))
        self.rows.append(row)
        self.images.append(image)
        self.labels.append(label)
        self.boxes.append(box)
        self.areas.append(area)
        self.crowd.append(crowd)

    def _read(self, entry: Any, row: int) -> None:
        """Make sense of an annotation that is written unusually, or note what is wrong with it."""
        if not isinstance(entry, dict):
            self._found.add("entry-malformed", Item(f"annotations[{row}] is {short(entry)}, not an object", None, row))
            return
        annotation_id = entry.get("id", f"number {row}")
        key = as_id(entry.get("image_id"))
        image = None if key is None else self._images.position_of.get(key)
        name = None if image is None else self._images.names[image]

        def note(code: str, text: str) -> None:
            text = f"{'' if name is None else name + ', '}annotation {annotation_id}: {text}"
            self._found.add(code, Item(text, image, row, name, entry.get("image_id"), annotation_id))

        category = as_id(entry.get("category_id"))
        label = None if category is None else self._labels.get(category)
        crowd, box = as_flag(crowd_of(entry)), as_box(entry.get("bbox"))
        if image is None:
            note("image-unknown", f"image_id is {short(entry.get('image_id'))}, which is not among 'images'")
        elif label is None:
            known = ", ".join(map(str, list(self._labels)[:20]))
            note("category-unknown", f"category_id is {short(entry.get('category_id'))}; known are {known}")
        elif crowd is None:
            note("entry-malformed", f"iscrowd is {short(crowd_of(entry))}, neither 0 nor 1")
        else:
            lacking = not entry.get("bbox") if not box else not any(box[2:])
            try:
                computed = box_of_segmentation(entry.get("segmentation"), self._images.sizes[image]) if lacking else None
            except ValueError as error:
                note("box-malformed", f"bbox is {short(entry.get('bbox'))}, and {error}")
                return
            if computed:
                box = computed
                note("box-computed", f"bbox {[round(value, 2) for value in box]} of its outline")
            if not box:
                note("box-malformed", f"bbox is {short(entry.get('bbox'))}: not [left, top, width, height] in pixels")
                return
            if (mode := entry.get("bbox_mode")) not in XYWH_MODES:
                note("box-malformed", f"bbox_mode is {short(mode)}: boxes must be [left, top, width, height] in pixels (mode 1)")
                return
            if (angle := angle_of(entry)) and box is not computed:
                note("box-turned", f"bbox {[round(value, 2) for value in box]}, turned by {angle:g} degrees")
            if entry.get("score") is not None:
                note("scores", f"score {short(entry['score'])}")
            self._append(entry, row, image, label, box, crowd)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value


def _hashable(value: Any) -> Any:
    return value if type(value) is int else None


def _is_box(box: Any) -> bool:
    if type(box) is not list or len(box) != 4 or not {int, float}.issuperset(map(type, box)):
        return False
    left, top, width, height = box
    try:
        return math.isfinite(left) and math.isfinite(top) and 0 <= width < 1e300 and 0 <= height < 1e300  # whole ones have no end
    except OverflowError:  # a whole number beyond floats
        return False


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
    found = Found("", {code: [Item(*item) for item in items] for code, items in rest["found"].items()})
    categories = Categories.from_dict(rest["categories"])
    return AnnotationFile(path=path, image_ids=tuple(rest["image_ids"]), categories=categories, found=found, **values)
