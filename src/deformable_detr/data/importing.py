"""`doctor --convert`: a COCO dataset made of another format. LabelMe and CreateML are read by supervision, the others here."""

import csv
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deformable_detr.data.doctor.repair import SAME_ASPECT, check_output
from deformable_detr.data.entries import as_size, read_number
from deformable_detr.data.file_index import FileIndex, path_role, slashed, split_role
from deformable_detr.data.foreign import IMPORTABLE, PER_IMAGE, files_of, name_format, recognise
from deformable_detr.data.foreign_platforms import PLATFORM_READERS
from deformable_detr.data.foreign_readers import READERS, ForeignImage, ForeignObject, from_xywh
from deformable_detr.data.images import read_size
from deformable_detr.data.layout import add_box, add_image, empty_record
from deformable_detr.data.text import Record, read_json, read_text
from deformable_detr.data.writing import free_name, place_image
from deformable_detr.files import atomic_folder, is_file, write_json, write_text

UNNAMED = "object"
"""The class of a dataset whose objects were all drawn without one."""


@dataclass
class Annotated:
    """What the files say of one image."""

    objects: list[ForeignObject] = field(default_factory=list)
    size: tuple[int, int] | None = None
    """(height, width) of the image that the boxes were drawn on; None where no file says it."""

    def add(self, image: ForeignImage) -> None:
        """More of the same image.

        Raises:
            ValueError: of another size.
        """
        self.objects += image.objects
        if self.size is not None and image.size is not None and self.size != image.size:
            raise ValueError(f"{image.name} is {_shown(self.size)} as well as {_shown(image.size)}: give one size")
        self.size = self.size or image.size


Part = dict[str, Annotated]
"""Image file → what is on it."""


def convert_dataset(dataset: str | Path, output_dir: str | Path) -> list[str]:
    """Write a COCO dataset: `annotations/instances_<split>.json`, and the images (links where the disk allows) in `<split>/`.

    Folders named like splits become splits; else there is one, `all`, which training divides. The original is only read.

    Args:
        dataset: the folder of the annotations and images.
        output_dir: a folder that is empty or not there yet, outside the dataset.

    Returns:
        What was written, a sentence per split; what was left out; and images of another size than annotated, whose boxes
        `doctor --fix` scales.

    Raises:
        FileExistsError: the output folder has something in it.
        FileNotFoundError: no dataset, or an image that is annotated but not there.
        ValueError: a format that cannot be converted here, or damaged annotations; the message says which.
    """
    root, out = Path(dataset), Path(output_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such dataset folder")
    check_output(out, root)
    index = FileIndex(root)
    kind = recognise(index)
    if kind not in IMPORTABLE:
        what = f"annotations in the format {name_format(index)}" if kind else "no known format"
        raise ValueError(f"{root}: {what} (COCO, YOLO and Pascal VOC are read as they are, without --convert)")
    files = files_of(kind, index)
    parts, left_out = _read_parts(kind, files, index)
    if not any(image.objects for part in parts.values() for image in part.values()):
        raise ValueError(f"{root}: not one box is annotated in its {len(files)} files of the format {kind}")
    names = _name_classes(parts)
    resized: list[str] = []
    records = {split: _record(part, names, resized) for split, part in parts.items()}
    with atomic_folder(out) as partial:
        for split, record in records.items():
            _place(record, partial / split)
            write_json(partial / "annotations" / f"instances_{split}.json", record)
    lines = [f"{split}: {len(record['images'])} images, {len(record['annotations'])} boxes" for split, record in records.items()]
    if left_out:
        lines.append("left out, without a box: " + ", ".join(f"{number} {name}" for name, number in left_out.most_common()))
    if others := [index.relative(path) for path in index.select(".json", ".csv", ".xml") if path not in files]:
        lines.append(f"not used: {len(others)} files of other formats ({', '.join(others[:3])}{', …' if others[3:] else ''})")
    if unused := len(set(index.images).difference(*parts.values())):
        lines.append(f"left out: {unused} images that no annotation speaks of")
    if resized:
        lines.append(f"of another size than annotated: {len(resized)} images ({resized[0]}); doctor --fix scales their boxes")
    return lines


def _read_parts(kind: str, files: Sequence[Path], index: FileIndex) -> tuple[dict[str, Part], Counter[str]]:
    """What is on the images of each split, and what the files have beyond boxes."""
    parts: dict[str, Part] = {}
    left_out: Counter[str] = Counter()
    owners: dict[str, str] = {}
    for file in files:
        own = path_role(index.relative(file)) or (None if kind in PER_IMAGE else split_role(file.stem))
        images = list(_read(kind, file, index))
        places = _locate([image.name for image in images], file, index, own, owners)
        for image in images:
            path = places[image.name]
            split = (image.split and split_role(image.split)) or own or path_role(index.relative(path)) or "all"
            try:
                parts.setdefault(split, {}).setdefault(path, Annotated()).add(image)
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from None
            left_out.update(image.left_out)
    return parts, left_out


def _name_classes(parts: Mapping[str, Part]) -> list[str]:
    """The names of all classes, sorted; the objects get theirs as text.

    Raises:
        ValueError: an object without a class, where others have one.
    """
    every = [(path, one) for part in parts.values() for path, image in part.items() for one in image.objects]
    if all(one.name is None for _, one in every):
        return [UNNAMED]
    for path, one in every:
        if one.name is None or not str(one.name).strip():
            raise ValueError(f"{path}: its object at {tuple(round(side, 3) for side in one.box)} has no class; name it")
    return sorted({str(one.name) for _, one in every})


def _read(kind: str, file: Path, index: FileIndex) -> Iterator[ForeignImage]:
    reader = READERS.get(kind) or PLATFORM_READERS.get(kind)
    try:
        for image in reader(file, index) if reader else _through_supervision(kind, file):
            if not isinstance(image.name, str) or not image.name.strip():
                raise ValueError(f"an image is named {image.name!r}")
            yield image
    except KeyError as error:
        raise ValueError(f"{file}: the entry {error} is missing") from error
    except (TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{file}: an entry is not of the form that {kind} has ({error})") from error
    except (ValueError, csv.Error, RecursionError, OverflowError) as error:
        raise ValueError(f"{file}: {str(error).removeprefix(f'{file}: ')}") from error


def _locate(names: Iterable[str], file: Path, index: FileIndex, role: str | None, owners: dict[str, str]) -> dict[str, str]:
    """The image file of each name in an annotation file.

    Args:
        names: as annotated; one may stand there several times.
        file: the annotation file.
        index: the dataset's files.
        role: of the split.
        owners: of each image that was found so far the place that was annotated: a file that is found elsewhere may be meant by
            one only. Those of this file are added.
    """
    wanted = list(dict.fromkeys(names))
    paths, elsewhere, reasons = index.locate_images(wanted, [file.parent, index.root], role)
    for at, (name, path) in enumerate(zip(wanted, paths, strict=True)):
        if not is_file(path):
            raise FileNotFoundError(f"{file}: its image {name} {reasons.get(at, 'is not there')}")
        place = os.path.normpath(file.parent / slashed(name)) if at in elsewhere else path
        if owners.setdefault(path, place) != place:
            what = f"may be {index.relative(path)}, but so may {index.relative(owners[path])}: give the paths of both"
            raise ValueError(f"{file}: its image {name} {what}")
    return dict(zip(wanted, paths, strict=True))


def _through_supervision(kind: str, file: Path) -> Iterator[ForeignImage]:
    """One file, in a folder of its own, as supervision's readers take all files of a folder and fail for all at one."""
    import tempfile

    import supervision as sv

    named = size = None
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder, file.name), read_text(file))  # in UTF-8, which is all that supervision reads
        if kind == "LabelMe":
            record = read_json(file)
            named, size = slashed(str(record["imagePath"])), as_size(record.get("imageHeight"), record.get("imageWidth"))
            if size is None:
                raise ValueError("imageHeight and imageWidth are no size of an image")
            if left_out := sorted({str(shape.get("shape_type")) for shape in record["shapes"]} - {"rectangle", "polygon"}):
                raise ValueError(f"shapes of the type {', '.join(left_out)} are not read; make rectangles or polygons of them")
            for number in (number for shape in record["shapes"] for point in shape["points"] for number in point):
                read_number(number)  # as all programs do: supervision takes what Python's float takes
            found = sv.DetectionDataset.from_labelme(str(file.parent), folder)
        else:
            for entry in json.loads(read_text(file)):
                for box in entry["annotations"]:
                    from_xywh([box["coordinates"][key] for key in ("x", "y", "width", "height")])
            found = sv.DetectionDataset.from_createml(str(file.parent), str(Path(folder, file.name)))
    for path, detections in found.annotations.items():
        classes = [found.classes[int(number)] for number in ([] if detections.class_id is None else detections.class_id)]
        boxes = [(float(a), float(b), float(c), float(d)) for a, b, c, d in detections.xyxy.tolist()]
        objects = [ForeignObject(*one) for one in zip(classes, boxes, strict=True)]
        yield ForeignImage(named or os.path.relpath(path, file.parent.resolve()), objects, size=size)


def _record(part: Part, names: list[str], resized: list[str]) -> Record:
    """The COCO record of a split; `resized` gets a word on each image of another size than annotated."""
    record = empty_record(dict(enumerate(names)))
    for path, image in part.items():
        height, width = _annotated_size(path, image, resized)
        add_image(record, path, (height, width))
        for one in image.objects:
            scale = (width, height, width, height) if one.normalised else (1, 1, 1, 1)
            left, top, right, bottom = (number * factor for number, factor in zip(one.box, scale, strict=True))
            if not all(map(math.isfinite, (left, top, right, bottom))):
                raise ValueError(f"{path}: a box of {one.name!r} is no box: {one.box}")
            add_box(record, names.index(UNNAMED if one.name is None else str(one.name)), (left, top, right, bottom), one.crowd)
    return record


def _annotated_size(path: str, image: Annotated, resized: list[str]) -> tuple[int, int]:
    """(height, width) that the boxes of an image belong to. Where the file has another one, doctor says so and --fix scales.

    Shares of an image that was only scaled are right as they are.
    """
    actual, size = read_size(path), image.size
    if size is None:
        return actual
    scaled = abs(actual[1] / actual[0] / (size[1] / size[0]) - 1) <= SAME_ASPECT
    if scaled and all(one.normalised for one in image.objects):
        return actual
    if size not in (actual, read_size(path, upright=False)):
        resized.append(f"{path} is {_shown(actual)}, annotated as {_shown(size)}")
    return size


def _shown(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"


def _place(record: Record, folder: Path) -> None:
    """Link or copy the images, under names of their own."""
    taken: set[str] = set()
    for image in record["images"]:
        source = Path(image["file_name"])
        image["file_name"] = free_name(source.name, taken)
        place_image(source, folder / image["file_name"])
