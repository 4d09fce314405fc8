"""YOLO datasets: class names, and one text file of boxes per image, in shares of the image's size."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Self

import yaml

from deformable_detr.data.entries import as_number, as_whole, short
from deformable_detr.data.file_index import FileIndex, fold_name, slashed, split_role, walk_files
from deformable_detr.data.findings import Found, Item
from deformable_detr.data.images import IMAGE_SUFFIXES, UNREADABLE_SUFFIXES
from deformable_detr.data.layout import ForeignLayout, add_box, add_image, empty_record, note_unreadable, read_sizes
from deformable_detr.data.text import Record, read_text, split_lines
from deformable_detr.data.yolo_labels import LabelLine, boxes_of_lines, read_lines
from deformable_detr.files import is_file, is_there
from deformable_detr.yaml_keys import AsWritten

USUAL_NAMES = ("data", "dataset")
CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels", "labels.names", "classes.names", "predefined_classes.txt")
SPLIT_KEYS = ("train", "val", "valid", "validation", "test")
EMPTY = ("", "null", "~", "none", "None", "Null", "NULL")
NUMBERED = re.compile(r"([0-9]{1,6})(?:\s*[:=,;]\s*|\s+)(\S.*)")
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")


class YoloLayout(ForeignLayout):
    """A YOLO dataset.

    Args:
        index: its files.
        source: the data.yaml, or what replaces it: obj.data, classes.txt.
        names: the classes by their numbers; empty for a number that has no name.
        parts: of each split, its folders of images and its .txt lists of images, or the images themselves.
        found: what was noticed while opening.
        keypoints: `kpt_shape`.
        names_file: the list that the names come from, where it is not the source.
    """

    format = "YOLO"

    def __init__(
        self,
        index: FileIndex,
        source: Path,
        names: dict[int, str],
        parts: dict[str, list[Path]],
        found: Found,
        keypoints: tuple[int, int] | None = None,
        names_file: Path | None = None,
    ) -> None:
        super().__init__(index, source, parts)
        self.names, self.found, self.keypoints, self.names_file = names, found, keypoints, names_file
        self._images: dict[str, list[Path]] = {}

    @classmethod
    def open(cls, index: FileIndex, file: Path | None) -> Self | None:
        """The layout of a folder or of a data.yaml; None where there is nothing of YOLO.

        Raises:
            ValueError: the data.yaml is damaged or has no usable `names`.
        """
        if file is not None:
            return cls._of_yaml(index, file, required=True) if file.suffix.lower() in (".yaml", ".yml") else None
        files = [path for path in index.select(".yaml", ".yml", ".data") if len(path.relative_to(index.root).parts) <= 2]
        files.sort(key=lambda path: (len(path.parts), path.stem not in USUAL_NAMES, path))
        for path in files:
            opened = cls._of_darknet(index, path) if path.suffix.lower() == ".data" else cls._of_yaml(index, path)
            if opened is not None:
                return opened
        return cls._of_class_list(index)

    @classmethod
    def _of_yaml(cls, index: FileIndex, file: Path, required: bool = False) -> Self | None:
        """The layout that a data.yaml describes; None for another YAML file, or an error where it is `required`."""
        try:
            settings = yaml.load(read_text(file), Loader=AsWritten)
        except (yaml.YAMLError, ValueError) as error:
            if not required and file.stem not in USUAL_NAMES:
                return None
            raise ValueError(f"{file}: not valid YAML ({' '.join(str(error).split())})") from None
        settings = settings if isinstance(settings, dict) else {}
        named = _named_splits(settings)
        if not named or "names" not in settings:
            if required:
                raise ValueError(f"{file}: not a YOLO data.yaml: expected `names` and at least one of `train`, `val`, `test`")
            return None
        found = Found("")
        base = _base_folder(file, settings.get("path"))
        parts = _located_splits(named, base, index, file, found, optional=("test",))  # which exporters write in any case
        keypoints = (0, 0) if settings.get("task") in ("segment", "obb") else _keypoints(settings.get("kpt_shape"), file)
        names_file = _names_file(settings["names"], file)
        names = _listed_names(names_file, found) if names_file else _class_names(settings["names"], file)
        _check_count(settings.get("nc"), names, f"{file}: `nc`")
        return cls(index, file, names, parts, found, keypoints, names_file)

    @classmethod
    def _of_darknet(cls, index: FileIndex, file: Path) -> Self | None:
        """An obj.data of darknet and of CVAT's YOLO 1.1: lines `train = data/train.txt`, `names = data/obj.names`."""
        pairs = (line.partition("=") for line in split_lines(read_text(file)) if "=" in line)
        settings = {key.strip().lower(): value.strip() for key, _, value in pairs}
        named = _named_splits(settings)
        if not named or "names" not in settings:
            return None
        found = Found("")
        names_file = _resolve(file.parent, index, settings["names"], f"{file}: names", found)
        names = _listed_names(names_file, found)
        _check_count(settings.get("classes"), names, f"{file}: `classes`")
        parts = _located_splits(named, file.parent, index, file, found, optional=SPLIT_KEYS)
        for path in index.select(".txt"):  # lists of subsets that obj.data does not name, as CVAT writes them
            if path.parent == file.parent and (role := split_role(path.stem)) and role not in parts:
                parts[role] = [path]
        if not parts:
            raise FileNotFoundError(f"{file}: none of the lists of images that it names is there")
        return cls(index, file, names, parts, found, names_file=names_file)

    @classmethod
    def _of_class_list(cls, index: FileIndex) -> Self | None:
        """Label files with a classes.txt (Label Studio, labelImg) or the like; splits by the names of folders."""
        lists = [path for path in index.select(".txt", ".names", ".labels") if path.name.lower() in CLASS_FILES]
        if not lists:
            return None
        found = Found("")
        contents = {tuple(_listed_names(path).items()) for path in lists}
        if len(contents) > 1:
            shown = ", ".join(map(index.relative, lists))
            raise ValueError(f"{index.root}: several lists of classes that differ: {shown}; write a data.yaml with `names`")
        images = [Path(path) for path in index.images]
        layout = cls(index, lists[0], _listed_names(lists[0], found), {}, found)
        labelled = {image.parent for image in images if layout.label_file(image)[0]}
        if not labelled:
            return None
        layout.parts = index.by_split(image for image in images if image.parent in labelled)  # not masks, thumbnails
        return layout

    def used_files(self) -> Iterator[Path]:
        """The yaml or class list, the lists, the images, and their label files."""
        yield from filter(None, (self.source, self.names_file))
        for split, parts in self.parts.items():
            yield from (part for part in parts if is_file(part))
            try:
                images = self.image_files(split)
            except (OSError, ValueError):  # said where the split is read
                continue
            for image in images:
                yield from (path for path in (image, self.label_file(image)[0]) if path is not None and is_file(path))

    def read(self, split: str) -> tuple[Record, Found]:
        """The COCO record of a split, without what is faulty in it, and what was found.

        Raises:
            FileNotFoundError: a folder or list that the data.yaml names is missing, or has no images.
        """
        images = self.image_files(split)
        if not images:
            raise FileNotFoundError(f"{self.source}: no images for {split!r} in {', '.join(map(str, self.parts[split]))}")
        record, found = empty_record({key: name for key, name in self.names.items() if name}), Found(split)
        for code, items in self.found.items.items():
            found.add(code, *items)
        lines: list[LabelLine] = []
        readable: list[tuple[Path, tuple[int, int], int]] = []
        for image, size in zip(images, read_sizes(images), strict=True):
            if isinstance(size, Exception):
                note_unreadable(found, image, str(size).removeprefix(f"{image}: "), size)
                continue
            file, renamed = self.label_file(image)
            if renamed:
                found.add("label-renamed", Item(f"{self.index.relative(image)}: found as {file}", file=str(file)))
            own, faults = read_lines(file, self.names) if file is not None else ([], [])
            found.add("label-fault", *faults)
            lines += own
            readable.append((image, size, len(own)))
        boxes, faults = boxes_of_lines(lines, self.keypoints)
        found.add("label-fault", *faults)
        remaining = iter(boxes)
        for image, size, count in readable:
            add_image(record, self.file_name(image), size)
            for entry in (next(remaining) for _ in range(count)):
                if entry is not None:
                    label, (left, top, right, bottom) = entry
                    add_box(record, label, (left * size[1], top * size[0], right * size[1], bottom * size[0]))
        if readable and not lines and not found.items.get("label-fault"):
            found.add("labels-missing", Item(self._where_looked(images[0])))
        return record, found

    def _where_looked(self, image: Path) -> str:
        places = " and ".join(dict.fromkeys(str(path) for path in label_places(image)))
        return f"not one label of {self.index.relative(image)} and the other images; for this one looked for {places}"

    def image_files(self, split: str) -> list[Path]:
        """The images of a split; what is listed but not there, too.

        Raises:
            FileNotFoundError: a folder or list is missing.
        """
        if split in self._images:
            return self._images[split]
        found: dict[Path, None] = {}
        for part in self.parts[split]:
            if not is_there(part):
                raise FileNotFoundError(f"{self.source}: {split!r} names {part}, which is not there; correct the path")
            if is_file(part) and part.suffix.lower() in IMAGE_SUFFIXES:
                found[part] = None
            else:
                found |= dict.fromkeys(walk_files(part, IMAGE_SUFFIXES) if part.is_dir() else self._read_list(part))
        return self._images.setdefault(split, list(found))

    def _read_list(self, file: Path) -> list[Path]:
        """The images of a .txt list, relative to the list or to the dataset; leading folders that are not there are left out.

        That is said, and not done where several names would lead to one image.

        Raises:
            ValueError: a line that is no path of an image.
        """
        bases = file.parent, self.root
        found = {name: _find_tail(name, bases) for line in split_lines(read_text(file)) if (name := slashed(line))}
        counts = Counter(found.values())
        for name, path in found.items():
            if path is None and PurePosixPath(name).suffix.lower() not in IMAGE_SUFFIXES | UNREADABLE_SUFFIXES:
                raise ValueError(f"{file}: the line {name[:80]!r} is no path of an image; a list has one path in each line")
            if path is not None and path not in [base / name for base in bases]:
                if counts[path] > 1:
                    found[name] = None
                elif not name.startswith("data/"):  # what CVAT and darknet write
                    self.found.add("path-replaced", Item(f"{file}: {name} is not there; {path} is taken for it"))
        return [Path(os.path.normpath(path or file.parent / name)) for name, path in found.items()]

    def label_file(self, image: Path) -> tuple[Path | None, bool]:
        """The label file of an image, or None; and whether its name is spelled otherwise (%20, case, form of accents)."""
        for place in label_places(image):
            if str(place) in self.index.known or os.path.lexists(place):  # a folder, or a link to nothing: said where it is read
                return place, False
        for place in label_places(image):
            key = fold_name(str(place))
            folded = self._labels.get(key, ())
            if len(folded) == 1 and len(self._labelled.get(key, ())) < 2:
                return folded[0], folded[0].name != place.name
        return None, False

    @cached_property
    def _labels(self) -> dict[str, list[Path]]:
        """All text files by their folded paths."""
        found: dict[str, list[Path]] = {}
        for path in self.index.select(".txt"):
            found.setdefault(fold_name(str(path)), []).append(path)
        return found

    @cached_property
    def _labelled(self) -> dict[str, set[Path]]:
        """The images, without their suffixes, that the folded path of a label file could belong to."""
        found: dict[str, set[Path]] = {}
        for image in map(Path, self.index.images):
            for place in label_places(image):
                found.setdefault(fold_name(str(place)), set()).add(image.with_suffix(""))
        return found


def label_places(image: Path) -> list[Path]:
    """Candidates for the label file of an image: `labels` in place of an `images` of its path, the last first, and beside it."""
    parts, places = list(image.parts), []
    for index in range(len(parts) - 2, -1, -1):
        if parts[index].lower() in IMAGE_FOLDERS:
            places.append(Path(*parts[:index], "labels", *parts[index + 1 :]).with_suffix(".txt"))
    return [*places, image.with_suffix(".txt")]


def looks_like_labels(file: Path) -> bool:
    """Whether a text file has lines of YOLO's labels."""
    try:
        with file.open("rb") as stream:
            words = stream.readline(2000).split()
        return len(words) >= 5 and words[0].isdigit() and all(float(word) <= 1e6 for word in words)
    except (OSError, ValueError):
        return False


def _names_file(names: Any, file: Path) -> Path | None:
    """The list that `names` of a data.yaml is the path of, as in darknet; None where it is none."""
    is_path = isinstance(names, str) and names not in EMPTY and as_whole(names) is None
    return _find_tail(slashed(names), (file.parent,)) if is_path else None


def _class_names(names: Any, file: Path) -> dict[int, str]:
    """`names` of a data.yaml, a list or a mapping, by class number."""
    if isinstance(names, list):
        names = dict(enumerate(names))
    entries = list(names.items()) if isinstance(names, dict) else []
    known = {number: name for key, name in entries if (number := as_whole(key)) is not None and isinstance(name, str)}
    if not entries or not all(as_whole(key) in known and isinstance(name, str) for key, name in entries):
        raise ValueError(f"{file}: `names` must be a list of class names, or name them by their numbers from 0")
    if len(known) < len(entries):
        raise ValueError(f"{file}: `names` has a class twice: {', '.join(str(key) for key, _ in entries)}")
    return known


def _check_count(count: Any, names: dict[int, str], where: str) -> None:
    """See that a stated number of classes is that of the names.

    Raises:
        ValueError: it is another.
    """
    if count and count not in EMPTY and as_number(count) != len(names):
        raise ValueError(f"{where} is {short(count)}, but there are {len(names)} names of classes; correct one of both")


def _listed_names(file: Path, found: Found | None = None) -> dict[int, str]:
    """The classes of a list, one per line; a blank line between others leaves its number without a name.

    Lines may begin with their numbers (`0 cat`, `1: dog`): where these are all from 0 on, they are no part of the names.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such list of classes")
    lines = [line.strip() for line in split_lines(read_text(file))]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise ValueError(f"{file}: no class names; write one per line")
    numbered = [NUMBERED.fullmatch(line) for line in lines if line]
    names = {int(match[1]): match[2] for match in numbered if match}
    if len(names) == len(numbered) and max(names) == len(names) - 1:
        if found is not None:
            found.add("names-numbered", Item(f"{file}: begins with {lines[0]!r}; class 0 is {names[0]!r}", file=str(file)))
        return dict(sorted(names.items()))
    return dict(enumerate(lines))


def _keypoints(shape: Any, file: Path) -> tuple[int, int] | None:
    if shape is None:
        return None
    if shape in EMPTY:
        return 0, 0
    numbers = [number for value in shape if (number := as_whole(value)) is not None] if isinstance(shape, list) else []
    if len(numbers) != 2 or numbers[0] < 1 or numbers[1] not in (2, 3):
        raise ValueError(f"{file}: kpt_shape is {short(shape)}; expected [number of keypoints, 2 or 3 numbers for each]")
    return numbers[0], numbers[1]


def _named_splits(settings: dict[str, Any]) -> dict[str, list[str]]:
    """The folders and lists that a data.yaml or obj.data names for each split, by its key."""
    given = {key: settings[key] for key in SPLIT_KEYS if settings.get(key) and settings[key] not in EMPTY}
    return {key: list(map(str, value)) if isinstance(value, list) else [str(value)] for key, value in given.items()}


def _located_splits(
    named: dict[str, list[str]], base: Path, index: FileIndex, file: Path, found: Found, optional: Sequence[str]
) -> dict[str, list[Path]]:
    """The same as paths, by the roles of the splits; an optional one of which nothing is there is noted and left out."""
    parts: dict[str, list[Path]] = {}
    for key, values in named.items():
        paths = [_resolve(base, index, value, f"{file}: {key}", found) for value in values]
        if key in optional and not any(map(is_there, paths)):
            found.add("split-missing", Item(f"{file}: {key}: {', '.join(values)} is not there", file=str(file)))
        else:
            parts.setdefault(split_role(key) or key, []).extend(paths)
    return parts


def _base_folder(file: Path, path: Any) -> Path:
    """The folder that the splits are relative to: `path` where it leads somewhere from the yaml file, else the file's own."""
    name = slashed(str(path)) if path and path not in EMPTY else ""
    return file.parent / name if name and (file.parent / name).is_dir() else file.parent


def _resolve(base: Path, index: FileIndex, value: str, where: str, found: Found) -> Path:
    """A folder or list. Some exporters write `../train/images` for `train/images`; others the paths of another machine."""
    name = slashed(value)
    path = base / name
    if is_there(path):
        return path
    within = base / name.removeprefix("../")
    if is_there(within):
        return within
    tail = _find_tail(name, (base, index.root), folders=True)
    if tail is None or split_role(name) != split_role(index.relative(tail)):
        return path
    if not name.startswith("data/"):  # what CVAT and darknet write
        found.add("path-replaced", Item(f"{where}: {value} is not there; {tail} is taken for it"))
    return tail


def _find_tail(name: str, bases: tuple[Path, ...], *, folders: bool = False) -> Path | None:
    """The file (or folder, too) that the last parts of a path lead to from one of some bases, as many parts as possible."""
    exists = is_there if folders else is_file
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", "..")]
    candidates = [base / name for base in bases]
    candidates += [base / Path(*parts[first:]) for first in range(len(parts)) for base in bases]
    return next((path for path in candidates if exists(path)), None)
