"""A clean dataset of two splits whose images and boxes are known, and ways to spoil it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WIDTH, HEIGHT = 96, 64


def noise(seed: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """An image like no other: blocks of random grey."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 12), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).convert("RGB")


def write_clean(root: Path) -> Path:
    """Twelve training and six validation images with two boxes each, in the lower right half; classes 0 cat and 1 dog."""
    (root / "annotations").mkdir(parents=True)
    for split, count, seed in (("train", 12, 0), ("val", 6, 100)):
        (root / split).mkdir()
        images, annotations = [], []
        for number in range(count):
            noise(seed + number).save(root / split / f"{number:02d}.png")
            images.append({"id": number + 1, "file_name": f"{number:02d}.png", "width": WIDTH, "height": HEIGHT})
            for category, box in ((0, [50, 34, 20, 16]), (1, [60 + number, 40, 12, 20])):
                entry = {"id": len(annotations) + 1, "image_id": number + 1, "category_id": category, "bbox": box}
                annotations.append(entry | {"area": box[2] * box[3], "iscrowd": 0})
        categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
        record = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(record))
    return root


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return write_clean(tmp_path / "set")


@pytest.fixture
def change(clean: Path) -> Callable[..., None]:
    """`change(function, split)` lets a function change the record of a split."""

    def apply(function: Callable[[dict], None], split: str = "train") -> None:
        path = clean / "annotations" / f"instances_{split}.json"
        record = json.loads(path.read_text())
        function(record)
        path.write_text(json.dumps(record))

    return apply


@pytest.fixture
def image() -> Callable[..., Image.Image]:
    return noise
