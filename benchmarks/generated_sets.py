"""Datasets like those that people bring, drawn: for trying recipes on images that nothing was tuned on.

python benchmarks/generated_sets.py sizes /tmp/sizes
python benchmarks/generated_sets.py large /tmp/large
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator

from deformable_detr.data import scenes


@dataclass(frozen=True)
class Family:
    """What a dataset is like."""

    train: int
    """Training images; a quarter as many are for validation."""

    sides: tuple[int, int]
    """Shorter side of the images (pixels): each octave is equally likely."""

    objects: tuple[float, float]
    """Longer side of the objects as a share of the image's shorter side: each octave is equally likely."""

    most: int
    """Objects in the fullest image."""

    classes: int
    """Number of classes: shape and hue together."""

    frequencies: tuple[float, ...] = ()
    """How frequent each class is; empty: all equally."""


FAMILIES = {
    "sizes": Family(train=160, sides=(120, 900), objects=(0.08, 0.6), most=8, classes=1),
    "large": Family(train=296, sides=(240, 360), objects=(0.35, 0.9), most=3, classes=6, frequencies=(5, 4, 3, 3, 2, 1)),
    "small": Family(train=200, sides=(320, 480), objects=(0.03, 0.1), most=30, classes=2),
    "tail": Family(train=400, sides=(200, 320), objects=(0.1, 0.5), most=6, classes=8, frequencies=(32, 16, 8, 4, 2, 1, 1, 1)),
}


def main() -> None:
    """Draw one family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    family = FAMILIES[options.family]
    (options.output / "annotations").mkdir(parents=True, exist_ok=True)
    for stream, (split, count) in enumerate({"train": family.train, "val": family.train // 4}.items()):
        (options.output / split).mkdir(exist_ok=True)
        record = draw_split(options.output / split, family, count, (options.seed, stream))
        (options.output / "annotations" / f"instances_{split}.json").write_text(json.dumps(record))


def draw_split(folder: Path, family: Family, count: int, seeds: tuple[int, int]) -> dict[str, list[dict]]:
    """Draw and save the images of one split; returns its COCO record."""
    kinds = shapes(family.classes)
    images, annotations = [], []
    for image_id in range(1, count + 1):
        image, objects = draw(np.random.default_rng((*seeds, image_id)), family, kinds)
        name = f"{image_id:06d}.jpg"
        cv2.imwrite(str(folder / name), image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
        images.append({"id": image_id, "file_name": name, "height": image.shape[0], "width": image.shape[1]})
        for kind, (left, top, right, bottom) in objects:
            box = [left, top, right - left, bottom - top]
            entry = {"id": len(annotations) + 1, "image_id": image_id, "category_id": kind, "bbox": box}
            annotations.append({**entry, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": number, "name": shape.name} for number, shape in enumerate(kinds)]
    return {"images": images, "annotations": annotations, "categories": categories}


def shapes(classes: int) -> list[scenes.Shape]:
    """Polygons and stars in hues of their own; neighbours among them differ in one of the two alone."""
    outlines = [scenes._outline(64), scenes._outline(4), scenes._outline(3), scenes._outline(10, inner_radius=0.5)]
    hues = (4.0, 214.0, 135.0, 45.0)
    return [
        scenes.Shape(f"kind {number}", number, hues[(number + number // 4) % 4], outlines[number % 4]) for number in range(classes)
    ]


def draw(rng: Generator, family: Family, kinds: list[scenes.Shape]) -> tuple[np.ndarray, list[tuple[int, scenes.Box]]]:
    """One image `[H, W, 3]` uint8 RGB, and its objects."""
    short = round(math.exp(rng.uniform(*np.log(family.sides))))
    height, width = rng.permutation([short, round(short * rng.uniform(1, 1.6))]).tolist()
    canvas = scenes._background(rng, height, width)
    for _ in range(rng.integers(6)):
        scenes._draw_line(canvas, rng, short)
    weights = np.array(family.frequencies or [1] * len(kinds), dtype=float)
    objects: list[tuple[int, scenes.Box]] = []
    wanted = rng.integers(1, family.most + 1)
    for _ in range(8 * wanted):
        if len(objects) == wanted:
            break
        number = int(rng.choice(len(kinds), p=weights / weights.sum()))
        size = round(math.exp(rng.uniform(*np.log(family.objects))) * short)
        mask = scenes._shape_mask(rng, kinds[number], max(6, min(size, short - 4)))
        if mask.shape[0] >= height - 2 or mask.shape[1] >= width - 2:
            continue
        top, left = (int(rng.integers(1, side - part)) for side, part in zip((height, width), mask.shape, strict=True))
        box = scenes._tight_box(mask, left, top)
        if all(scenes._overlap(box, other) <= scenes.LARGEST_OVERLAP for _, other in objects):
            scenes._draw_shadow(canvas, mask, left, top)
            scenes._paint(canvas, mask, scenes._shaded_colour(rng, kinds[number], mask.shape), left, top)
            objects.append((number, box))
    noise = rng.normal(0, rng.uniform(2, 10) / 255, canvas.shape)
    return ((canvas + noise).clip(0, 1) * 255).round().astype(np.uint8), objects


if __name__ == "__main__":
    main()
