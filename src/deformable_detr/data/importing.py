"""`doctor --convert`: a COCO dataset made of another format. LabelMe and CreateML are read by supervision, the others here."""

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from deformable_detr.data.doctor.repair import check_output
from deformable_detr.data.file_index import FileIndex, path_role, slashed, split_role
from deformable_detr.data.foreign import IMPORTABLE, advice, files_of, recognise
from deformable_detr.data.foreign_platforms import PLATFORM_READERS
from deformable_detr.data.foreign_readers import READERS, ForeignImage, ForeignObject
from deformable_detr.data.images import read_size
from deformable_detr.data.layout import add_box, add_image, empty_record
from deformable_detr.data.text import Record, read_json
from deformable_detr.files import is_file, write_json

__all__ = ["convert_dataset"]

Loaded = dict[str, list[ForeignObject]]
"""Image file → its objects."""


def convert_dataset(dataset: str | Path, output_dir: str | Path) -> list[str]:
    """Write a COCO dataset: `annotations/instances_<split>.json`, and the images (links where the disk allows) in `<split>/`.

    Folders named like splits become splits; else there is one, `all`, which training divides. The original is only read.

    Args:
        dataset: the folder of the annotations and images.
        output_dir: a folder that is empty or not there yet, outside the dataset.

    Returns:
        What was written, a sentence per split, and how many images no annotation speaks of.

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
        what = f"annotations in the format {kind}: {advice(kind, root)}" if kind else "no known format"
        raise ValueError(f"{root}: {what} (COCO, YOLO and Pascal VOC are read as they are, without --convert)")
    parts: dict[str, Loaded] = {}
    for file in files_of(kind, index):
        for image in _read(kind, file, index):
            own = path_role(index.relative(file)) or split_role(file.stem)
            path = _locate(image, file, index, own)
            split = (image.split and split_role(image.split)) or own or path_role(index.relative(path)) or "all"
            parts.setdefault(split, {}).setdefault(path, []).extend(image.objects)
    names = sorted({one.name for loaded in parts.values() for objects in loaded.values() for one in objects})
    records = {split: _record(loaded, names) for split, loaded in parts.items()}
    unused = len(set(index.images).difference(*parts.values()))
    for split, record in records.items():
        _place(record, out / split)
        write_json(out / "annotations" / f"instances_{split}.json", record)
    lines = [f"{split}: {len(record['images'])} images, {len(record['annotations'])} boxes" for split, record in records.items()]
    return [*lines, f"left out: {unused} images that no annotation speaks of"] if unused else lines


def _read(kind: str, file: Path, index: FileIndex) -> Iterator[ForeignImage]:
    reader = READERS.get(kind) or PLATFORM_READERS.get(kind)
    try:
        yield from reader(file, index) if reader else _through_supervision(kind, file)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        what = f"the entry {error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{file}: {what}") from error


def _locate(image: ForeignImage, file: Path, index: FileIndex, role: str | None) -> str:
    places, _, reasons = index.locate_images([image.name], [file.parent, index.root], role)
    if not is_file(places[0]):
        raise FileNotFoundError(f"{file}: its image {image.name} {reasons.get(0, 'is not there')}")
    return places[0]


def _through_supervision(kind: str, file: Path) -> Iterator[ForeignImage]:
    """One file, in a folder of its own, as supervision's readers take all files of a folder and fail for all at one."""
    import tempfile

    import supervision as sv

    named = None
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(file, folder)
        if kind == "LabelMe":
            record = read_json(file)
            named = slashed(str(record["imagePath"]))
            if left_out := sorted({str(shape.get("shape_type")) for shape in record["shapes"]} - {"rectangle", "polygon"}):
                raise ValueError(f"shapes of the type {', '.join(left_out)} are not read; make rectangles or polygons of them")
            found = sv.DetectionDataset.from_labelme(str(file.parent), folder)
        else:
            found = sv.DetectionDataset.from_createml(str(file.parent), str(Path(folder, file.name)))
    for path, detections in found.annotations.items():
        classes = [found.classes[int(number)] for number in ([] if detections.class_id is None else detections.class_id)]
        boxes = [(float(a), float(b), float(c), float(d)) for a, b, c, d in detections.xyxy.tolist()]
        objects = [ForeignObject(*one) for one in zip(classes, boxes, strict=True)]
        yield ForeignImage(named or PurePosixPath(slashed(path)).name, objects)


def _record(loaded: Loaded, names: list[str]) -> Record:
    record = empty_record(dict(enumerate(names)))
    for path, objects in loaded.items():
        height, width = read_size(path)
        add_image(record, path, (height, width))
        for one in objects:
            scale = (width, height, width, height) if one.normalised else (1, 1, 1, 1)
            left, top, right, bottom = (number * factor for number, factor in zip(one.box, scale, strict=True))
            if not all(map(math.isfinite, (left, top, right, bottom))):
                raise ValueError(f"{path}: a box of {one.name!r} is no box: {one.box}")
            add_box(record, names.index(one.name), (left, top, right, bottom), one.crowd)
    return record


def _place(record: Record, folder: Path) -> None:
    """Link or copy the images, under names of their own."""
    folder.mkdir(parents=True)
    taken: set[str] = set()
    for image in record["images"]:
        source = Path(image["file_name"])
        name = source.name if source.name not in taken else f"{image['id']}_{source.name}"
        taken.add(name)
        image["file_name"] = name
        try:
            os.link(source.resolve(), folder / name)
        except OSError:  # another disk, or one without hard links
            shutil.copy2(source, folder / name)
