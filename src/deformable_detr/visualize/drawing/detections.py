"""Images with boxes: detections or ground truth drawn on an image, and sheets of several images.

All pixels are RGB uint8. Nothing is shown on screen; :func:`save_drawing` writes a file.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import supervision as sv
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from deformable_detr.boxes import cxcywh_to_xyxy
from deformable_detr.categories import Categories
from deformable_detr.files import atomic_file
from deformable_detr.structures import Target
from deformable_detr.visualize.colors import class_color, text_color

Drawable = np.ndarray | Tensor | Image.Image
Rectangle = tuple[int, int, int, int]

_HALO = sv.Color(12, 14, 18)
_HALO_STRENGTH = 0.55
_MAX_COVERED = 0.15
"""A label is left out if a larger share of it would overlap other labels."""


def draw_detections(
    image: Drawable,
    detections: sv.Detections,
    *,
    scores: bool = True,
    min_side: int = 480,
    colors: Sequence[sv.Color] | None = None,
) -> np.ndarray:
    """Draw boxes with labels such as `dog 0.87`.

    Lines and text are sized to the image. Labels do not hide each other; one without room is left out (its box stays, and the
    colour tells the class).

    Args:
        image: `[H, W, 3]` uint8 RGB, a `[3, H, W]` uint8 tensor, or a PIL image (turned upright); it stays as it is.
        detections: boxes in pixels of `image`. Labels come from `data["class_name"]`, else from `class_id`.
        scores: write the score beside the name, where there is one.
        min_side: an image whose longer side is smaller is enlarged by a whole factor first, so that labels can be read.
            0 keeps every image's size.
        colors: one for each detection. None: those of the classes.

    Returns:
        `[H', W', 3]` uint8 RGB, a new array; H' and W' are H and W unless the image was enlarged.

    Raises:
        ValueError: `image` is not an RGB uint8 image.
    """
    canvas = _to_pil(image)
    factor = max(1, -(-min_side // max(canvas.size)))
    if factor > 1:
        canvas = canvas.resize((canvas.width * factor, canvas.height * factor), Image.Resampling.BICUBIC)
    if len(detections) == 0:
        return np.array(canvas)
    boxes = detections.xyxy.astype(np.float64) * factor
    labels = detections.class_id if detections.class_id is not None else np.zeros(len(detections), dtype=int)
    chosen = [class_color(int(label)) for label in labels] if colors is None else list(colors)
    canvas = _draw_boxes(canvas, boxes, chosen)
    _draw_labels(canvas, boxes, chosen, _label_texts(detections, scores))
    return np.array(canvas)


def draw_grid(
    images: Sequence[Drawable], columns: int = 4, *, titles: Sequence[str] = (), cell_width: int | None = None, gap: int = 10
) -> np.ndarray:
    """Arrange images in a sheet, row by row, each fitted into a cell of the same size.

    Args:
        images: images of any sizes, as in :func:`draw_detections`.
        columns: images per row.
        titles: a heading for each image; empty: none. Fewer titles than images: they head the first ones (column headings).
        cell_width: width of a cell in pixels. None: that of the widest image.
        gap: pixels between the cells and around the sheet.

    Returns:
        `[H, W, 3]` uint8 RGB.

    Raises:
        ValueError: no images, or columns below 1.
    """
    if not images or columns < 1:
        raise ValueError(f"a grid needs at least one image and one column, not {len(images)} images in {columns} columns")
    cells = [_to_pil(image) for image in images]
    columns = min(columns, len(cells))
    width = cell_width or max(cell.width for cell in cells)
    cells = [_fit(cell, width) for cell in cells]
    font = _font(max(12, round(width / 26)))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    headings = [0 if row * columns >= len(titles) else round(font.size * 1.9) for row in range(len(rows))]
    heights = [max(cell.height for cell in row) for row in rows]
    size = (columns * (width + gap) + gap, sum(heights) + sum(headings) + gap * (len(rows) + 1))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    top = gap
    for index, (row, heading, height) in enumerate(zip(rows, headings, heights, strict=True)):
        for column, cell in enumerate(row):
            left = gap + column * (width + gap)
            if index * columns + column < len(titles):
                middle = (left + width / 2, top + heading * 0.45)
                draw.text(middle, titles[index * columns + column], font=font, fill=(40, 44, 52), anchor="mm")
            sheet.paste(cell, (left + (width - cell.width) // 2, top + heading + (height - cell.height) // 2))
        top += heading + height + gap
    return np.array(sheet)


def truth_detections(target: Target, categories: Categories) -> sv.Detections:
    """Convert the ground truth of an image to detections without scores.

    Args:
        target: with the `image_size` of the image that is drawn on.
        categories: the names and ids of the labels.

    Raises:
        ValueError: the target has no `image_size`.
    """
    if target.image_size is None:
        raise ValueError(f"the target of image {target.image_id} has no image_size, so its boxes cannot be given in pixels")
    height, width = target.image_size
    labels = target.labels.cpu().numpy()
    boxes = cxcywh_to_xyxy(target.boxes.cpu().float()).reshape(-1, 4).numpy() * np.array([width, height, width, height])
    return sv.Detections(
        xyxy=boxes,
        class_id=labels,
        data={
            "class_name": np.asarray(categories.names, dtype=str)[labels],
            "category_id": np.asarray(categories.ids, dtype=np.int64)[labels],
        },
    )


def save_drawing(path: str | Path, image: Drawable) -> Path:
    """Write an image as PNG or JPEG (by the suffix)."""
    options: dict[str, Any] = {"quality": 92, "subsampling": 0} if Path(path).suffix.lower() in (".jpg", ".jpeg") else {}
    with atomic_file(path) as partial:
        _to_pil(image).save(partial, **options)
    return Path(path)


def _to_pil(image: Drawable) -> Image.Image:
    """A fresh RGB PIL image."""
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image).convert("RGB").copy()
    array = image.permute(1, 2, 0).cpu().numpy() if isinstance(image, Tensor) and image.ndim == 3 else np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"expected a uint8 RGB image [H, W, 3] to draw on, not {array.dtype} {list(array.shape)}")
    return Image.fromarray(np.array(array, order="C"))


def _fit(image: Image.Image, width: int) -> Image.Image:
    """Resize to the cell's width; upright images to a height of 4/3 of it at most."""
    factor = min(width / image.width, width * 4 / 3 / image.height)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def _draw_boxes(canvas: Image.Image, boxes: np.ndarray, colors: list[sv.Color]) -> Image.Image:
    """Coloured rectangles with a dark halo, which keeps them visible on light grounds and on grounds of their own colour."""
    thickness = max(2, round(max(canvas.size) / 420))
    limits = np.array([canvas.width, canvas.height, canvas.width, canvas.height]) - 1
    order = np.argsort(-(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), kind="stable")  # small boxes on top
    shown = sv.Detections(xyxy=np.clip(np.round(boxes[order]), 0, limits), class_id=np.arange(len(boxes)))
    palette = sv.ColorPalette([colors[index] for index in order])
    halo = sv.BoxAnnotator(_HALO, thickness=thickness + 2).annotate(canvas.copy(), shown)
    canvas = Image.blend(canvas, halo, _HALO_STRENGTH)
    return sv.BoxAnnotator(palette, thickness=thickness).annotate(canvas, shown)


def _label_texts(detections: sv.Detections, scores: bool) -> list[tuple[str, ...]]:
    """The label of each detection, the longer form first."""
    names = detections.data.get("class_name")
    if names is None:
        names = ["object"] * len(detections) if detections.class_id is None else [f"class {label}" for label in detections.class_id]
    if not scores or detections.confidence is None:
        return [(str(name),) for name in names]
    return [(f"{name} {score:.2f}", str(name)) for name, score in zip(names, detections.confidence, strict=True)]


def _draw_labels(canvas: Image.Image, boxes: np.ndarray, colors: list[sv.Color], texts: list[tuple[str, ...]]) -> None:
    draw = ImageDraw.Draw(canvas)
    crowded = 0.85 if len(boxes) > 12 else 1.0
    font = _font(max(11, min(36, round(crowded * max(canvas.size) / 46))))
    padding = max(3, round(font.size * 0.28))
    ascent, descent = font.getmetrics()
    placed: list[Rectangle] = []
    for index, (color, forms) in enumerate(zip(colors, texts, strict=True)):
        others = np.delete(boxes, index, axis=0)
        for text in forms:
            size = (round(font.getlength(text)) + 2 * padding, ascent + descent + padding)
            place = _find_place(boxes[index], size, placed, others, canvas.size)
            if place is None:
                continue
            placed.append(place)
            draw.rounded_rectangle(place, radius=padding, fill=color.as_rgb())
            middle = (place[1] + place[3]) / 2
            draw.text((place[0] + padding, middle), text, font=font, fill=text_color(color).as_rgb(), anchor="lm")
            break


def _find_place(
    box: np.ndarray, size: tuple[int, int], placed: list[Rectangle], others: np.ndarray, canvas: tuple[int, int]
) -> Rectangle | None:
    """Find a position for a label: above its box, inside at the top, below, inside at the bottom; left, then right.

    Of the positions that leave earlier labels readable, the one that hides least of small objects; None without such a position.
    """
    width, height = size
    left, top, right, bottom = (round(float(value)) for value in box)
    small = [tuple(other) for other in others if (other[2] - other[0]) * (other[3] - other[1]) < 6 * width * height]
    best, least = None, float("inf")
    for x in (left, right - width + 1):
        for preference, y in enumerate((top - height, top, bottom, bottom - height)):
            x = max(0, min(x, canvas[0] - width))
            place = (x, y, x + width - 1, y + height - 1)
            covered = sum(_common_area(place, label) for label in placed)
            if y < 0 or y + height > canvas[1] or covered > _MAX_COVERED * width * height:
                continue
            hidden = sum(_common_area(place, other) for other in small)
            cost = 3 * covered + hidden + 0.04 * preference * width * height
            if cost < least:
                best, least = place, cost
    return best


def _common_area(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    return max(0, width) * max(0, height)


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows Latin, Greek and Cyrillic."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
