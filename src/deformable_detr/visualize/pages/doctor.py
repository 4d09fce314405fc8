"""The examination of a dataset as a page: what it holds, findings, and images of the worst cases with their boxes."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from deformable_detr.data.doctor.examine import Examination
from deformable_detr.data.doctor.split_data import SplitData
from deformable_detr.data.doctor.statistics import SplitStatistics
from deformable_detr.data.entries import as_box
from deformable_detr.data.findings import Finding, Item
from deformable_detr.data.images import read_image
from deformable_detr.visualize.pages.page import embed_image, write_page

IMAGES = 6
"""Per finding."""

LISTED = 12
"""Cases per finding in words."""

WIDTH, MOST_HEIGHT = 340, 1360
"""Pixels of an image on the page; tall ones are narrower."""

FAULTY, OTHER = (255, 59, 48), (64, 156, 255)

OVERVIEW = ("split", "images", "without boxes", "boxes", "mean per image", "most", "small", "medium", "large", "median size")


def write_doctor_page(examination: Examination, path: str | Path) -> Path:
    """Write the page; images are inside it.

    Args:
        examination: what was found.
        path: the HTML file.

    Returns:
        `path`.
    """
    splits = {data.name: data for data in examination.splits}
    counts = [f"{examination.count(severity)} {severity}s" for severity in ("error", "warning", "note")]
    return write_page(
        path,
        "doctor.html",
        title=f"{examination.dataset.resolve().name}: dataset examined",
        lead=f"{examination.format} format. Kinds of findings: {', '.join(counts)}. Boxes in question are red, the others blue.",
        overview_columns=OVERVIEW,
        overview=[_overview_row(name, found) for name, found in examination.statistics.items()],
        findings=[_finding(finding, splits) for finding in examination.findings],
        class_columns=("class", *examination.statistics, "% of the most frequent"),
        classes=list(_class_rows(examination.statistics)),
        suggestions=examination.suggestions,
    )


def _overview_row(name: str, found: SplitStatistics) -> tuple[str, ...]:
    numbers = (found.images, found.empty_images, found.boxes, f"{found.mean_objects:.1f}", found.most_objects)
    shares = (f"{found.shares[size]:.0%}" for size in ("small", "medium", "large"))
    return (name, *map(str, numbers), *shares, f"{found.median_size[0]} × {found.median_size[1]}")


def _class_rows(statistics: dict[str, SplitStatistics]):
    """Name of a class, boxes in each split, and those of the first split as a share of its most frequent class."""
    names = dict.fromkeys(name for found in statistics.values() for name in found.classes)
    first = next(iter(statistics.values())).classes
    most = max(first.values(), default=0) or 1
    for name in names:
        counts = (str(found.classes.get(name, 0)) for found in statistics.values())
        yield (name, *counts, f"{100 * first.get(name, 0) / most:.0f}")


def _finding(finding: Finding, splits: dict[str, SplitData]) -> dict[str, Any]:
    return {
        "severity": finding.severity,
        "split": finding.split,
        "heading": finding.heading,
        "advice": finding.kind.advice,
        "cases": [item.text for item in finding.items[:LISTED]],
        "more": max(finding.count - LISTED, 0),
        "images": [] if finding.severity == "note" else list(_images(finding, splits)),
    }


def _images(finding: Finding, splits: dict[str, SplitData]):
    """Drawing and name of the images of the first cases, one per image; of a copy, its original as well."""
    by_image: dict[int, list[Item]] = {}
    for item in finding.items:
        if item.image is not None and (len(by_image) < IMAGES or item.image in by_image):
            by_image.setdefault(item.image, []).append(item)
    for image, items in by_image.items():
        rows = {item.annotation for item in items if item.annotation is not None}
        shown = [(finding.split, image, rows)]
        if finding.code in ("image-leak", "image-copy", "image-alike"):
            shown.append((*items[0].value, set()))
        for split, position, in_question in shown:
            drawing = _drawing(splits[split], position, in_question)
            if drawing is not None:
                yield drawing, f"{split}/{splits[split].file_name(position)}"


def _drawing(data: SplitData, image: int, rows: set[int]) -> str | None:
    """One image, small, with its boxes; None where it cannot be read."""
    size = tuple(int(side) for side in data.sizes[image])
    try:
        pixels = read_image(data.path(image))
        if tuple(pixels.shape[1:]) == size[::-1] != size:
            pixels = read_image(data.path(image), upright=False)
    except (OSError, ValueError):
        return None
    thumbnail = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    scale = min(WIDTH / thumbnail.width, MOST_HEIGHT / thumbnail.height)
    thumbnail = thumbnail.resize([max(1, round(side * scale)) for side in thumbnail.size], Image.Resampling.BOX)
    chosen = np.flatnonzero(data.images == image)
    in_question = np.isin(data.rows[chosen], list(rows))
    _draw(thumbnail, data.boxes[chosen[~in_question]] * scale, OTHER, 2)
    _draw(thumbnail, data.boxes[chosen[in_question]] * scale, FAULTY, 3)
    _draw(thumbnail, _unusable(data, rows) * scale, FAULTY, 3)
    return embed_image(thumbnail, longest=max(thumbnail.size), quality=80)


def _unusable(data: SplitData, rows: set[int]) -> np.ndarray:
    """Boxes `[n, 4]` of annotations in question that nothing else is made of, such as those of an unknown category."""
    records = [data.record["annotations"][row] for row in sorted(rows - set(data.rows.tolist()))] if data.form == "xywh" else []
    boxes = [as_box(record.get("bbox")) for record in records if isinstance(record, dict)]
    return np.array([box for box in boxes if box is not None], dtype=np.float64).reshape(-1, 4)


def _draw(image: Image.Image, boxes: np.ndarray, color: tuple[int, int, int], thickness: int) -> None:
    """Rectangles of boxes `[n, 4]` left, top, width, height; coordinates outside of the image are drawn at its edge."""
    canvas = ImageDraw.Draw(image)
    corners = np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)
    for box in corners.clip(0, np.array(image.size * 2) - 1).tolist():
        canvas.rectangle(box, outline=color, width=thickness)
