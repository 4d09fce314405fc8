"""Readers for `doctor --convert` of what platforms and large datasets have: CVAT, Label Studio, Supervisely, BDD100K, DOTA …"""

import base64
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from deformable_detr.data.entries import as_number, as_size, read_flag, read_number
from deformable_detr.data.file_index import FileIndex
from deformable_detr.data.foreign_readers import Box, ForeignImage, ForeignObject, Reader, around, ellipse_extent, from_xywh, turned
from deformable_detr.data.images import IMAGE_SUFFIXES, open_image
from deformable_detr.data.text import read_text, split_lines


def _read_cvat(file: Path, index: FileIndex) -> Iterator[ForeignImage]:
    """CVAT for images 1.1; the subset of an image is its split."""
    try:
        root = ElementTree.fromstring(read_text(file))
    except ElementTree.ParseError as error:
        raise ValueError(f"not valid XML ({error})") from None
    if root.find("track") is not None:
        raise ValueError("tracks of a video name no images; export it as `CVAT for images 1.1`, with the images")
    for image in root.iter("image"):
        shapes = [ForeignObject(shape.attrib["label"], _cvat_box(shape)) for shape in image if shape.tag != "tag"]
        size = as_size(image.get("height"), image.get("width"))
        yield ForeignImage(image.attrib["name"], shapes, image.get("subset"), size)


def _cvat_box(shape: ElementTree.Element) -> Box:
    def numbers(*names: str) -> list[float]:
        return [read_number(shape.attrib[name]) for name in names]

    degrees = read_number(shape.get("rotation") or 0)
    if shape.tag == "box":
        left, top, right, bottom = numbers("xtl", "ytl", "xbr", "ybr")
        return turned((left, top, right, bottom), degrees)
    if shape.tag in ("polygon", "polyline"):
        points = [point.split(",") for point in shape.attrib["points"].split(";") if point.strip()]
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
    fields = _studio_fields(index)
    tasks = [(task, regions) for task in json.loads(read_text(file)) if (regions := _studio_regions(task)) is not None]
    tags = sorted({str(tag) for _, regions in tasks for tag, _, _ in regions if tag is not None}) or [None]
    for task, regions in tasks:
        images = {tag: _studio_image(task, tag, fields, alone=len(tags) == 1) for tag in tags}
        for name in dict.fromkeys(images.values()):
            on_it = [(size, thing) for tag, size, thing in regions if images[tags[0] if tag is None else tag] == name]
            sizes = {size for size, _ in on_it if size is not None}
            if len(sizes) > 1:
                raise ValueError(f"the task {task.get('id')!r} has regions on images of several sizes: {sorted(sizes)}")
            yield ForeignImage(name, [thing for _, thing in on_it], size=next(iter(sizes), None))


StudioRegion = tuple[str | None, tuple[int, int] | None, ForeignObject]
"""The name of the tag that it was drawn on, the size of its image, the object."""


def _studio_regions(task: dict[str, Any]) -> list[StudioRegion] | None:
    """What was drawn in a task; None where nobody finished it."""
    if "data" in task:
        done = [one for one in task["annotations"] if not one.get("was_cancelled")]
        if len(done) > 1:
            raise ValueError(f"the task {task.get('id')!r} has {len(done)} annotations; keep one of them")
        if not done:
            return None
        regions = [{**region["value"], **region} for region in done[0]["result"] if "value" in region]
    else:
        regions = [region for value in task.values() if isinstance(value, list) for region in value if isinstance(region, dict)]
    return [
        (region.get("to_name"), as_size(region.get("original_height"), region.get("original_width")), thing)
        for region in regions
        for thing in _label_studio_objects(region)
    ]


def _studio_fields(index: FileIndex) -> dict[str | None, str]:
    """Of each image of a labelling configuration that lies beside, by its name, the key of the tasks' data."""
    fields: dict[str | None, str] = {}
    for path in index.select(".xml"):
        try:
            tags = ElementTree.fromstring(read_text(path)).iter("Image")
        except ElementTree.ParseError:  # another file
            continue
        fields |= {tag.get("name", ""): tag.get("value", "").removeprefix("$") for tag in tags}
    return fields


def _studio_image(task: dict[str, Any], tag: str | None, fields: Mapping[str | None, str], *, alone: bool) -> str:
    """The image of a task that a tag of the labelling configuration shows.

    Args:
        task: with one or several images.
        tag: its name; None where nothing was drawn, or the file does not say where.
        fields: see :func:`_studio_fields`.
        alone: whether all regions of the file have this tag.
    """
    data = task.get("data", task)
    images = {key: value for key, value in data.items() if isinstance(value, str) and (key == "image" or _is_image(value))}
    known = list(fields.values()) if tag is None and len(fields) == 1 else [fields[tag]] if tag in fields else []
    for key in known or (tag, "image" if alone else None, next(iter(images)) if len(images) == 1 else None):
        if key in images:
            return images[key]
    if not images:
        raise ValueError(f"the task {task.get('id')!r} names no image")
    raise ValueError(
        f"the task {task.get('id')!r} has several images, {', '.join(images)}; which one {tag or 'the annotation'} belongs to says "
        "the labelling configuration: put it beside, as an .xml file"
    )


def _is_image(value: str) -> bool:
    return Path(value.partition("?d=")[2] or value.partition("?")[0]).suffix.lower() in IMAGE_SUFFIXES


def _label_studio_objects(region: dict[str, Any]) -> Iterator[ForeignObject]:
    """The object of a region in per cent of the image; none of one that is no shape, such as an answer about the whole image."""
    key = next((key for key in region if key.endswith("labels") and isinstance(region[key], list)), None)
    if key is None or not region[key]:
        if "width" in region or "points" in region:
            raise ValueError("a region without a label")
        return
    if region.get("item_index") is not None:
        raise ValueError("a region of one of several images that are one task; export each image as a task of its own")
    size = as_size(region.get("original_height"), region.get("original_width"))
    scale = (size[1] / 100, size[0] / 100) if size else (0.01, 0.01)
    degrees = read_number(region.get("rotation") or 0)
    if degrees and not size:
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
        left, top, right, bottom = turned((left, top, right, bottom), degrees, (left, top))  # around its upper left corner
        box = left / scale[0], top / scale[1], right / scale[0], bottom / scale[1]
    else:
        raise ValueError(f"a region of the kind {key!r} has no box")
    if len(region[key]) > 1:
        raise ValueError(f"a region has several labels: {', '.join(region[key])}")
    yield ForeignObject(region[key][0], (box[0] / 100, box[1] / 100, box[2] / 100, box[3] / 100), normalised=True)


def _read_supervisely(file: Path, index: FileIndex) -> Iterator[ForeignImage]:
    """A file of `ann`, whose image lies in `img`."""
    record = json.loads(read_text(file))
    objects = [ForeignObject(one["classTitle"], _supervisely_box(one)) for one in record["objects"]]
    size = as_size(record["size"].get("height"), record["size"].get("width"))
    yield ForeignImage(f"../img/{file.name.removesuffix('.json')}", objects, size=size)


def _supervisely_box(thing: dict[str, Any]) -> Box:
    if thing.get("bitmap"):
        try:
            content = zlib.decompress(base64.b64decode(thing["bitmap"]["data"]))
        except zlib.error as error:
            raise ValueError(f"a bitmap is damaged ({error})") from None
        with open_image(content, "a bitmap") as mask:
            left, top = thing["bitmap"]["origin"]
            return from_xywh([left, top, *mask.size])
    if thing.get("angle"):
        raise ValueError("an object of the type oriented_bbox is turned; make a polygon of it")
    points = thing.get("points", {}).get("exterior") or []
    if len(points) < 2:
        raise ValueError(f"an object of the type {thing.get('geometryType')!r} has no box")
    return around([point[0] for point in points], [point[1] for point in points])


def _read_bdd(file: Path, index: FileIndex) -> Iterator[ForeignImage]:
    """BDD100K and Scalabel; lanes, drivable areas and what else has neither box nor outline are left out."""
    record = json.loads(read_text(file))
    for frame in record["frames"] if isinstance(record, dict) else record:
        objects, left_out = [], []
        for one in frame.get("labels") or ():
            if box := _bdd_box(one):
                objects.append(ForeignObject(one["category"], box, read_flag((one.get("attributes") or {}).get("crowd"))))
            else:
                left_out.append(str(one.get("category")))
        size = frame.get("size") or {}
        yield ForeignImage(frame["name"], objects, size=as_size(size.get("height"), size.get("width")), left_out=tuple(left_out))


def _bdd_box(label: dict[str, Any]) -> Box | None:
    """The box, or that of a closed outline: open ones are lanes."""
    if box := label.get("box2d"):
        left, top, right, bottom = (read_number(box[key]) for key in ("x1", "y1", "x2", "y2"))
        return left, top, right, bottom
    outlines = [outline for outline in label.get("poly2d") or () if outline.get("closed", True)]
    if not outlines or BDD_AREAS.match(str(label["category"])):
        return None
    points = [point for outline in outlines for point in outline["vertices"]]
    return around([point[0] for point in points], [point[1] for point in points])


BDD_AREAS = re.compile(r"area/|lane/|drivable|(direct|alternative|background)$")
"""Categories of closed outlines that are no objects."""


def _read_dota(file: Path, index: FileIndex) -> Iterator[ForeignImage]:
    """Lines of four corners in pixels, a class, and 1 for a difficult object, which counts as in Pascal VOC; maybe below a head.

    A class may have several words; the last word is the difficulty where it is a number.
    """
    objects = []
    for line in split_lines(read_text(file)):
        words = line.split()
        if not words or (len(words) < 9 and words[0].startswith(("imagesource:", "gsd:"))):
            continue
        marked = len(words) > 9 and words[-1] in ("0", "1", "2")
        name = words[8 : -1 if marked else None]
        if not name or any(as_number(word) is not None for word in name):
            raise ValueError(f"a line of DOTA has eight numbers, a class and 0 or 1, not {line[:60]!r}")
        objects.append(ForeignObject(" ".join(name), around(words[:8:2], words[1:8:2]), marked and words[-1] != "0"))
    yield ForeignImage(file.stem, objects)


def _read_panoptic(file: Path, index: FileIndex) -> Iterator[ForeignImage]:
    """The segments that are things."""
    record = json.loads(read_text(file))
    names = {one["id"]: one["name"] if one.get("isthing", 1) else None for one in record["categories"]}
    images = {image["id"]: image for image in record["images"]}
    for one in record["annotations"]:
        image = images[one["image_id"]]
        things = list(_things(one["segments_info"], names))
        yield ForeignImage(image["file_name"], things, size=as_size(image.get("height"), image.get("width")))


def _things(segments: Sequence[dict[str, Any]], names: dict[Any, str | None]) -> Iterator[ForeignObject]:
    for segment in segments:
        if segment["category_id"] not in names:
            raise ValueError(f"a segment has the category_id {segment['category_id']!r}, which no category has")
        if (name := names[segment["category_id"]]) is not None:
            yield ForeignObject(name, from_xywh(segment["bbox"]), read_flag(segment.get("iscrowd")))


PLATFORM_READERS: dict[str, Reader] = {
    "CVAT": _read_cvat,
    "Label Studio JSON": _read_label_studio,
    "Supervisely": _read_supervisely,
    "BDD100K": _read_bdd,
    "DOTA": _read_dota,
    "COCO panoptic": _read_panoptic,
}
"""By the name of the format (:func:`~deformable_detr.data.foreign.recognise`)."""
