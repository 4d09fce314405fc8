"""The examination of a dataset as one HTML file: numbers, findings, and images of the worst cases with their boxes."""

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from deformable_detr.data.doctor.examine import Examination
from deformable_detr.data.doctor.findings import Finding, Item
from deformable_detr.data.doctor.split_data import SplitData
from deformable_detr.data.doctor.statistics import SplitStatistics
from deformable_detr.data.images import read_image
from deformable_detr.visualize.pages.page import STYLE

IMAGES = 6
"""Per finding."""

LISTED = 12
"""Cases per finding in words."""

WIDTH = 340
"""Pixels of an image on the page."""

FAULTY, OTHER = (255, 59, 48), (64, 156, 255)

MORE_STYLE = """
.chip { display: inline-block; border-radius: 999px; padding: 1px 10px; font-size: 13px; font-weight: 600; margin-right: 8px; }
.error { background: #ffd9d6; color: #8c1d13; } .warning { background: #ffedc2; color: #6b4700; }
.note { background: #dbeafe; color: #1e3f7a; }
.images { display: flex; flex-wrap: wrap; gap: 12px; } .images figure { width: 340px; max-width: 100%; }
figcaption { font-size: 13px; color: var(--soft); overflow-wrap: anywhere; margin-top: 4px; }
ul { margin: 0 0 10px; padding-left: 20px; font-size: 14px; overflow-wrap: anywhere; }
.bar { display: inline-block; height: 10px; background: #4c8dff; border-radius: 3px; vertical-align: middle; min-width: 1px; }
"""


def write_doctor_page(examination: Examination, path: str | Path) -> Path:
    """Write the page; everything is inside it.

    Args:
        examination: what was found.
        path: the HTML file; its folder is made where needed.
    """
    splits = {data.name: data for data in examination.splits}
    title = f"{examination.dataset.resolve().name}: dataset examined"
    body = [_overview(examination), *(_finding(finding, splits) for finding in examination.findings)]
    body += [_classes(examination.statistics), _suggestions(examination)]
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}{MORE_STYLE}</style>
</head>
<body>
<main>
<header><h1>{escape(title)}</h1><p>{escape(_lead(examination))}</p></header>
{"".join(body)}
</main>
</body>
</html>
"""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    return partial.replace(path)


def _lead(examination: Examination) -> str:
    counts = [f"{examination.count(severity)} {severity}s" for severity in ("error", "warning", "note")]
    return f"{examination.format} format. Kinds of findings: {', '.join(counts)}. Boxes in question are red, the others blue."


def _overview(examination: Examination) -> str:
    columns = ("split", "images", "without boxes", "boxes", "per image", "at most", "small", "medium", "large", "usual size")
    rows = [
        (
            *(name, str(found.images), str(found.empty_images), str(found.boxes), f"{found.mean_objects:.1f}"),
            *(str(found.most_objects), *(f"{found.shares[size]:.0%}" for size in ("small", "medium", "large"))),
            f"{found.median_size[0]} × {found.median_size[1]}",
        )
        for name, found in examination.statistics.items()
    ]
    return f"<section><h2>What there is</h2>{_table(columns, rows)}</section>"


def _classes(statistics: dict[str, SplitStatistics]) -> str:
    """Boxes per class and split, with bars for the first split."""
    names = list(dict.fromkeys(name for found in statistics.values() for name in found.classes))
    first = next(iter(statistics.values()))
    most = max(first.classes.values(), default=0) or 1
    head = "".join(f"<th>{escape(column)}</th>" for column in ("class", *statistics, ""))
    rows = "\n".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(f"<td>{found.classes.get(name, 0)}</td>" for found in statistics.values())
        + f'<td style="width:40%;text-align:left"><span class="bar" style="width:{100 * first.classes.get(name, 0) / most:.1f}%">'
        + "</span></td></tr>"
        for name in names
    )
    table = f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return f"<section><h2>Boxes per class</h2>{table}</section>"


def _suggestions(examination: Examination) -> str:
    items = "".join(
        f"<li><b>{escape(found.setting)} {found.value}</b>: {escape(found.reason)}</li>" for found in examination.suggestions
    )
    return f"<section><h2>Settings that suit this data</h2><ul>{items}</ul></section>" if items else ""


def _finding(finding: Finding, splits: dict[str, SplitData]) -> str:
    chip = f'<span class="chip {finding.severity}">{finding.severity}</span>'
    heading = f"{chip}{escape(finding.split)}: {escape(finding.heading)}"
    words = "".join(f"<li>{escape(item.text)}</li>" for item in finding.items[:LISTED])
    if finding.count > LISTED:
        words += f"<li>… and {finding.count - LISTED} more</li>"
    images = "" if finding.severity == "note" else "".join(_figures(finding, splits))
    return (
        f"<section><h2>{heading}</h2><p>{escape(finding.kind.advice)}</p><ul>{words}</ul>"
        f'<div class="images">{images}</div></section>\n'
    )


def _figures(finding: Finding, splits: dict[str, SplitData]) -> list[str]:
    """Images of the first cases, one per image; of a look-alike, its other image as well."""
    by_image: dict[int, list[Item]] = {}
    for item in finding.items:
        if item.image is not None and (len(by_image) < IMAGES or item.image in by_image):
            by_image.setdefault(item.image, []).append(item)
    figures = []
    for image, items in by_image.items():
        data = splits[finding.split]
        rows = {item.annotation for item in items if item.annotation is not None}
        figures.append(_figure(data, image, rows, f"{finding.split}/{data.file_name(image)}"))
        if finding.code in ("image-leak", "image-copy", "image-alike"):
            other, position = items[0].value
            figures.append(_figure(splits[other], position, set(), f"{other}/{splits[other].file_name(position)}"))
    return figures


def _figure(data: SplitData, image: int, rows: set[int], caption: str) -> str:
    """One image, small, with its boxes; empty where the image cannot be read."""
    size = tuple(int(side) for side in data.sizes[image])
    try:
        pixels = read_image(data.path(image))
        if tuple(pixels.shape[1:]) == size[::-1] != size:
            pixels = read_image(data.path(image), upright=False)
    except (OSError, ValueError):
        return ""
    thumbnail = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    scale = WIDTH / thumbnail.width
    thumbnail = thumbnail.resize((WIDTH, max(1, round(thumbnail.height * scale))), Image.Resampling.BOX)
    chosen = np.flatnonzero(data.images == image)
    in_question = np.isin(data.rows[chosen], list(rows))
    _draw(thumbnail, data.boxes[chosen[~in_question]] * scale, OTHER, 2)
    _draw(thumbnail, data.boxes[chosen[in_question]] * scale, FAULTY, 3)
    _draw(thumbnail, _unusable(data, rows) * scale, FAULTY, 3)
    buffer = io.BytesIO()
    thumbnail.save(buffer, "JPEG", quality=80)
    source = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    alternative = escape(caption, quote=True)
    return f'<figure><img alt="{alternative}" src="{source}"><figcaption>{escape(caption)}</figcaption></figure>'


def _unusable(data: SplitData, rows: set[int]) -> np.ndarray:
    """Boxes `[n, 4]` of annotations in question that nothing else is made of, such as those of an unknown category."""
    records = [data.record["annotations"][row] for row in sorted(rows - set(data.rows.tolist()))] if data.form == "xywh" else []
    boxes = [record.get("bbox") for record in records if isinstance(record, dict)]
    sound = [box for box in boxes if isinstance(box, list) and len(box) == 4 and all(_is_number(value) for value in box)]
    return np.array(sound, dtype=np.float64).reshape(-1, 4)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _draw(image: Image.Image, boxes: np.ndarray, color: tuple[int, int, int], thickness: int) -> None:
    """Rectangles of boxes `[n, 4]` left, top, width, height; what lies outside is drawn at the edge."""
    canvas = ImageDraw.Draw(image)
    right_limit, bottom_limit = image.width - 1, image.height - 1
    for left, top, width, height in boxes.tolist():
        x = [min(max(value, 0), right_limit) for value in (left, left + width)]
        y = [min(max(value, 0), bottom_limit) for value in (top, top + height)]
        canvas.rectangle((x[0], y[0], x[1], y[1]), outline=color, width=thickness)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
