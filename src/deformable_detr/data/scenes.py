"""Generated images with known objects, as a COCO-format dataset: for the demo and for experiments.

Shape and hue together make the class. Every image depends only on (seed, split, number), so more images can be had without
changing the earlier ones.
"""

import math
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator

from deformable_detr.data.layout import add_box, add_image, empty_record
from deformable_detr.data.text import Record
from deformable_detr.files import atomic_folder, write_json

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
SUPERSAMPLING = 4
LARGEST_OVERLAP = 0.4  # of the smaller box
MOST_OBJECTS, MOST_LINES = 5, 3
SIZE_RANGE = (12, 76)  # pixels, in images of 128
EMPTY_SHARE = 0.08


class Shape(NamedTuple):
    """One class of objects."""

    name: str
    category_id: int
    hue: float
    """Degrees on the colour circle."""
    outline: np.ndarray
    """`[P, 2]` (x, y) corners around the origin."""


def _outline(corners: int, inner_radius: float = 1.0) -> np.ndarray:
    """Corners of a regular polygon, or of a star whose every second corner is at `inner_radius`."""
    angles = 2 * np.pi * np.arange(corners) / corners - np.pi / 2
    radii = np.where(np.arange(corners) % 2 == 0, 1.0, inner_radius)
    return np.stack((radii * np.cos(angles), radii * np.sin(angles)), axis=1)


SHAPES = (  # ids with gaps, as in real data
    Shape("circle", 3, 4.0, _outline(64)),
    Shape("square", 7, 214.0, _outline(4)),
    Shape("triangle", 20, 135.0, _outline(3)),
    Shape("star", 90, 45.0, _outline(10, inner_radius=0.5)),
)


def generate_scenes(output_dir: str | Path, *, train: int, val: int, image_size: int = 128, seed: int = 0) -> Path:
    """Draw a dataset of scenes with a few shapes each, and write it in COCO format.

    Images measure about `image_size` on either side (± 1/8) and hold up to five objects of about a tenth to six tenths of
    that, which may overlap; some are empty. Boxes are exact: the outermost pixels of each drawn object, hidden or not.

    Args:
        output_dir: written to: `annotations/instances_{train,val}.json`, `train/`, `val/`. Files of that name are
            replaced, a split's when all of its images are drawn.
        train: number of training images.
        val: number of validation images.
        image_size: usual side of an image in pixels.
        seed: the same seed draws the same images.

    Returns:
        The folder of the dataset.

    Raises:
        ValueError: fewer than one image in a split, or images too small to draw in.
    """
    if train < 1 or val < 1:
        raise ValueError(f"train and val must each be at least 1 image, not {train} and {val}")
    if image_size < 32:
        raise ValueError(f"image_size must be at least 32 pixels, not {image_size}")
    root = Path(output_dir)
    for stream, (split, count) in enumerate({"train": train, "val": val}.items()):
        with atomic_folder(root / split, merge=True) as folder:
            record = _write_split(folder, count, image_size, (seed, stream))
        write_json(root / "annotations" / f"instances_{split}.json", record)
    return root


def _write_split(folder: Path, count: int, image_size: int, seeds: tuple[int, int]) -> Record:
    """Draw and save the images of one split; returns its COCO record."""
    record = empty_record({shape.category_id: shape.name for shape in SHAPES})
    for image_id in range(1, count + 1):
        image, objects = draw_scene(np.random.default_rng((*seeds, image_id)), image_size)
        name = f"{image_id:06d}.png"
        if not cv2.imwrite(str(folder / name), image[:, :, ::-1]):
            raise OSError(f"{folder / name}: the image could not be written")
        add_image(record, name, (image.shape[0], image.shape[1]))
        for shape, box in objects:
            add_box(record, shape.category_id, box)
    return record


def draw_scene(rng: Generator, image_size: int = 128) -> tuple[np.ndarray, list[tuple[Shape, Box]]]:
    """Draw one scene.

    Returns:
        The image `[H, W, 3]` uint8 RGB, and its objects from back to front with their boxes.
    """
    height, width = (round(image_size * factor) for factor in rng.uniform(0.875, 1.125, size=2))
    canvas = _background(rng, height, width)
    for _ in range(rng.integers(MOST_LINES + 1)):
        _draw_line(canvas, rng, image_size)
    objects: list[tuple[Shape, Box]] = []
    wanted = 0 if rng.random() < EMPTY_SHARE else rng.integers(1, MOST_OBJECTS + 1)
    for _ in range(8 * wanted):  # attempts: a crowded image may end with fewer
        if len(objects) == wanted:
            break
        shape = SHAPES[rng.integers(len(SHAPES))]
        mask = _shape_mask(rng, shape, _draw_size(rng, image_size, min(height, width)))  # [h, w]
        top, left = (int(rng.integers(1, side - part)) for side, part in zip((height, width), mask.shape, strict=True))
        box = _tight_box(mask, left, top)
        if all(_overlap(box, other) <= LARGEST_OVERLAP for _, other in objects):
            _draw_shadow(canvas, mask, left, top)
            _paint(canvas, mask, _shaded_colour(rng, shape, mask.shape), left, top)
            objects.append((shape, box))
    noise = rng.normal(0, rng.uniform(1, 4) / 255, canvas.shape)
    return ((canvas + noise).clip(0, 1) * 255).round().astype(np.uint8), objects


def _draw_size(rng: Generator, image_size: int, room: int) -> int:
    """The longer side of an object: each octave is equally likely."""
    low, high = (size * image_size / 128 for size in SIZE_RANGE)
    return min(round(math.exp(rng.uniform(math.log(low), math.log(high)))), room - 4)


def _hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """`[3]` RGB in [0, 1]; hue in degrees."""
    return cv2.cvtColor(np.array([[[hue % 360, saturation, value]]], dtype=np.float32), cv2.COLOR_HSV2RGB)[0, 0]


def _background(rng: Generator, height: int, width: int) -> np.ndarray:
    """`[H, W, 3]` float32: a smooth field of related, muted colours."""
    hue, value = rng.uniform(0, 360), rng.uniform(0.35, 0.9)
    grid = [
        [_hsv(hue + rng.normal(0, 25), rng.uniform(0.04, 0.25), value + rng.uniform(-0.12, 0.1)) for _ in range(4)]
        for _ in range(4)
    ]
    return cv2.resize(np.array(grid, dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)


def _draw_line(canvas: np.ndarray, rng: Generator, image_size: int) -> None:
    """Clutter: a thin curve of a muted colour, from somewhere to somewhere."""
    height, width = canvas.shape[:2]
    start, middle, end = rng.uniform(0, (width, height), size=(3, 2))
    steps = np.linspace(0, 1, 24)[:, None]
    curve = (1 - steps) ** 2 * start + 2 * steps * (1 - steps) * middle + steps**2 * end  # [24, 2]
    mask = np.zeros((height, width), dtype=np.uint8)
    thickness = max(1, round(rng.uniform(1, 2) * image_size / 128))
    cv2.polylines(mask, [(curve * 16).round().astype(np.int32)], False, 255, thickness, cv2.LINE_AA, shift=4)
    _paint(canvas, mask / np.float32(255) * 0.7, _hsv(rng.uniform(0, 360), rng.uniform(0, 0.3), rng.uniform(0.15, 0.95)), 0, 0)


def _shape_mask(rng: Generator, shape: Shape, size: int) -> np.ndarray:
    """`[h, w]` float32 coverage in [0, 1] of a turned and slightly stretched shape whose longer side is `size` pixels."""
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = shape.outline @ turn.T * np.exp(rng.uniform(-0.15, 0.15, size=2))  # [P, 2]
    corners -= corners.min(axis=0)
    corners *= size / corners.max()
    width, height = np.ceil(corners.max(axis=0)).astype(int)
    large = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), dtype=np.uint8)
    points = ((corners * SUPERSAMPLING - 0.5) * 16).round().astype(np.int32)
    cv2.fillPoly(large, [points], 255, shift=4)
    return cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA) / np.float32(255)


def _tight_box(mask: np.ndarray, left: int, top: int) -> Box:
    """The outermost pixels that the object covers by half or more."""
    solid = mask >= 0.5
    columns, rows = np.flatnonzero(solid.any(axis=0)), np.flatnonzero(solid.any(axis=1))
    return left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1


def _overlap(box: Box, other: Box) -> float:
    """Common area as a share of the smaller box."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    smaller = min((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return max(width, 0) * max(height, 0) / smaller


def _shaded_colour(rng: Generator, shape: Shape, size: tuple[int, ...]) -> np.ndarray:
    """`[h, w, 3]` the class's hue, lit from the upper left."""
    colour = _hsv(shape.hue + rng.uniform(-12, 12), rng.uniform(0.6, 0.9), rng.uniform(0.7, 0.98))
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in size)
    distance = np.hypot(x[None, :] + 0.35, y[:, None] + 0.4)  # [h, w] from the highlight
    light = np.exp(-3.5 * distance**2)[:, :, None]
    shade = (1.08 - 0.24 * distance)[:, :, None]
    return (colour * shade + 0.22 * light).clip(0, 1)


def _draw_shadow(canvas: np.ndarray, mask: np.ndarray, left: int, top: int) -> None:
    """Darken the background below and to the right of an object."""
    reach = 2 + max(mask.shape) // 16
    soft = cv2.GaussianBlur(np.pad(mask, 2 * reach), (0, 0), reach * 0.6)
    _paint(canvas, soft * 0.35, np.zeros(3, dtype=np.float32), left - reach, top - reach)


def _paint(canvas: np.ndarray, coverage: np.ndarray, colour: np.ndarray, left: int, top: int) -> None:
    """Mix `colour` (`[3]` or `[h, w, 3]`) into the canvas where `coverage` `[h, w]` says so; what is outside is cut off."""
    rows = slice(max(top, 0), max(min(top + coverage.shape[0], canvas.shape[0]), 0))
    columns = slice(max(left, 0), max(min(left + coverage.shape[1], canvas.shape[1]), 0))
    inside = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
    share = coverage[inside][:, :, None]
    canvas[rows, columns] += share * ((colour[inside] if colour.ndim == 3 else colour) - canvas[rows, columns])
