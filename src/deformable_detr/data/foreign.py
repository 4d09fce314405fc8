"""Formats of annotations that must be imported first: recognised by their files, and named."""

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path

from deformable_detr.data.coco_layout import json_kind
from deformable_detr.data.file_index import FileIndex
from deformable_detr.data.foreign_platforms import PLATFORM_READERS
from deformable_detr.data.foreign_readers import READERS
from deformable_detr.data.images import IMAGE_SUFFIXES
from deformable_detr.data.text import read_head, read_text
from deformable_detr.data.yolo import looks_like_labels

IMPORTABLE = ("LabelMe", "CreateML", *READERS, *PLATFORM_READERS)
"""What :mod:`~deformable_detr.data.importing` reads."""

JSON_KEYS = {
    "LabelMe": {"shapes", "imagePath"},
    "Datumaro": {"items", "categories", "info"},
    "FiftyOne": {"samples"},
    "VIA": {"_via_img_metadata"},
    "Supervisely": {"objects", "size", "tags"},
    "BDD100K": {"frames"},
}
CSV_COLUMNS = {
    "Open Images CSV": {"imageid", "labelname", "xmin", "xmax", "ymin", "ymax"},
    "TensorFlow CSV": {"filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"},
    "VoTT CSV": {"image", "xmin", "ymin", "xmax", "ymax", "label"},
}
PER_IMAGE = ("LabelMe", "Supervisely", "KITTI", "DOTA")
"""What has a file for each image, whose name is the image's."""

LINES = {
    "DOTA": re.compile(r"^(imagesource:|gsd:|(-?[\d.]+\s+){8}[^\d\s]\S*(\s+[^\d\s]\S*)*(\s+[012])?\s*$)"),
    "KITTI": re.compile(r"^\S*[A-Za-z]\S* [-\d.]+ -?\d [-\d.]+( [-\d.eE+]+){11,12}\s*$"),
}
"""The first line of a text file with the objects of one image."""
CVAT = re.compile(r"<annotations>.*<(image|track|version)\b", re.DOTALL)
MOST_FILES = 50
"""Of each suffix, that a format is recognised by."""

DAMAGED = "damaged"


def name_format(index: FileIndex) -> str | None:
    """The format of a dataset that is none of the usual ones, with what to do; None where nothing is known."""
    kind = recognise(index)
    if kind is None:
        return None
    advice = "not read here; export it as COCO, YOLO or Pascal VOC, or convert it with a tool such as datumaro"
    if kind in IMPORTABLE:
        advice = f"`deformable-detr doctor {index.root} --convert FOLDER` makes a COCO dataset of it"
    elif kind.startswith("YOLO"):
        advice = "write a data.yaml with `names`, or a classes.txt"
    return f"{kind}: {advice}"


def recognise(index: FileIndex) -> str | None:
    """`LabelMe`, `VIA`, `KITTI` and others, by looking into a few files; None where nothing is known."""
    for suffix in (".json", ".csv", ".xml"):
        for path in _a_few(index.select(suffix)):
            if (kind := _file_format(path)) and kind != DAMAGED:
                return kind
    texts = _a_few(index.select(".txt"))
    for kind in LINES:
        if any(_begins_as(kind, path) for path in texts):
            return kind
    if index.select(".tfrecord", ".record"):
        return "TFRecord"
    if any(map(looks_like_labels, texts)):
        return "YOLO without names of classes"
    return None


def _a_few(paths: list[Path]) -> list[Path]:
    """The first file of every folder, then the second ones …, so that a folder of other files hides none."""
    rank: Counter[Path] = Counter()
    ranked = []
    for path in paths:
        rank[path.parent] += 1
        ranked.append((rank[path.parent], path))
    return [path for _, path in sorted(ranked)[:MOST_FILES]]


def files_of(kind: str, index: FileIndex) -> list[Path]:
    """The annotation files of a format that is imported, and damaged ones that may be; of KITTI and DOTA all of a folder."""
    if kind in LINES:
        folders = {path.parent for path in index.select(".txt") if _begins_as(kind, path)}
        return [path for path in index.select(".txt") if path.parent in folders]
    files = [(path, _file_format(path)) for path in index.select(".json", ".csv", ".xml")]
    suffixes = {path.suffix.lower() for path, found in files if found == kind}
    return [path for path, found in files if found == kind or (found == DAMAGED and path.suffix.lower() in suffixes)]


def _file_format(path: Path) -> str | None:
    if path.suffix.lower() == ".xml":
        return "CVAT" if CVAT.search(read_head(path)) else None
    return _csv_format(path) if path.suffix.lower() == ".csv" else _json_format(path)


def _begins_as(kind: str, path: Path) -> bool:
    return LINES[kind].match(read_head(path).partition("\n")[0]) is not None


def _json_format(path: Path) -> str | None:
    """The format of one JSON file; None for COCO and what is not known."""
    try:
        record = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return DAMAGED
    if isinstance(record, list):
        first = record[0] if record and isinstance(record[0], dict) else {}
        if {"image", "annotations"} <= first.keys():
            return "CreateML"
        if {"image_id", "bbox", "score"} <= first.keys():
            return None  # COCO's results
        if {"annotations", "data"} <= first.keys() or {"image", "annotator"} <= first.keys():
            return "Label Studio JSON"
        return "BDD100K" if {"name", "labels"} <= first.keys() else None
    if not isinstance(record, dict):
        return None
    if json_kind(path) == "panoptic":
        return "COCO panoptic"
    for kind, keys in JSON_KEYS.items():
        if keys <= record.keys():
            return kind
    entry = next(iter(record.values()), None)
    return "VIA" if isinstance(entry, dict) and {"filename", "regions"} <= entry.keys() else None


def _csv_format(path: Path) -> str | None:
    try:
        header = next(csv.reader(io.StringIO(read_head(path), newline="")), [])
    except csv.Error:
        return None
    if len(header) == 6 and Path(header[0]).suffix.lower() in IMAGE_SUFFIXES:
        return "RetinaNet CSV"
    columns = {name.strip().lower() for name in header}
    return next((kind for kind, wanted in CSV_COLUMNS.items() if wanted <= columns), "CSV" if {"xmin", "xmax"} <= columns else None)
