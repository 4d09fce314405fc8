"""Readers of annotation formats that `doctor --convert` makes COCO of: VIA, Datumaro, FiftyOne, KITTI and tables of boxes.

LabelMe and CreateML are read by supervision (:mod:`~deformable_detr.data.importing`), which knows none of these.
"""

import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deformable_detr.data.file_index import FileIndex
from deformable_detr.data.text import read_text

__all__ = ["READERS", "Box", "ForeignImage", "ForeignObject", "Reader", "around", "ellipse_extent", "from_xywh"]

UNNAMED = "object"
"""The class of regions that were drawn without one."""
CLASS_ATTRIBUTES = ("class", "label", "name", "category", "type", "object")


Box = tuple[float, float, float, float]


class ForeignObject(NamedTuple):
    """One annotated object: left, top, right, bottom in pixels, or in shares of the image."""

    name: str
    box: Box
    crowd: bool = False
    normalised: bool = False


class ForeignImage(NamedTuple):
    """An image by its annotated name, and what is on it; `split`: where the file says so."""

    name: str
    objects: list[ForeignObject]
    split: str | None = None


Reader = Callable[[Path, FileIndex], Iterator[ForeignImage]]
"""Raises KeyError, TypeError, ValueError, IndexError or AttributeError at what cannot be understood."""


def from_xywh(box: Sequence[float]) -> Box:
    """Left, top, width, height → left, top, right, bottom."""
    left, top, width, height = (float(number) for number in box)
    return left, top, left + width, top + height


def around(xs: Sequence[float], ys: Sequence[float]) -> Box:
    """The bounding box of points."""
    return float(min(xs)), float(min(ys)), float(max(xs)), float(max(ys))


def _read_via(file: Path, index: FileIndex) -> Iterator[ForeignImage]:
    """VGG Image Annotator 1 and 2, project or export."""
    record = json.loads(read_text(file))
    images = list((record.get("_via_img_metadata") or record).values())
    for image in images:
        regions = image["regions"].values() if isinstance(image["regions"], dict) else image["regions"]
        objects = [ForeignObject(_via_class(one["region_attributes"]), _via_box(one["shape_attributes"])) for one in regions]
        yield ForeignImage(image["filename"], objects)


def _via_class(attributes: dict[str, Any]) -> str:
    """The attribute that is called like a class, or the only one; of a checkbox the one that is ticked."""
    keys = [key for key in attributes if key.lower() in CLASS_ATTRIBUTES] or list(attributes)
    if len(keys) > 1:
        raise ValueError(f"which of the attributes {', '.join(keys)} is the class? Call that one `class`")
    value = attributes[keys[0]] if keys else UNNAMED
    if isinstance(value, dict):
        value = ", ".join(name for name, ticked in value.items() if ticked)
    if not value or "," in str(value):
        raise ValueError(f"the attribute {keys[0]!r} of a region names {f'several classes: {value}' if value else 'no class'}")
    return str(value)


def _via_box(shape: dict[str, Any]) -> Box:
    if shape["name"] == "rect":
        return from_xywh([shape["x"], shape["y"], shape["width"], shape["height"]])
    if shape["name"] in ("circle", "ellipse"):
        rx, ry = (
            (shape["r"], shape["r"])
            if shape["name"] == "circle"
            else ellipse_extent(shape["rx"], shape["ry"], shape.get("theta", 0))
        )
        return shape["cx"] - rx, shape["cy"] - ry, shape["cx"] + rx, shape["cy"] + ry
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
                box = from_xywh(one["bbox"]) if one["type"] == "bbox" else around(one["points"][::2], one["points"][1::2])
                if not 0 <= one["label_id"] < len(names):
                    raise ValueError(f"label_id is {one['label_id']}, of {len(names)} labels")
                objects.append(ForeignObject(names[one["label_id"]], box, bool(one.get("attributes", {}).get("is_crowd"))))
            elif one["type"] != "label":
                raise ValueError(f"annotations of the type {one['type']!r} have no box; export bbox")
        yield ForeignImage((item.get("image") or item.get("media") or {}).get("path") or item["id"], objects)


def _read_fiftyone(file: Path, index: FileIndex) -> Iterator[ForeignImage]:
    """A FiftyOneDataset's samples.json; tags such as `train` are splits."""
    for sample in json.loads(read_text(file))["samples"]:
        fields = {name: value for name, value in sample.items() if isinstance(value, dict) and value.get("_cls") == "Detections"}
        if len(fields) > 1 and "ground_truth" not in fields:
            raise ValueError(f"which of the fields {', '.join(fields)} is the ground truth? Call that one `ground_truth`")
        found = fields.get("ground_truth") or next(iter(fields.values()), {})
        objects = [
            ForeignObject(one["label"], from_xywh(one["bounding_box"]), bool(one.get("iscrowd")), normalised=True)
            for one in found.get("detections", ())
        ]
        yield ForeignImage(sample["filepath"], objects, next(iter(sample.get("tags") or ()), None))


def _read_kitti(file: Path, index: FileIndex) -> Iterator[ForeignImage]:
    """A label file: type, truncation, occlusion, angle, left, top, right, bottom, and seven numbers in space.

    Its image has its name, in `image_2` for `label_2`. Regions `DontCare` have no class, and are left out.
    """
    objects = []
    for line in read_text(file).splitlines():
        if not (words := line.split()):
            continue
        if len(words) not in (15, 16):
            raise ValueError(f"a line of KITTI has 15 words (16 with a score), not {len(words)}: {line[:60]!r}")
        left, top, right, bottom = (float(word) for word in words[4:8])
        if words[0] != "DontCare":
            objects.append(ForeignObject(words[0], (left, top, right, bottom)))
    yield ForeignImage(f"{file.parent.name.replace('label', 'image')}/{file.stem}", objects)


def _read_table(
    image: str,
    name: str,
    *,
    normalised: bool = False,
    crowd: str = "",
    names_of: Callable[[FileIndex], dict[str, str]] | None = None,
) -> Reader:
    """A CSV file with a box in each row: columns of the image and the class, and xmin, ymin, xmax, ymax in any case."""

    def read(file: Path, index: FileIndex) -> Iterator[ForeignImage]:
        rows = csv.DictReader(read_text(file).splitlines())
        names = names_of(index) if names_of else {}
        found: dict[str, list[ForeignObject]] = {}
        for given in rows:
            row = {key.strip().lower(): value.strip() for key, value in given.items()}
            box = (float(row["xmin"]), float(row["ymin"]), float(row["xmax"]), float(row["ymax"]))
            thing = ForeignObject(names.get(row[name], row[name]), box, row.get(crowd) == "1", normalised)
            found.setdefault(row[image], []).append(thing)
        for key, objects in found.items():
            yield ForeignImage(key, objects)

    return read


def _read_retinanet(file: Path, index: FileIndex) -> Iterator[ForeignImage]:
    """Rows `path,x1,y1,x2,y2,class` without a head; an image without objects has a row of empty columns."""
    found: dict[str, list[ForeignObject]] = {}
    for row in csv.reader(read_text(file).splitlines()):
        if row:
            path, left, top, right, bottom, name = (cell.strip() for cell in row)
            objects = found.setdefault(path, [])
            if name:
                objects.append(ForeignObject(name, (float(left), float(top), float(right), float(bottom))))
    for path, objects in found.items():
        yield ForeignImage(path, objects)


def _open_images_names(index: FileIndex) -> dict[str, str]:
    """`/m/01g317` → `Person`, from files such as class-descriptions-boxable.csv."""
    found = {}
    for path in index.select(".csv"):
        for row in csv.reader(read_text(path).splitlines()):
            if len(row) != 2:
                break
            found[row[0]] = row[1]
    return found


READERS: dict[str, Reader] = {
    "VIA": _read_via,
    "Datumaro": _read_datumaro,
    "FiftyOne": _read_fiftyone,
    "KITTI": _read_kitti,
    "Open Images CSV": _read_table("imageid", "labelname", normalised=True, crowd="isgroupof", names_of=_open_images_names),
    "TensorFlow CSV": _read_table("filename", "class"),
    "VoTT CSV": _read_table("image", "label"),
    "RetinaNet CSV": _read_retinanet,
}
"""By the name of the format (:func:`~deformable_detr.data.foreign.recognise`)."""
