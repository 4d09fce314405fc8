"""Pascal VOC datasets: one XML file of boxes per image, in whatever folders, and lists of names for the splits."""

import math
import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Self
from xml.etree import ElementTree

from deformable_detr.data.entries import as_number, as_size, read_flag, read_number
from deformable_detr.data.file_index import FileIndex, fold_name, most_alike, path_role, slashed, split_role
from deformable_detr.data.findings import Found, Item
from deformable_detr.data.layout import ForeignLayout, add_box, add_image, empty_record, fault, note_unreadable, read_sizes
from deformable_detr.data.text import Record, decode, read_text, split_lines
from deformable_detr.files import is_file

Box = tuple[float, float, float, float]


class VocLayout(ForeignLayout):
    """A Pascal VOC dataset: XML files, and lists of them in `ImageSets/Main` or folders named like splits.

    Args:
        index: the files of the dataset.
        parts: the XML files of each split.
        lists: the files that the splits come from.
    """

    format = "Pascal VOC"

    def __init__(self, index: FileIndex, parts: dict[str, list[Path]], lists: list[Path]) -> None:
        super().__init__(index, index.root, parts)
        self.lists = lists

    @classmethod
    def open(cls, index: FileIndex, file: Path | None) -> Self | None:
        """The layout of a folder; None where there is nothing of VOC."""
        if file is not None:
            return None
        files = [path for path in index.select(".xml") if _is_annotation(path)]
        if not files:
            return None
        if lists := _split_lists(index):
            parts: dict[str, list[Path]] = {}
            for name, path in lists:
                parts.setdefault(name, []).extend(_listed_files(path, files))
            return cls(index, parts, [path for _, path in lists])
        return cls(index, index.by_split(files), [])

    def used_files(self) -> Iterator[Path]:
        """All XML files and lists."""
        yield from self.lists
        yield from {file for files in self.parts.values() for file in files if is_file(file)}

    def read(self, split: str) -> tuple[Record, Found]:
        """The COCO record of a split, without what is faulty in it, and what was found; the classes are those of all splits."""
        ids = {name: number for number, name in enumerate(self.class_names)}
        record, found = empty_record({number: name for name, number in ids.items()}), Found(split)
        trees: list[tuple[Path, ElementTree.Element, Path]] = []
        for file in self.parts[split]:
            try:
                tree = _parse(file)
            except ValueError as error:
                found.add("label-fault", fault(file, str(error)))
                continue
            images = self._images_of(file, tree.findtext("filename"))
            if not images:
                where = f"neither beside it nor elsewhere in {self.root}"
                found.add("image-missing", fault(file, f"its image {file.stem}.jpg: no such image, {where}"))
                continue
            if len(images) > 1:
                several = " or ".join(map(self.index.relative, images[:3]))
                found.add("label-fault", fault(file, f"its image may be {several}: give them different names"))
                continue
            image = images[0]
            if fold_name(image.stem) != fold_name(file.stem):
                text = f"{self.index.relative(file)}: its image is {self.index.relative(image)}"
                found.add("label-renamed", Item(text, file=str(file)))
            trees.append((file, tree, image))
        for (file, tree, image), size in zip(trees, read_sizes(image for _, _, image in trees), strict=True):
            if isinstance(size, Exception):
                note_unreadable(found, file, f"its image {size}", size)
                continue
            add_image(record, self.file_name(image), as_size(tree.findtext("size/height"), tree.findtext("size/width")) or size)
            for number, element in enumerate(tree.iter("object"), 1):
                try:
                    name, box, difficult = _read_object(element)
                except ValueError as error:
                    found.add("label-fault", fault(f"{file}, object {number}", str(error)))
                    continue
                if angle := _angle(element):
                    found.add("box-turned", Item(f"{file}, object {number}: {name!r} turned by {angle:g} degrees", file=str(file)))
                add_box(record, ids[name], box, crowd=difficult)
        return record, found

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

    def _images_of(self, file: Path, filename: str | None) -> list[Path]:
        """The image of an XML file; none or several where it cannot be told.

        It has the same name; of several it is the one beside the file, else one with the suffix of <filename> (masks often have
        another), and then the nearest, or that in a folder of the same name. Where there is none, it is what <filename> names.
        """
        named = PurePosixPath(slashed(filename or ""))
        found = self.index.images_like(file.stem) or self.index.images_like(named.stem)
        found = [path for path in found if path.stem == file.stem] or found
        role = path_role(self.index.relative(file))
        found = [path for path in found if role is None or path_role(self.index.relative(path)) in (None, role)]
        if len(found) > 1:
            beside = [path for path in found if path.parent == file.parent]
            found = beside or [path for path in found if path.suffix.lower() == named.suffix.lower()] or found
            shared = {path: len(os.path.commonpath([file.parent, path.parent])) for path in found}
            found = most_alike(str(file), [path for path in found if shared[path] == max(shared.values())])
        return found


def _is_annotation(path: Path) -> bool:
    with path.open("rb") as stream:
        head = stream.read(4000).replace(b"\0", b"")  # also of UTF-16
    return b"<annotation" in head and b"<annotations" not in head


def _split_lists(index: FileIndex) -> list[tuple[str, Path]]:
    """The lists of `ImageSets/Main` that are splits: by name and file. Those of single classes (`cat_train.txt`) are not."""
    lists = [path for path in index.select(".txt") if path.parent.name.lower() == "main" or path.parent.name.lower() == "imagesets"]
    named = [(path.stem, path) for path in lists if re.fullmatch(r"[A-Za-z]+", path.stem) and split_role(path.stem)]
    named = named or [(path.stem, path) for path in lists if path.stem.lower() in ("default", "all")]
    if any(split_role(name) == "train" and name.lower() != "trainval" for name, _ in named):
        named = [(name, path) for name, path in named if name.lower() != "trainval"]
    return named


def _listed_files(file: Path, xmls: list[Path]) -> list[Path]:
    """The XML files that a list names: a name per line, maybe in quotes, with folder or suffix; the rest is no part of it."""
    root = file.parent.parent if file.parent.name.lower() == "imagesets" else file.parent.parent.parent
    by_stem: dict[str, list[Path]] = {}
    for path in xmls:
        if path.is_relative_to(root):
            by_stem.setdefault(path.stem, []).append(path)
    listed = []
    for line in split_lines(read_text(file)):
        if not (line := line.strip()):
            continue
        quoted = re.match(r"""(["'])(.*?)\1""", line)
        words = [quoted.group(2)] if quoted else [line, line.rsplit(None, 1)[0], line.split()[0]]
        names = [name for word in words for name in (PurePosixPath(slashed(word)).name, PurePosixPath(slashed(word)).stem)]
        found = next((by_stem[name] for name in names if name in by_stem), None)
        folder = xmls[0].parent if xmls[0].is_relative_to(root) else root / "Annotations"
        missing = folder / f"{PurePosixPath(slashed(words[-1])).name}.xml"
        listed.append(most_alike(slashed(words[0]), found)[0] if found else missing)
    return listed


def _parse(file: Path) -> ElementTree.Element:
    try:
        content = file.read_bytes()
        declared = re.match(rb"\s*<\?xml[^>]*encoding=[\"']([\w.-]+)", content)
        if declared and declared.group(1).lower() not in (b"utf-8", b"utf8", b"utf-16"):  # expat knows few
            text = content.decode(declared.group(1).decode("ascii"))
        else:
            text = decode(content, file)
        tree = ElementTree.fromstring(re.sub(r"^\s*<\?xml.*?\?>", "", text, count=1, flags=re.DOTALL))
        for element in tree.iter():
            element.tag = element.tag.rpartition("}")[2]  # of any namespace
        return tree
    except FileNotFoundError:
        raise ValueError("no such file, but it is listed in ImageSets/Main") from None
    except ElementTree.ParseError as error:
        raise ValueError(f"not valid XML ({error})") from None
    except (LookupError, UnicodeDecodeError) as error:
        raise ValueError(f"not text of the encoding that it names ({error})") from None
    except ValueError as error:
        raise ValueError(str(error).removeprefix(f"{file}: ")) from None


def _read_object(element: ElementTree.Element) -> tuple[str, Box, bool]:
    """Name, (left, top, right, bottom) in pixels from 0, and whether the object is marked as difficult.

    VOC counts pixels from 1 and names the last one that belongs to the object, so the left and upper edge move by one.
    """
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("has no name")
    corners = ("xmin", "ymin", "xmax", "ymax")
    for key in ("name", "bndbox", *(f"bndbox/{corner}" for corner in corners)):
        if len(element.findall(key)) > 1:
            raise ValueError(f"{name!r} has several {key}; each box needs an object of its own")
    if element.find("robndbox") is not None and element.find("bndbox") is None:  # roLabelImg
        return name, _around_turned(name, element), _is_difficult(element)
    try:
        xmin, ymin, xmax, ymax = (read_number(element.findtext(f"bndbox/{key}")) for key in corners)
    except ValueError:
        raise ValueError(f"{name!r} has no bndbox of four numbers xmin, ymin, xmax, ymax") from None
    if xmin > xmax or ymin > ymax:
        raise ValueError(f"{name!r}: bndbox ({xmin:g}, {ymin:g}, {xmax:g}, {ymax:g}) ends before it begins")
    if max(xmax, ymax) <= 1 and not (xmin, ymin, xmax, ymax) == tuple(map(round, (xmin, ymin, xmax, ymax))):
        raise ValueError(f"{name!r}: bndbox ({xmin:g}, {ymin:g}, {xmax:g}, {ymax:g}) in shares of the image; VOC has pixels")
    return name, (max(xmin - 1, 0.0), max(ymin - 1, 0.0), xmax, ymax), _is_difficult(element)


def _angle(element: ElementTree.Element) -> float | None:
    """Degrees, as CVAT writes them among the attributes of a turned rectangle."""
    return next((as_number(one.findtext("value")) for one in element.iter("attribute") if one.findtext("name") == "rotation"), None)


def _is_difficult(element: ElementTree.Element) -> bool:
    """Its `<difficult>`: 0 or 1, true or false, yes or no; 0 where there is none, or `Unspecified` as poses are.

    Raises:
        ValueError: anything else.
    """
    given = element.findtext("difficult")
    try:
        return (given or "").strip().lower() != "unspecified" and read_flag(given)
    except ValueError as error:
        raise ValueError(f"{element.findtext('name')!r}: difficult is {error}") from None


def _around_turned(name: str, element: ElementTree.Element) -> Box:
    """The bounding box of a box that is turned around its centre (radians)."""
    try:
        cx, cy, w, h, angle = (read_number(element.findtext(f"robndbox/{key}")) for key in ("cx", "cy", "w", "h", "angle"))
    except ValueError:
        raise ValueError(f"{name!r} has no robndbox of five numbers cx, cy, w, h, angle") from None
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    half_w, half_h = (w * cos + h * sin) / 2, (w * sin + h * cos) / 2
    if not (0 <= half_w < math.inf and 0 <= half_h < math.inf):
        raise ValueError(f"{name!r}: robndbox of {w:g} x {h:g} turned by {angle:g} is no box")
    return cx - half_w, cy - half_h, cx + half_w, cy + half_h
