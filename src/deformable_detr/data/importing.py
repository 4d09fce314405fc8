"""`doctor --convert`: a COCO dataset made of a format that supervision reads: LabelMe, CreateML."""

import os
import shutil
from pathlib import Path, PurePosixPath

from deformable_detr.data.annotation_file import Record, read_json
from deformable_detr.data.doctor.repair import check_output
from deformable_detr.data.file_index import FileIndex, path_role, slashed
from deformable_detr.data.foreign import IMPORTABLE, advice, json_format, recognise
from deformable_detr.data.images import read_size
from deformable_detr.data.layout import add_box, add_image, empty_record
from deformable_detr.files import write_json

__all__ = ["convert_dataset"]

Loaded = dict[str, list[tuple[str, tuple[float, float, float, float]]]]
"""Image file → class name and (left, top, right, bottom) in pixels of each object."""


def convert_dataset(dataset: str | Path, output_dir: str | Path) -> list[str]:
    """Write a COCO dataset: `annotations/instances_<split>.json`, and the images (links where the disk allows) in `<split>/`.

    Folders named like splits become splits; else there is one, `all`, which training divides. The original is only read.

    Args:
        dataset: the folder of the annotations and images.
        output_dir: a folder that is empty or not there yet, outside the dataset.

    Returns:
        What was written, a sentence per split.

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
        raise ValueError(f"{root}: {f'annotations in the format {kind}: {advice(kind, root)}' if kind else 'no known format'}")
    parts: dict[str, Loaded] = {}
    for file in index.select(".json"):
        if json_format(file) == kind:
            loaded = parts.setdefault(path_role(index.relative(file)) or "all", {})
            for path, objects in _load(kind, file, index).items():
                loaded.setdefault(path, []).extend(objects)
    names = sorted({name for loaded in parts.values() for objects in loaded.values() for name, _ in objects})
    records = {split: _record(loaded, names) for split, loaded in parts.items()}
    for split, record in records.items():
        _place(record, out / split)
        write_json(out / "annotations" / f"instances_{split}.json", record)
    return [f"{split}: {len(record['images'])} images, {len(record['annotations'])} boxes" for split, record in records.items()]


def _load(kind: str, file: Path, index: FileIndex) -> Loaded:
    """One file through supervision, in a folder of its own, as its readers take all files of a folder and fail for all at one."""
    import tempfile

    import supervision as sv

    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(file, folder)
        try:
            if kind == "LabelMe":
                found = sv.DetectionDataset.from_labelme(str(file.parent), folder)
            else:
                found = sv.DetectionDataset.from_createml(str(file.parent), str(Path(folder, file.name)))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: {error}") from error
    named = [slashed(str(read_json(file)["imagePath"]))] if kind == "LabelMe" else []
    loaded: Loaded = {}
    for path, detections in found.annotations.items():
        name = named[0] if named else PurePosixPath(slashed(path)).name
        places, _, _ = index.locate_images([name], [file.parent], path_role(index.relative(file)))
        if not Path(places[0]).is_file():
            raise FileNotFoundError(f"{file}: its image {name} is not there")
        classes = [found.classes[int(number)] for number in ([] if detections.class_id is None else detections.class_id)]
        boxes = [(float(a), float(b), float(c), float(d)) for a, b, c, d in detections.xyxy.tolist()]
        loaded.setdefault(places[0], []).extend(zip(classes, boxes, strict=True))
    return loaded


def _record(loaded: Loaded, names: list[str]) -> Record:
    record = empty_record(dict(enumerate(names)))
    for path, objects in loaded.items():
        add_image(record, path, read_size(path))
        for name, box in objects:
            add_box(record, names.index(name), box)
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
