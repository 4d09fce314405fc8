"""Readers for `doctor --convert` of what platforms and large datasets have: CVAT, Label Studio, Supervisely, BDD100K, DOTA …"""

import base64
import io
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image

from deformable_detr.data.file_index import FileIndex
from deformable_detr.data.foreign_readers import Box, ForeignImage, ForeignObject, Reader, around, ellipse_extent, from_xywh
from deformable_detr.data.images import IMAGE_SUFFIXES
from deformable_detr.data.text import read_text

__all__ = ["PLATFORM_READERS"]


def _turned(box: Box, degrees: float, center: tuple[float, float]) -> Box:
    """The bounding box of a box that is turned clockwise around a point."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(x - center[0], y - center[1]) for x in box[::2] for y in box[1::2]]
    return around([center[0] + x * cos - y * sin for x, y in corners], [center[1] + x * sin + y * cos for x, y in corners])


def _read_cvat(file: Path, index: FileIndex) -> Iterator[ForeignImage]:
    """CVAT for images 1.1; the subset of an image is its split."""
    try:
        root = ElementTree.fromstring(read_text(file))
    except ElementTree.ParseError as error:
        raise ValueError(f"not valid XML ({error})") from None
    if root.find("track") is not None:
        raise ValueError("tracks of a video name no images; export it as `CVAT for images 1.1`, with the images")
    for image in root.iter("image"):
        shapes = (shape for shape in image if shape.tag != "tag")
        yield ForeignImage(
            image.attrib["name"], [ForeignObject(shape.attrib["label"], _cvat_box(shape)) for shape in shapes], image.get("subset")
        )


def _cvat_box(shape: ElementTree.Element) -> Box:
    def numbers(*names: str) -> list[float]:
        return [float(shape.attrib[name]) for name in names]

    degrees = float(shape.get("rotation") or 0)
    if shape.tag == "box":
        left, top, right, bottom = numbers("xtl", "ytl", "xbr", "ybr")
        return _turned((left, top, right, bottom), degrees, ((left + right) / 2, (top + bottom) / 2))
    if shape.tag in ("polygon", "polyline"):
        points = [[float(number) for number in point.split(",")] for point in shape.attrib["points"].split(";")]
        return around([point[0] for point in points], [point[1] for point in points])
    if shape.tag == "ellipse":
        cx, cy, rx, ry = numbers("cx", "cy", "rx", "ry")
        rx, ry = ellipse_extent(rx, ry, math.radians(degrees))
        return cx - rx, cy - ry, cx + rx, cy + ry
    if shape.tag == "mask":
        return from_xywh(numbers("left", "top", "width", "height"))
    raise ValueError(f"a shape of the kind {shape.tag!r} has no box")


def _read_label_studio(file: Path, index: FileIndex) -> Iterator[ForeignImage]:
    """JSON and JSON-MIN; tasks without an annotation are left out, as nobody said that nothing is on them."""
    for task in json.loads(read_text(file)):
        data = task.get("data", task)
        names = [value for key, value in data.items() if isinstance(value, str) and (key == "image" or _is_image(value))]
        if not names:
            raise ValueError(f"the task {task.get('id')!r} names no image")
        if "data" in task:
            done = [one for one in task["annotations"] if not one.get("was_cancelled")]
            if len(done) > 1:
                raise ValueError(f"the task {task.get('id')!r} has {len(done)} annotations; keep one of them")
            if not done:
                continue
            regions = [{**region["value"], **region} for region in done[0]["result"] if "value" in region]
        else:
            regions = [region for value in task.values() if isinstance(value, list) for region in value if isinstance(region, dict)]
        yield ForeignImage(names[0], [thing for region in regions for thing in _label_studio_objects(region)])


def _is_image(value: str) -> bool:
    return Path(value.partition("?d=")[2] or value.partition("?")[0]).suffix.lower() in IMAGE_SUFFIXES


def _label_studio_objects(region: dict[str, Any]) -> Iterator[ForeignObject]:
    """The object of a region in per cent of the image; none of one that is no shape, such as an answer about the whole image."""
    key = next((key for key in region if key.endswith("labels") and isinstance(region[key], list)), None)
    if key is None or not region[key]:
        if "width" in region or "points" in region:
            raise ValueError("a region without a label")
        return
    scale = region.get("original_width", 1) / 100, region.get("original_height", 1) / 100
    degrees = float(region.get("rotation") or 0)
    if degrees and "original_width" not in region:
        raise ValueError("a turned region without original_width and original_height")
    if "points" in region:
        box = around([point[0] for point in region["points"]], [point[1] for point in region["points"]])
    elif "radiusX" in region:
        cx, cy = region["x"] * scale[0], region["y"] * scale[1]
        rx, ry = ellipse_extent(region["radiusX"] * scale[0], region["radiusY"] * scale[1], math.radians(degrees))
        box = (cx - rx) / scale[0], (cy - ry) / scale[1], (cx + rx) / scale[0], (cy + ry) / scale[1]
    elif "width" in region:
        left, top, right, bottom = from_xywh(
            [region["x"] * scale[0], region["y"] * scale[1], region["width"] * scale[0], region["height"] * scale[1]]
        )
        left, top, right, bottom = _turned((left, top, right, bottom), degrees, (left, top))  # around its upper left corner
        box = left / scale[0], top / scale[1], right / scale[0], bottom / scale[1]
    else:
        raise ValueError(f"a region of the kind {key!r} has no box")
    if len(region[key]) > 1:
        raise ValueError(f"a region has several labels: {', '.join(region[key])}")
    yield ForeignObject(region[key][0], (box[0] / 100, box[1] / 100, box[2] / 100, box[3] / 100), normalised=True)


def _read_supervisely(file: Path, index: FileIndex) -> Iterator[ForeignImage]:
    """A file of `ann`, whose image lies in `img`."""
    objects = [ForeignObject(one["classTitle"], _supervisely_box(one)) for one in json.loads(read_text(file))["objects"]]
    yield ForeignImage(f"../img/{file.name.removesuffix('.json')}", objects)


def _supervisely_box(thing: dict[str, Any]) -> Box:
    if thing.get("bitmap"):
        with Image.open(io.BytesIO(zlib.decompress(base64.b64decode(thing["bitmap"]["data"])))) as mask:
            left, top = thing["bitmap"]["origin"]
            return from_xywh([left, top, *mask.size])
    points = thing.get("points", {}).get("exterior") or []
    if len(points) < 2:
        raise ValueError(f"an object of the type {thing.get('geometryType')!r} has no box")
    return around([point[0] for point in points], [point[1] for point in points])


def _read_bdd(file: Path, index: FileIndex) -> Iterator[ForeignImage]:
    """BDD100K and Scalabel; lanes and drivable areas have no boxes, and are left out."""
    record = json.loads(read_text(file))
    for frame in record["frames"] if isinstance(record, dict) else record:
        objects = []
        for one in frame.get("labels") or ():
            if box := one.get("box2d"):
                corners = float(box["x1"]), float(box["y1"]), float(box["x2"]), float(box["y2"])
                objects.append(ForeignObject(one["category"], corners, bool((one.get("attributes") or {}).get("crowd"))))
        yield ForeignImage(frame["name"], objects)


def _read_dota(file: Path, index: FileIndex) -> Iterator[ForeignImage]:
    """Lines of four corners in pixels, a class, and 1 for a difficult object, which counts as in Pascal VOC; maybe below a head."""
    objects = []
    for line in read_text(file).splitlines():
        words = line.split()
        if not words or (len(words) < 9 and words[0].startswith(("imagesource:", "gsd:"))):
            continue
        numbers = [float(word) for word in words[:8]]
        if len(words) not in (9, 10):
            raise ValueError(f"a line of DOTA has eight numbers, a class and 0 or 1, not {len(words)} words: {line[:60]!r}")
        objects.append(ForeignObject(words[8], around(numbers[::2], numbers[1::2]), words[9:] not in ([], ["0"])))
    yield ForeignImage(file.stem, objects)


def _read_panoptic(file: Path, index: FileIndex) -> Iterator[ForeignImage]:
    """The segments that are things."""
    record = json.loads(read_text(file))
    names = {one["id"]: one["name"] for one in record["categories"] if one.get("isthing", 1)}
    files = {image["id"]: image["file_name"] for image in record["images"]}
    for one in record["annotations"]:
        yield ForeignImage(files[one["image_id"]], list(_things(one["segments_info"], names)))


def _things(segments: Sequence[dict[str, Any]], names: dict[Any, str]) -> Iterator[ForeignObject]:
    for segment in segments:
        if segment["category_id"] in names:
            yield ForeignObject(names[segment["category_id"]], from_xywh(segment["bbox"]), bool(segment.get("iscrowd")))


PLATFORM_READERS: dict[str, Reader] = {
    "CVAT": _read_cvat,
    "Label Studio JSON": _read_label_studio,
    "Supervisely": _read_supervisely,
    "BDD100K": _read_bdd,
    "DOTA": _read_dota,
    "COCO panoptic": _read_panoptic,
}
"""By the name of the format (:func:`~deformable_detr.data.foreign.recognise`)."""
