"""What every format of datasets has in common: named splits, each with an annotation file in COCO's form or a way to make one."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from deformable_detr.data.file_index import FileIndex, split_role
from deformable_detr.data.findings import Found, Item
from deformable_detr.data.images import read_size
from deformable_detr.data.splits import MADE_SPLITS
from deformable_detr.data.text import Record
from deformable_detr.pipeline import ordered_map


class Layout(ABC):
    """A dataset on the disk, in one format.

    Args:
        index: its files.
        source: the file or folder that the splits come from, as people know it.
        parts: by the name of each split what it is read from.
    """

    format: ClassVar[str]
    """The name of the format, for messages."""

    def __init__(self, index: FileIndex, source: Path, parts: Mapping[str, Any]) -> None:
        self.index, self.root, self.source, self.parts = index, index.root, source, parts

    def splits(self) -> tuple[str, ...]:
        """The names of the parts that the dataset has of its own."""
        return tuple(self.parts)

    @abstractmethod
    def used_files(self) -> Iterator[Path]:
        """The files that annotations come from: JSON, XML, label files, lists. A change in one of them makes new records."""

    def own_split(self, split: str) -> str | None:
        """The name under which the dataset has a split: `valid`, `Validation` or `val2017` for `val`; None if it has none.

        Raises:
            ValueError: several fit equally well.
        """
        names = self.splits()
        role = MADE_SPLITS.get(split.lower())
        spellings = (split, split.lower(), *(name for name, its in MADE_SPLITS.items() if its == role))
        for spelling in spellings:
            if spelling in names:
                return spelling
        if role is None:
            return next((name for name in names if name.casefold() == split.casefold()), None)
        years = [name for name in names if re.fullmatch(rf"({'|'.join(spellings)})[0-9].*", name)]
        same = [name for name in names if name.casefold() in spellings]
        for fitting in (same, years, [name for name in names if split_role(name) == role]):
            if len(fitting) > 1:
                listed = sorted(fitting)
                raise ValueError(
                    f"{self.root}: several files fit the split {split!r}: {', '.join(listed)}; "
                    f"name one of them, such as {listed[-1]!r}"
                )
            if fitting:
                return fitting[0]
        rest = [name for name in names if split_role(name) is None]
        return rest[0] if role == "train" and len(rest) == 1 and any(split_role(name) == "val" for name in names) else None


class ForeignLayout(Layout):
    """A format that is converted to COCO before it is used."""

    @abstractmethod
    def read(self, split: str) -> tuple[Record, Found]:
        """The COCO record of a split, without what is faulty in it, and what was found."""

    def file_name(self, path: Path) -> str:
        """A path as written in `file_name`: relative to the root, or absolute outside of it."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path.resolve())


def read_sizes(paths: Iterable[Path]) -> list[tuple[int, int] | Exception]:
    """(height, width) of many upright images, from their headers; the error in place of one that cannot be read."""

    def size(path: Path) -> tuple[int, int] | Exception:
        try:
            return read_size(path)
        except (OSError, ValueError) as error:
            return error

    return [done.result() for _, done in ordered_map(size, paths, num_threads=8, limit=256, name="sizes")]


def fault(where: str | Path, what: str) -> Item:
    """Something in a file that cannot be right."""
    return Item(f"{where}: {what}", file=str(where))


def note_unreadable(found: Found, where: Path, what: str, error: Exception) -> None:
    """Note an image whose size :func:`read_sizes` could not read; in shares or not, its boxes cannot be used without it."""
    found.add("image-missing" if isinstance(error, FileNotFoundError) else "image-damaged", fault(where, what))


def add_box(record: Record, category_id: int, box: tuple[float, float, float, float], crowd: bool = False) -> None:
    """Add a box to the last image of a record.

    Args:
        record: the COCO record.
        category_id: of the object.
        box: left, top, right, bottom in pixels.
        crowd: whether the object is neither a target nor, when detected, a false positive.
    """
    left, top, right, bottom = box
    width, height = round(right - left, 4), round(bottom - top, 4)
    record["annotations"].append(
        {
            "id": len(record["annotations"]) + 1,
            "image_id": record["images"][-1]["id"],
            "category_id": category_id,
            "bbox": [round(left, 4), round(top, 4), width, height],
            "area": width * height,
            "iscrowd": int(crowd),
        }
    )


def empty_record(names: Mapping[int, str]) -> Record:
    """A COCO record of these categories without images."""
    return {"images": [], "annotations": [], "categories": [{"id": key, "name": names[key]} for key in sorted(names)]}


def add_image(record: Record, name: str, size: tuple[int, int]) -> None:
    """Add an image of (height, width) to a record."""
    record["images"].append({"id": len(record["images"]) + 1, "file_name": name, "height": size[0], "width": size[1]})
