"""The same scenes written in every format, independently of the readers."""

import json
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from PIL import Image

from deformable_detr.data.scenes import generate_scenes


def boxes_by_image(folder: Path, split: str) -> tuple[dict, dict[str, list[tuple[str, list[float]]]]]:
    """The COCO record of a split, and per image its (class name, xywh)."""
    record = json.loads((folder / "annotations" / f"instances_{split}.json").read_text())
    names = {entry["id"]: entry["name"] for entry in record["categories"]}
    found = {image["file_name"]: [] for image in record["images"]}
    files = {image["id"]: image["file_name"] for image in record["images"]}
    for entry in record["annotations"]:
        found[files[entry["image_id"]]].append((names[entry["category_id"]], entry["bbox"]))
    return record, found


def write_yolo(source: Path, target: Path, splits: tuple[str, ...] = ("train", "val")) -> Path:
    names = ["circle", "square", "triangle", "star"]
    for split in splits:
        record, found = boxes_by_image(source, split)
        (target / "images" / split).mkdir(parents=True)
        (target / "labels" / split).mkdir(parents=True)
        for image in record["images"]:
            file, width, height = image["file_name"], image["width"], image["height"]
            (target / "images" / split / file).write_bytes((source / split / file).read_bytes())
            lines = [
                f"{names.index(name)} {(x + w / 2) / width:.6f} {(y + h / 2) / height:.6f} {w / width:.6f} {h / height:.6f}"
                for name, (x, y, w, h) in found[file]
            ]
            if lines:
                (target / "labels" / split / file).with_suffix(".txt").write_text("\n".join(lines) + "\n")
    parts = "".join(f"{split}: images/{split}\n" for split in splits)
    (target / "data.yaml").write_text(f"path: .\n{parts}names: {json.dumps(names)}\n")
    return target


def voc_xml(file: str, size: tuple[int, int], objects: list[tuple[str, list[float]]], difficult: int = 0) -> str:
    entries = "".join(
        f"<object><name>{escape(name)}</name><difficult>{difficult}</difficult><bndbox><xmin>{x + 1:g}</xmin><ymin>{y + 1:g}</ymin>"
        f"<xmax>{x + w:g}</xmax><ymax>{y + h:g}</ymax></bndbox></object>"
        for name, (x, y, w, h) in objects
    )
    return (
        f"<annotation><filename>{file}</filename><size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
        f"{entries}</annotation>"
    )


def write_voc(source: Path, target: Path, splits: tuple[str, ...] = ("train", "val")) -> Path:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (target / folder).mkdir(parents=True)
    for split in splits:
        record, found = boxes_by_image(source, split)
        stems = []
        for image in record["images"]:
            stem = f"{split}_{Path(image['file_name']).stem}"
            (target / "JPEGImages" / f"{stem}.png").write_bytes((source / split / image["file_name"]).read_bytes())
            xml = voc_xml(image["file_name"], (image["width"], image["height"]), found[image["file_name"]])
            (target / "Annotations" / f"{stem}.xml").write_text(xml)
            stems.append(stem)
        (target / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems))
    return target


WRITERS: dict[str, Callable[..., Path]] = {"YOLO": write_yolo, "Pascal VOC": write_voc}


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO dataset of ten training and four validation images."""
    return generate_scenes(tmp_path_factory.mktemp("scenes") / "coco", train=10, val=4, image_size=64)


@pytest.fixture
def write_as() -> Callable[..., Path]:
    """`write_as(format, source, target, splits)`."""
    return lambda name, *arguments: WRITERS[name](*arguments)


@pytest.fixture
def small_image() -> Callable[[Path], Path]:
    """Writes a grey image of 40 x 20 pixels (width x height)."""

    def write(path: Path, size: tuple[int, int] = (40, 20)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (90, 90, 90)).save(path)
        return path

    return write


@pytest.fixture
def as_voc_xml() -> Callable[..., str]:
    return voc_xml
