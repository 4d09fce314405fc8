"""What every format of datasets has in common: named splits, and a COCO record for each of them."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from deformable_detr.data.images import read_size

SPLIT_NAMES = {"val": ("val", "valid", "validation"), "valid": ("valid", "val", "validation")}

SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""What keys and folders are called, and the split that they mean."""

Record = dict[str, list[dict[str, Any]]]


class Fault(NamedTuple):
    """Something in a file that cannot be right."""

    where: str
    """The file, and the line where there is one."""

    what: str
    """What is wrong, and what to do."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class Layout(ABC):
    """A dataset on the disk, in one format.

    Args:
        root: the folder that image names are relative to, and that derived files are kept in.
        source: the file or folder that the splits come from, as people know it.
    """

    format: ClassVar[str]
    """The name of the format, for messages."""

    def __init__(self, root: Path, source: Path) -> None:
        self.root, self.source = root, source

    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The names of the parts that the dataset has of its own."""

    def own_split(self, split: str) -> str | None:
        """The name under which the dataset has a split: `valid` for `val`; None if it has none."""
        return next((name for name in SPLIT_NAMES.get(split, (split,)) if name in self.splits()), None)


class ForeignLayout(Layout):
    """A format that is converted to COCO before it is used."""

    @abstractmethod
    def files(self) -> Iterator[Path]:
        """Every file that the records depend on; a change in one of them makes new records."""

    @abstractmethod
    def read(self, split: str) -> tuple[Record, list[Fault]]:
        """The COCO record of a split, without what is faulty in it, and the faults."""


def walk_files(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """All files below a folder with one of these suffixes, sorted; hidden folders are left out."""
    wanted, found = frozenset(suffixes), []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in sorted(names) if Path(name).suffix.lower() in wanted and not name.startswith(".")]
    return found


def relative_name(path: Path, root: Path) -> str:
    """A path as it stands in `file_name`: relative to the root, or absolute where it lies elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path.resolve())


def read_sizes(paths: Iterable[Path]) -> list[tuple[int, int] | Exception]:
    """(height, width) of many upright images, from their headers; the error in place of one that cannot be read."""

    def size(path: Path) -> tuple[int, int] | Exception:
        try:
            return read_size(path)
        except (OSError, ValueError) as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(size, paths))


def annotation(record: Record, category_id: int, box: tuple[float, float, float, float], crowd: bool = False) -> None:
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
