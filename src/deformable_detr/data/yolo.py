"""YOLO datasets: a data.yaml with the classes, and one text file of boxes per image, in shares of the image's size."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import yaml

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

USUAL_NAMES = ("data", "dataset")
TOLERANCE = 0.01
"""Shares may lie this far outside [0, 1], by rounding or sloppy drawing."""

Box = tuple[float, float, float, float]


class YoloLayout(ForeignLayout):
    """A YOLO dataset.

    Args:
        root: the folder of the data.yaml.
        source: the data.yaml, or the folder `images/` where there is only a classes.txt.
        names: the classes by their numbers.
        parts: of each split, its folders of images and its .txt lists of images.
    """

    format = "YOLO"

    def __init__(self, root: Path, source: Path, names: dict[int, str], parts: dict[str, list[Path]]) -> None:
        super().__init__(root, source)
        self.names, self.parts = names, parts

    @classmethod
    def open(cls, path: Path) -> Self | None:
        """The layout of a folder or of a data.yaml; None where there is nothing of YOLO.

        Raises:
            ValueError: the data.yaml is damaged or has no usable `names`.
        """
        if path.is_file():
            return cls._of_yaml(path, required=True) if path.suffix.lower() in (".yaml", ".yml") else None
        files = sorted((*path.glob("*.yaml"), *path.glob("*.yml")), key=lambda file: (file.stem not in USUAL_NAMES, file))
        found = next((layout for layout in map(cls._of_yaml, files) if layout), None)
        if found is None and (path / "images").is_dir() and (path / "labels").is_dir() and (path / "classes.txt").is_file():
            lines = (path / "classes.txt").read_text(encoding="utf-8").splitlines()
            parts = {part.name: [part] for part in sorted((path / "images").iterdir()) if part.is_dir()}
            parts = {SPLIT_WORDS.get(name, name): folders for name, folders in parts.items()}
            source = path / "images"
            return cls(path, source, dict(enumerate(line.strip() for line in lines if line.strip())), parts or {"all": [source]})
        return found

    @classmethod
    def _of_yaml(cls, file: Path, required: bool = False) -> Self | None:
        """The layout that a data.yaml describes; None for another YAML file, or an error where it is `required`."""
        try:
            settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            if not required and file.stem not in USUAL_NAMES:
                return None
            raise ValueError(f"{file}: not valid YAML ({' '.join(str(error).split())})") from None
        keys = [key for key in SPLIT_WORDS if isinstance(settings, dict) and settings.get(key)]
        if not keys or "names" not in settings:
            if required:
                raise ValueError(f"{file}: not a YOLO data.yaml: expected `names` and at least one of `train`, `val`, `test`")
            return None
        base = _base_folder(file, settings.get("path"))
        parts = {SPLIT_WORDS[key]: [_resolve(base, str(part)) for part in _listed(settings[key])] for key in keys}
        if "test" in parts and not any(part.exists() for part in parts["test"]):
            del parts["test"]  # exporters write the line whether there are test images or not
        return cls(file.parent, file, _class_names(settings["names"], file), parts)

    def splits(self) -> tuple[str, ...]:
        """Those that the data.yaml names."""
        return tuple(self.parts)

    def files(self) -> Iterator[Path]:
        """The yaml or class list, the lists, the images, and the label files that there are."""
        yield self.source if self.source.is_file() else self.root / "classes.txt"
        for split, parts in self.parts.items():
            yield from (part for part in parts if part.is_file())
            for image in self._images(split):
                yield from (file for file in (image, label_file(image)) if file.is_file())

    def read(self, split: str) -> tuple[Record, list[Fault]]:
        """The COCO record of a split, without what is faulty in it, and the faults.

        Raises:
            FileNotFoundError: a folder or list that the data.yaml names is missing, or has no images.
        """
        images = self._images(split)
        if not images:
            raise FileNotFoundError(f"{self.source}: no images for {split!r} in {', '.join(map(str, self.parts[split]))}")
        record, faults = empty_record(self.names), []
        for image, size in zip(images, read_sizes(images), strict=True):
            if isinstance(size, Exception):
                faults.append(Fault(str(image), str(size).removeprefix(f"{image}: ")))
                continue
            add_image(record, relative_name(image, self.root), size)
            boxes, wrong = read_labels(label_file(image), self.names)
            faults += wrong
            for label, (left, top, right, bottom) in boxes:
                annotation(record, label, (left * size[1], top * size[0], right * size[1], bottom * size[0]))
        return record, faults

    def _images(self, split: str) -> list[Path]:
        found: dict[Path, None] = {}
        for part in self.parts[split]:
            if not part.exists():
                raise FileNotFoundError(f"{self.source}: {split!r} names {part}, which is not there; correct the path")
            found |= dict.fromkeys(walk_files(part, IMAGE_SUFFIXES) if part.is_dir() else _read_list(part, self.root))
        return list(found)


def read_labels(file: Path, names: dict[int, str]) -> tuple[list[tuple[int, Box]], list[Fault]]:
    """The boxes of one label file; no such file, or an empty one, means no objects.

    Args:
        file: lines of `class cx cy w h`, or of `class x1 y1 x2 y2 x3 y3 …` for an outline, whose bounding box is taken.
        names: the known classes.

    Returns:
        Class numbers with (left, top, right, bottom) in shares of the image, and what is wrong, by line.
    """
    if not file.is_file():
        return [], []
    boxes, faults = [], []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            boxes.append(_read_line(line, names))
        except ValueError as error:
            faults.append(Fault(f"{file}, line {number}", str(error)))
    return boxes, faults


def _read_line(line: str, names: dict[int, str]) -> tuple[int, Box]:
    words = line.split()
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise ValueError(f"{line.strip()!r} is not a row of numbers") from None
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        raise ValueError(f"{len(values)} numbers; expected `class cx cy w h`, or a class and three or more points of an outline")
    if values[0] not in names:
        raise ValueError(f"class {words[0]} is unknown; the data.yaml names {min(names)} to {max(names)}")
    shares = values[1:]
    if not all(-TOLERANCE <= share <= 1 + TOLERANCE for share in shares):  # false for NaN, too
        hint = "; they look like pixels" if max(shares) > 2 else ""
        raise ValueError(f"{' '.join(words[1:])}: positions and sizes must be shares of the image in [0, 1]{hint}")
    if len(shares) == 4:
        cx, cy, w, h = shares
        if w < 0 or h < 0:
            raise ValueError(f"{' '.join(words[1:])}: a negative width or height")
        return int(values[0]), (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    return int(values[0]), (min(shares[::2]), min(shares[1::2]), max(shares[::2]), max(shares[1::2]))


def label_file(image: Path) -> Path:
    """Where the boxes of an image stand: `labels` in place of the last `images` of its path, else beside it."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _class_names(names: Any, file: Path) -> dict[int, str]:
    """`names` of a data.yaml, a list or a mapping, by class number."""
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(str(key).isdecimal() for key in names):
        raise ValueError(f"{file}: `names` must be a list of class names, or name them by their numbers from 0")
    return {int(key): str(name) for key, name in names.items()}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _base_folder(file: Path, path: Any) -> Path:
    """The folder that the splits are relative to: `path` where it leads somewhere from the yaml file, else the file's own."""
    return file.parent / str(path) if path and (file.parent / str(path)).is_dir() else file.parent


def _resolve(base: Path, part: str) -> Path:
    """A folder or list of a split. Some exporters write `../train/images` for `train/images`."""
    path = base / part
    within = base / part.removeprefix("../")
    return within if not path.exists() and within.exists() else path


def _read_list(file: Path, root: Path) -> list[Path]:
    """The images of a .txt list, relative to the list or to the dataset."""
    images = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if name := line.strip():
            places = [folder / name for folder in (file.parent, root)]
            images.append(next((place for place in places if place.is_file()), places[0]))
    return images
