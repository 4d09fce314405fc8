"""A split read with tolerance: what is usable as arrays, and a finding for everything that is not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deformable_detr.data.annotation_file import AnnotationFile
from deformable_detr.data.doctor.findings import Found, Item
from deformable_detr.data.layout import Fault, Record
from deformable_detr.structures import ImageId

SECTIONS = ("images", "annotations", "categories")


@dataclass
class SplitData:
    """One split. Positions are those of its record's lists."""

    name: str
    annotation_file: Path
    image_dir: Path
    record: Record
    """What a repair starts from; empty where the arrays alone were read."""

    found: Found
    categories: dict[int, str]
    """Id → name."""

    image_ids: Sequence[ImageId | None]
    """`[I]`; None for an entry that cannot be used."""

    file_names: Sequence[str]
    """`[I]` as annotated."""

    sizes: np.ndarray
    """`[I, 2]` int64 (height, width) as annotated; 0 for an entry that cannot be used."""

    rows: np.ndarray
    """`[A]` int64: the position of each usable annotation."""

    annotation_ids: Sequence[Any]
    """`[A]` its id, or `number 7` where it has none."""

    images: np.ndarray
    """`[A]` int64: the position of its image."""

    category_ids: np.ndarray
    """`[A]` int64."""

    boxes: np.ndarray
    """`[A, 4]` float64: left, top, width, height in pixels."""

    form: str = "xywh"
    """How the boxes are written in the file; `boxes` has them converted."""

    def path(self, image: int) -> Path:
        """The file of an image."""
        return self.image_dir / self.file_name(image)

    def file_name(self, image: int) -> str:
        """Its name as annotated."""
        return str(self.file_names[image])

    def image_item(self, image: int, text: str = "", value: Any = None) -> Item:
        """A case about an image."""
        name = self.file_name(image)
        return Item(f"{name}{': ' if text else ''}{text}", image, None, name, self.image_ids[image], None, value)

    def box_item(self, index: int, text: str, value: Any = None) -> Item:
        """A case about a box, by its place in the arrays."""
        image, row = int(self.images[index]), int(self.rows[index])
        annotation_id, name = self.annotation_ids[index], self.file_name(image)
        return Item(f"{name}, annotation {annotation_id}: {text}", image, row, name, self.image_ids[image], annotation_id, value)

    def usable_images(self) -> list[int]:
        """Positions of the images that can be used."""
        return [position for position, image_id in enumerate(self.image_ids) if image_id is not None]


def read_split_data(
    name: str, record: dict[str, Any], annotation_file: Path, image_dir: Path, faults: Sequence[Fault] = ()
) -> SplitData:
    """Take what can be used from a COCO record, and note the rest.

    Args:
        name: of the split.
        record: the parsed file; it stays as it is.
        annotation_file: where it comes from.
        image_dir: the folder of its images.
        faults: what a conversion from another format has already left out.
    """
    found = Found(name)
    found.add("label-fault", *(Item(str(fault), file=fault.where) for fault in faults))
    for key in SECTIONS:
        if not isinstance(record.get(key), list):
            found.add("file-damaged", Item(f"{annotation_file}: the key {key!r} is missing or no list", file=str(annotation_file)))
    lists: Record = {key: record[key] if isinstance(record.get(key), list) else [] for key in SECTIONS}
    categories = _read_categories(lists, found)
    image_ids, sizes = _read_images(lists, found)
    names = [str(entry.get("file_name")) if isinstance(entry, dict) else "" for entry in lists["images"]]
    rows, images, category_ids, boxes = _read_boxes(lists, found, image_ids, categories)
    ids = [lists["annotations"][row].get("id", f"number {row}") for row in rows.tolist()]
    return SplitData(
        *(name, annotation_file, image_dir, lists, found, categories, image_ids, names),
        *(sizes, rows, ids, images, category_ids, boxes),
    )


def split_data_of(name: str, file: AnnotationFile, annotation_file: Path, image_dir: Path) -> SplitData:
    """The same of a file that has been read and found in order, without the record and without notes.

    Args:
        name: of the split.
        file: what was read.
        annotation_file: where it comes from.
        image_dir: the folder of its images.
    """
    found = Found(name)
    category_ids, names = file.categories.ids, file.categories.names
    repeated = [i for position, i in enumerate(category_ids) if names[position] in names[:position]]
    categories = dict(zip(category_ids, names, strict=True))
    found.add("category-name-twice", *(Item(f"id {i} is another {categories[i]!r}", value=i) for i in repeated))
    rows = np.flatnonzero(~file.crowd)
    data = SplitData(
        name,
        annotation_file,
        image_dir,
        {key: [] for key in SECTIONS},
        found,
        categories,
        file.image_ids,
        file.file_names.tolist(),
        file.image_sizes.astype(np.int64),
        rows,
        file.annotation_ids[rows].tolist(),
        file.images[rows],
        np.asarray(category_ids)[file.labels[rows]],
        file.boxes[rows],
    )
    order = np.argsort(file.annotation_ids, kind="stable")
    again = order[1:][file.annotation_ids[order[1:]] == file.annotation_ids[order[:-1]]]
    for row in np.sort(again).tolist():
        image, annotation_id = int(file.images[row]), file.annotation_ids[row].item()
        name = data.file_name(image)
        where = f"{name}, annotation {annotation_id}"
        found.add("annotation-id-twice", Item(where, image, row, name, file.image_ids[image], annotation_id))
    return data


def _read_categories(record: Record, found: Found) -> dict[int, str]:
    categories: dict[int, str] = {}
    for position, entry in enumerate(record["categories"]):
        if not (isinstance(entry, dict) and _whole(entry.get("id")) and isinstance(entry.get("name"), str)):
            found.add("entry-malformed", Item(f"categories[{position}] is {entry!r}: needs a whole number `id` and a `name`"))
        elif entry["id"] in categories:
            found.add("category-id-twice", Item(f"{entry['name']!r} has the id {entry['id']} of {categories[entry['id']]!r}"))
        else:
            if entry["name"] in categories.values():
                found.add("category-name-twice", Item(f"id {entry['id']} is another {entry['name']!r}", value=entry["id"]))
            categories[entry["id"]] = entry["name"]
    if categories and sorted(categories) not in (list(range(len(categories))), list(range(1, len(categories) + 1))):
        found.add("ids-sparse", Item(f"{len(categories)} classes with ids {min(categories)} … {max(categories)}"))
    return categories


def _read_images(record: Record, found: Found) -> tuple[list[ImageId | None], np.ndarray]:
    ids: list[ImageId | None] = []
    sizes = np.zeros((len(record["images"]), 2), dtype=np.int64)
    known: set[ImageId] = set()
    for position, entry in enumerate(record["images"]):
        ids.append(None)
        if not isinstance(entry, dict) or not _image_id(entry.get("id")) or not isinstance(entry.get("file_name"), str):
            found.add("entry-malformed", Item(f"images[{position}] needs an `id` and a `file_name`", position))
        elif not all(_whole(entry.get(key)) and entry[key] > 0 for key in ("height", "width")):
            name, image_id = entry["file_name"], entry["id"]
            text = f"{name}: needs a `height` and `width`, whole pixels"
            found.add("entry-malformed", Item(text, position, None, name, image_id))
        elif entry["id"] in known:
            name, image_id = entry["file_name"], entry["id"]
            found.add("image-id-twice", Item(f"{name} has the id {image_id} of another image", position, None, name, image_id))
        else:
            known.add(entry["id"])
            ids[-1] = entry["id"]
            sizes[position] = entry["height"], entry["width"]
    return ids, sizes


def _read_boxes(
    record: Record, found: Found, image_ids: list[ImageId | None], categories: dict[int, str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    position_of = {image_id: position for position, image_id in enumerate(image_ids) if image_id is not None}
    seen: set[Any] = set()
    usable: list[tuple[int, int, int]] = []
    boxes: list[list[float]] = []
    for row, entry in enumerate(record["annotations"]):
        if not isinstance(entry, dict):
            found.add("entry-malformed", Item(f"annotations[{row}] is {entry!r}", None, row))
            continue
        annotation_id = entry.get("id", f"number {row}")
        image = position_of.get(entry["image_id"]) if _image_id(entry.get("image_id")) else None
        name = None if image is None else record["images"][image]["file_name"]
        if (fault := _annotation_fault(entry, image, categories)) is not None:
            code, text = fault
            text = f"{'' if name is None else name + ', '}annotation {annotation_id}: {text}"
            found.add(code, Item(text, image, row, name, None if image is None else image_ids[image], annotation_id))
            continue
        if "id" in entry and str(annotation_id) in seen:
            where = f"{name}, annotation {annotation_id}"
            found.add("annotation-id-twice", Item(where, image, row, name, entry["image_id"], annotation_id))
        seen.add(str(annotation_id))
        if entry.get("iscrowd", 0):
            found.add("crowd", Item(f"{name}, annotation {annotation_id}", image, row, name, entry["image_id"], annotation_id))
        elif image is not None:
            usable.append((row, image, entry["category_id"]))
            boxes.append(entry["bbox"])
    columns = np.array(usable, dtype=np.int64).reshape(-1, 3)
    return columns[:, 0], columns[:, 1], columns[:, 2], np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _annotation_fault(entry: dict[str, Any], image: int | None, categories: dict[int, str]) -> tuple[str, str] | None:
    """The code and the words for an annotation that cannot be used."""
    box, category_id = entry.get("bbox"), entry.get("category_id")
    if image is None:
        return "image-unknown", f"image_id is {entry.get('image_id')!r}"
    if not _whole(category_id) or category_id not in categories:
        return "category-unknown", f"category_id is {category_id!r}"
    if not isinstance(box, list) or len(box) != 4 or not all(_finite(value) for value in box) or box[2] < 0 or box[3] < 0:
        return "box-malformed", f"bbox is {box!r}"
    return None


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _image_id(value: Any) -> bool:
    return _whole(value) or isinstance(value, str)
