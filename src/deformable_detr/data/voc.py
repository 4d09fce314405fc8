"""Pascal VOC datasets: one XML file of boxes per image, and lists of names for the splits."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Self
from xml.etree import ElementTree

from deformable_detr.data.images import IMAGE_SUFFIXES
from deformable_detr.data.layout import (
    SPLIT_WORDS,
    Fault,
    ForeignLayout,
    Record,
    add_image,
    annotation,
    empty_record,
    read_sizes,
    relative_name,
    walk_files,
)

LISTS = ("train", "val", "test", "trainval")

Box = tuple[float, float, float, float]


class VocLayout(ForeignLayout):
    """A Pascal VOC dataset: `Annotations/`, `JPEGImages/` and `ImageSets/Main/`, or XML files beside their images.

    Args:
        root: the folder of the dataset.
        parts: the XML files of each split.
    """

    format = "Pascal VOC"

    def __init__(self, root: Path, parts: dict[str, list[Path]]) -> None:
        super().__init__(root, root / "Annotations" if (root / "Annotations").is_dir() else root)
        self.parts = parts

    @classmethod
    def open(cls, path: Path) -> Self | None:
        """The layout of a folder; None where there is nothing of VOC."""
        if path.is_file():
            return None
        if (path / "Annotations").is_dir():
            lists = {name: path / "ImageSets" / "Main" / f"{name}.txt" for name in LISTS}
            lists = {name: file for name, file in lists.items() if file.is_file()}
            if "train" in lists:
                lists.pop("trainval", None)
            parts = {name: [path / "Annotations" / f"{stem}.xml" for stem in _stems(file)] for name, file in lists.items()}
            return cls(path, parts or {"all": walk_files(path / "Annotations", [".xml"])})
        parts = {part: files for name, part in SPLIT_WORDS.items() if (files := walk_files(path / name, [".xml"]))}
        parts = parts or {"all": files} if (files := sorted(path.glob("*.xml"))) else parts
        return cls(path, parts) if parts else None

    def splits(self) -> tuple[str, ...]:
        """Those of `ImageSets/Main`, or of the folders."""
        return tuple(self.parts)

    def files(self) -> Iterator[Path]:
        """All XML files, lists and images."""
        yield from self.root.glob("ImageSets/Main/*.txt")
        yield from {file for files in self.parts.values() for file in files if file.is_file()}
        yield from self._image_of.values()

    def read(self, split: str) -> tuple[Record, list[Fault]]:
        """The COCO record of a split, without what is faulty in it, and the faults; the classes are those of all splits."""
        ids = {name: number for number, name in enumerate(self.class_names)}
        record, faults = empty_record({number: name for name, number in ids.items()}), []
        files = self.parts[split]
        images = [self.image(file) for file in files]
        for file, image, size in zip(files, images, read_sizes(images), strict=True):
            if isinstance(size, Exception):
                faults.append(Fault(str(file), f"its image {size}"))
                continue
            try:
                tree = _parse(file)
                size = _annotated_size(tree) or size
            except ValueError as error:
                faults.append(Fault(str(file), str(error)))
                continue
            add_image(record, relative_name(image, self.root), size)
            for number, element in enumerate(tree.iter("object"), 1):
                try:
                    name, box, difficult = _read_object(element)
                except ValueError as error:
                    faults.append(Fault(f"{file}, object {number}", str(error)))
                    continue
                annotation(record, ids[name], box, crowd=difficult)
        return record, faults

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The names of all objects of all splits, sorted."""
        names = set()
        for file in {file for files in self.parts.values() for file in files}:
            try:
                names |= {(element.findtext("name") or "").strip() for element in _parse(file).iter("object")}
            except ValueError:  # reported where the file is read
                continue
        return tuple(sorted(names - {""}))

    def image(self, file: Path) -> Path:
        """The image of an XML file: the one of the same name, in `JPEGImages` or beside it."""
        folder = file.parent if self.source == self.root else self.root / "JPEGImages"
        return self._image_of.get(folder / file.stem, folder / f"{file.stem}.jpg")

    @cached_property
    def _image_of(self) -> dict[Path, Path]:
        """All images, by their path without suffix."""
        folder = self.root if self.source == self.root else self.root / "JPEGImages"
        return {path.with_suffix(""): path for path in walk_files(folder, IMAGE_SUFFIXES)}


def _stems(file: Path) -> list[str]:
    """The image names of a list; what follows a name in a line is not part of it."""
    return [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _parse(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(file.read_bytes())
    except FileNotFoundError:
        raise ValueError("no such file, but it is listed in ImageSets/Main") from None
    except ElementTree.ParseError as error:
        raise ValueError(f"not valid XML ({error})") from None


def _annotated_size(tree: ElementTree.Element) -> tuple[int, int] | None:
    """(height, width) as the file says; None where it does not."""
    try:
        height, width = (int(float(tree.findtext(f"size/{key}", "0"))) for key in ("height", "width"))
    except ValueError:
        return None
    return (height, width) if height > 0 and width > 0 else None


def _read_object(element: ElementTree.Element) -> tuple[str, Box, bool]:
    """Name, (left, top, right, bottom) in pixels from 0, and whether the object is marked as difficult.

    VOC counts pixels from 1 and names the last one that belongs to the object, so the left and upper edge move by one.
    """
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("has no name")
    try:
        xmin, ymin, xmax, ymax = (float(element.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        raise ValueError(f"{name!r} has no bndbox of four numbers xmin, ymin, xmax, ymax") from None
    if not (xmin <= xmax < float("inf") and ymin <= ymax < float("inf")):  # false for NaN, too
        raise ValueError(f"{name!r}: bndbox ({xmin:g}, {ymin:g}, {xmax:g}, {ymax:g}) ends before it begins")
    difficult = element.findtext("difficult", "0").strip() == "1"
    return name, (max(xmin - 1, 0.0), max(ymin - 1, 0.0), xmax, ymax), difficult
