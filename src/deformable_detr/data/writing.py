"""A dataset from boxes: COCO, YOLO or Pascal VOC, with its images beside it, as :func:`open_dataset` reads it."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import numpy as np
import torch

from deformable_detr.boxes import xyxy_to_cxcywh
from deformable_detr.categories import Categories
from deformable_detr.data.layout import add_box, add_image, empty_record
from deformable_detr.files import atomic_folder, check_place, write_json, write_text


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """One image with its objects."""

    path: Path
    """The file."""

    size: tuple[int, int]
    """(height, width) in pixels."""

    boxes: np.ndarray
    """`[N, 4]` left, top, right, bottom in pixels."""

    labels: np.ndarray
    """`[N]` positions in the categories."""


def write_dataset(
    folder: str | Path,
    images: Sequence[LabelledImage],
    categories: Categories,
    kind: str = "coco",
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Write annotations, and the images beside them: as hard links where the disk allows it, else as copies.

    Args:
        folder: empty, or not there yet.
        images: in the order in which they are listed. Images of one name get numbers.
        categories: what the labels mean.
        kind: one of :data:`FORMATS`.
        notes: further text files, by their names.

    Returns:
        The file that a labelling tool opens: the JSON, the data.yaml, or the folder of the XML files.

    Raises:
        FileExistsError: the folder is not empty.
        ValueError: an unknown format, or class names that it cannot tell apart.
    """
    root = Path(folder)
    if kind not in FORMATS:
        raise ValueError(f"unknown format {kind!r}; known are {', '.join(FORMATS)}")
    check_new(root)
    check_names(categories, kind)
    with atomic_folder(root) as partial:
        path = FORMATS[kind](partial, images, _names(images), categories).relative_to(partial)
        for name, text in (notes or {}).items():
            write_text(partial / name, text)
    return root / path


def check_names(categories: Categories, kind: str) -> None:
    """Check that a format can name the classes: in YOLO and VOC a class is its name, which must not be empty or stand twice.

    Raises:
        ValueError: it cannot.
    """
    if kind == "coco":  # has ids
        return
    names = [name.strip() for name in categories.names]
    faulty = [name for name in names if not name or names.count(name) > 1 or (kind == "voc" and not name.isprintable())]
    if faulty:
        raise ValueError(
            f"class name {faulty[0]!r} is empty, stands twice, or is none that XML can hold: "
            f"{kind} tells classes by their names, coco by numbers"
        )


def check_new(folder: Path) -> None:
    """Check that a folder can be filled.

    Raises:
        FileExistsError: there is something in it, or it is a file.
        OSError: nothing can be written there.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: not an empty folder; name a new one, so that nothing is overwritten")
    check_place(folder)


def place_image(source: Path, target: Path) -> None:
    """Put an image at another path: a hard link where the disk allows it, else a copy. Folders are made.

    Raises:
        FileExistsError: there is something; it may be a link to another original, so nothing is written into it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except FileExistsError:
        raise
    except OSError:  # another disk, or one without hard links
        shutil.copy2(source, target)


def free_name(name: str, taken: set[str]) -> str:
    """A name, maybe with folders, with a number where it is taken in any case of letters. It is taken then."""
    path, free, number = PurePosixPath(name), name, 1
    while free.casefold() in taken:
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}").as_posix()
    taken.add(free.casefold())
    return free


def _names(images: Sequence[LabelledImage]) -> list[str]:
    """A file name for each image; their stems differ, as YOLO and VOC name the annotations after them."""
    taken: set[str] = set()
    return [free_name(image.path.stem, taken) + image.path.suffix for image in images]


def _write_coco(root: Path, images: Sequence[LabelledImage], names: Sequence[str], categories: Categories) -> Path:
    record = empty_record(dict(zip(categories.ids, categories.names, strict=True)))
    for image, name in zip(images, names, strict=True):
        place_image(image.path, root / "train" / name)
        add_image(record, name, image.size)
        for (left, top, right, bottom), label in zip(image.boxes.astype(float).round(2).tolist(), image.labels, strict=True):
            add_box(record, categories.ids[label], (left, top, right, bottom))
    return write_json(root / "annotations" / "instances_train.json", record)


def _write_yolo(root: Path, images: Sequence[LabelledImage], names: Sequence[str], categories: Categories) -> Path:
    import yaml

    for image, name in zip(images, names, strict=True):
        place_image(image.path, root / "images" / "train" / name)
        scale = np.array(image.size[::-1] * 2, dtype=float)
        boxes = xyxy_to_cxcywh(torch.from_numpy(np.asarray(image.boxes, dtype=float).reshape(-1, 4) / scale)).tolist()
        rows = [f"{label} " + " ".join(f"{value:.6f}" for value in box) for box, label in zip(boxes, image.labels, strict=True)]
        write_text(root / "labels" / "train" / f"{Path(name).stem}.txt", "".join(f"{row}\n" for row in rows))
    path = root / "data.yaml"
    write_text(path, yaml.safe_dump({"path": ".", "train": "images/train", "names": dict(enumerate(categories.names))}))
    return path


def _write_voc(root: Path, images: Sequence[LabelledImage], names: Sequence[str], categories: Categories) -> Path:
    for image, name in zip(images, names, strict=True):
        place_image(image.path, root / "JPEGImages" / name)
        page = ElementTree.Element("annotation")
        ElementTree.SubElement(page, "filename").text = name
        _add_numbers(page, "size", {"width": image.size[1], "height": image.size[0], "depth": 3})
        for box, label in zip(image.boxes.tolist(), image.labels.tolist(), strict=True):
            entry = ElementTree.SubElement(page, "object")
            ElementTree.SubElement(entry, "name").text = categories.names[label]
            left, top, right, bottom = box
            corners = (left + 1, top + 1, max(right, left + 1), max(bottom, top + 1))  # VOC counts from 1; a pixel at least
            _add_numbers(entry, "bndbox", dict(zip(CORNERS, (round(value, 2) for value in corners), strict=True)))
        ElementTree.indent(page)
        write_text(root / "Annotations" / f"{Path(name).stem}.xml", ElementTree.tostring(page, encoding="unicode"))
    return root / "Annotations"


CORNERS = ("xmin", "ymin", "xmax", "ymax")


def _add_numbers(parent: ElementTree.Element, tag: str, numbers: dict[str, float]) -> None:
    element = ElementTree.SubElement(parent, tag)
    for name, value in numbers.items():
        ElementTree.SubElement(element, name).text = str(value)


FORMATS: dict[str, Callable[[Path, Sequence[LabelledImage], Sequence[str], Categories], Path]] = {
    "coco": _write_coco,
    "yolo": _write_yolo,
    "voc": _write_voc,
}
"""The writer of each format."""
