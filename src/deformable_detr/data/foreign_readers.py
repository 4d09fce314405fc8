"""Readers of annotation formats that `doctor --convert` makes COCO of: VIA, Datumaro, FiftyOne, KITTI and tables of boxes.

LabelMe and CreateML are read by supervision (:mod:`~deformable_detr.data.importing`), which knows none of these.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deformable_detr.data.entries import as_size, read_flag, read_number
from deformable_detr.data.file_index import FileIndex, split_role
from deformable_detr.data.text import read_text, split_lines

CLASS_ATTRIBUTES = ("class", "label", "name", "category", "type", "object")


Box = tuple[float, float, float, float]


class ForeignObject(NamedTuple):
    """One annotated object: left, top, right, bottom in pixels, or in shares of the image."""

    name: str | None
    """Of the class; None where it was drawn without one."""

    box: Box
    crowd: bool = False
    normalised: bool = False


class ForeignImage(NamedTuple):
    """An image by its annotated name, and what is on it."""

    name: str
    objects: list[ForeignObject]
    split: str | None = None
    """Where the file says so."""

    size: tuple[int, int] | None = None
    """(height, width) of the image that the boxes were drawn on, where the file says so."""

    left_out: tuple[str, ...] = ()
    """What has no box, a word for each."""


Reader = Callable[[Path, FileIndex], Iterator[ForeignImage]]
"""Raises KeyError, TypeError, ValueError, IndexError or AttributeError at what cannot be understood."""


def from_xywh(box: Sequence[Any]) -> Box:
    """Left, top, width, height → left, top, right, bottom."""
    left, top, width, height = map(read_number, box)
    return left, top, left + width, top + height


def around(xs: Sequence[Any], ys: Sequence[Any]) -> Box:
    """The bounding box of points."""
    xs, ys = list(map(read_number, xs)), list(map(read_number, ys))
    if not xs or len(xs) != len(ys):
        raise ValueError(f"an outline of {len(xs)} x and {len(ys)} y" if xs or ys else "an outline without points")
    return min(xs), min(ys), max(xs), max(ys)


def turned(box: Box, degrees: float, center: tuple[float, float] | None = None) -> Box:
    """The bounding box of a box that is turned clockwise around a point; None: its middle."""
    center = center or ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(x - center[0], y - center[1]) for x in box[::2] for y in box[1::2]]
    return around([center[0] + x * cos - y * sin for x, y in corners], [center[1] + x * sin + y * cos for x, y in corners])


def _read_via(file: Path, index: FileIndex) -> Iterator[ForeignImage]:
    """VGG Image Annotator 1 and 2, project or export."""
    record = json.loads(read_text(file))
    images = list((record.get("_via_img_metadata") or record).values())
    for image in images:
        regions = image["regions"].values() if isinstance(image["regions"], dict) else image["regions"]
        objects = [ForeignObject(_via_class(one["region_attributes"]), _via_box(one["shape_attributes"])) for one in regions]
        yield ForeignImage(image["filename"], objects)


def _via_class(attributes: dict[str, Any]) -> str | None:
    """The attribute that is called like a class, or the only one; of a checkbox the one that is ticked."""
    keys = [key for key in attributes if key.lower() in CLASS_ATTRIBUTES] or list(attributes)
    if not keys:
        return None
    if len(keys) > 1:
        raise ValueError(f"which of the attributes {', '.join(keys)} is the class? Call that one `class`")
    value = attributes[keys[0]]
    if isinstance(value, dict):
        value = ", ".join(name for name, ticked in value.items() if ticked)
    if not value or "," in str(value):
        raise ValueError(f"the attribute {keys[0]!r} of a region names {f'several classes: {value}' if value else 'no class'}")
    return str(value)


def _via_box(shape: dict[str, Any]) -> Box:
    if shape["name"] == "rect":
        return from_xywh([shape["x"], shape["y"], shape["width"], shape["height"]])
    if shape["name"] in ("circle", "ellipse"):
        keys, theta = (("r", "r"), 0) if shape["name"] == "circle" else (("rx", "ry"), shape.get("theta") or 0)
        cx, cy, rx, ry = (read_number(shape[key]) for key in ("cx", "cy", *keys))
        rx, ry = ellipse_extent(rx, ry, read_number(theta)) if theta else (rx, ry)
        return cx - rx, cy - ry, cx + rx, cy + ry
    if shape["name"] in ("polygon", "polyline"):
        return around(shape["all_points_x"], shape["all_points_y"])
    raise ValueError(f"a region of the shape {shape['name']!r} has no box")


def ellipse_extent(rx: float, ry: float, theta: float) -> tuple[float, float]:
    """Half the width and height of an ellipse turned by `theta` (radians)."""
    return math.hypot(rx * math.cos(theta), ry * math.sin(theta)), math.hypot(rx * math.sin(theta), ry * math.cos(theta))


def _read_datumaro(file: Path, index: FileIndex) -> Iterator[ForeignImage]:
    record = json.loads(read_text(file))
    names = [label["name"] for label in record["categories"]["label"]["labels"]]
    for item in record["items"]:
        objects = []
        for one in item["annotations"]:
            if one["type"] in ("bbox", "polygon"):
                box = _datumaro_box(one)
                if type(one["label_id"]) is not int or not 0 <= one["label_id"] < len(names):
                    raise ValueError(f"label_id is {one['label_id']}, of {len(names)} labels")
                objects.append(ForeignObject(names[one["label_id"]], box, read_flag(one.get("attributes", {}).get("is_crowd"))))
            elif one["type"] != "label":
                raise ValueError(f"annotations of the type {one['type']!r} have no box; export bbox")
        image = item.get("image") or item.get("media") or {}
        yield ForeignImage(image.get("path") or item["id"], objects, size=as_size(*(image.get("size") or (None, None))))


def _datumaro_box(thing: dict[str, Any]) -> Box:
    if thing["type"] == "polygon":
        return around(thing["points"][::2], thing["points"][1::2])
    return turned(from_xywh(thing["bbox"]), read_number(thing.get("attributes", {}).get("rotation") or 0))


def _read_fiftyone(file: Path, index: FileIndex) -> Iterator[ForeignImage]:
    """A FiftyOneDataset's samples.json; tags such as `train` are splits."""
    samples = json.loads(read_text(file))["samples"]
    entries = [entry for sample in samples for entry in sample.items()]
    fields = sorted({name for name, value in entries if isinstance(value, dict) and value.get("_cls") == "Detections"})
    if len(fields) > 1 and "ground_truth" not in fields:
        raise ValueError(f"which of the fields {', '.join(fields)} is the ground truth? Call that one `ground_truth`")
    field = "ground_truth" if "ground_truth" in fields else "".join(fields)
    for sample in samples:
        found = sample.get(field) or {}
        objects = [
            ForeignObject(one["label"], from_xywh(one["bounding_box"]), read_flag(one.get("iscrowd")), normalised=True)
            for one in found.get("detections", ())
        ]
        if any(one.get("confidence") is not None for one in found.get("detections", ())):
            raise ValueError(f"{sample['filepath']}: boxes of {field!r} have a confidence, as predictions have: no ground truth")
        splits = [tag for tag in sample.get("tags") or () if split_role(tag)]
        if len({split_role(tag) for tag in splits}) > 1:
            raise ValueError(f"{sample['filepath']}: which of the tags {', '.join(splits)} is its split?")
        seen = sample.get("metadata") or {}
        yield ForeignImage(sample["filepath"], objects, next(iter(splits), None), as_size(seen.get("height"), seen.get("width")))


def _read_kitti(file: Path, index: FileIndex) -> Iterator[ForeignImage]:
    """A label file: type, truncation, occlusion, angle, left, top, right, bottom, and seven numbers in space.

    Its image has its name, in `image_2` for `label_2`. Regions `DontCare` have no class, and are left out.
    """
    objects, left_out = [], []
    for line in split_lines(read_text(file)):
        if not (words := line.split()):
            continue
        if len(words) != 15:
            what = "; a 16th is the score of a prediction, which is no ground truth" if len(words) == 16 else ""
            raise ValueError(f"a line of KITTI has 15 words, not {len(words)}{what}: {line[:60]!r}")
        left, top, right, bottom = map(read_number, words[4:8])
        if words[0] == "DontCare":
            left_out.append(words[0])
        else:
            objects.append(ForeignObject(words[0], (left, top, right, bottom)))
    yield ForeignImage(f"{file.parent.name.replace('label', 'image')}/{file.stem}", objects, left_out=tuple(left_out))


def _read_table(image: str, name: str, *, open_images: bool = False) -> Reader:
    """A CSV file with a box in each row: columns of the image and the class, and xmin, ymin, xmax, ymax in any case.

    Open Images has shares of the image, groups of objects, and class names in a file of their own.
    """

    def read(file: Path, index: FileIndex) -> Iterator[ForeignImage]:
        rows = csv.DictReader(io.StringIO(read_text(file), newline=""), strict=True)
        names = _open_images_names(index) if open_images else {}
        for given in rows:
            if None in (*given, *given.values()):
                raise ValueError(f"a row has not as many cells as the head: {list(given.values())}")
            row = {key.strip().lower(): value.strip() for key, value in given.items()}
            left, top, right, bottom = (read_number(row[key]) for key in ("xmin", "ymin", "xmax", "ymax"))
            group = row.get("isgroupof") if open_images else None
            crowd = group != "-1" and read_flag(group)  # -1: not known
            thing = ForeignObject(names.get(row[name], row[name]), (left, top, right, bottom), crowd, open_images)
            yield ForeignImage(row[image], [thing], size=as_size(row.get("height"), row.get("width")))

    return read


def _read_retinanet(file: Path, index: FileIndex) -> Iterator[ForeignImage]:
    """Rows `path,x1,y1,x2,y2,class` without a head; an image without objects has a row of empty columns."""
    for row in csv.reader(io.StringIO(read_text(file), newline=""), strict=True):
        if row:
            path, *corners, name = (cell.strip() for cell in row)
            objects = []
            if name or any(corners):
                left, top, right, bottom = map(read_number, corners)
                objects.append(ForeignObject(name, (left, top, right, bottom)))
            yield ForeignImage(path, objects)


def _open_images_names(index: FileIndex) -> dict[str, str]:
    """`/m/01g317` → `Person`, from files such as class-descriptions-boxable.csv."""
    found = {}
    for path in index.select(".csv"):
        for row in csv.reader(io.StringIO(read_text(path), newline="")):
            if len(row) != 2:
                break
            found[row[0]] = row[1]
    return found


READERS: dict[str, Reader] = {
    "VIA": _read_via,
    "Datumaro": _read_datumaro,
    "FiftyOne": _read_fiftyone,
    "KITTI": _read_kitti,
    "Open Images CSV": _read_table("imageid", "labelname", open_images=True),
    "TensorFlow CSV": _read_table("filename", "class"),
    "VoTT CSV": _read_table("image", "label"),
    "RetinaNet CSV": _read_retinanet,
}
"""By the name of the format (:func:`~deformable_detr.data.foreign.recognise`)."""
