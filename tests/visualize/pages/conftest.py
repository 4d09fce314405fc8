"""A report on made-up detections."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from deformable_detr.categories import Categories
from deformable_detr.evaluation import CocoEvaluator, analyze
from deformable_detr.visualize.pages.report import Report

NASTY = '_a <b>bold</b> "class" & $x_$ [/red] more'


def build_report(folder: Path, num_classes: int, *, num_images: int = 6, worst: int = 2) -> Report:
    """Images with two objects each; every third detection has the wrong class."""
    generator = np.random.default_rng(0)
    names = [f"class {label}" for label in range(num_classes - 1)] + [NASTY]
    images, annotations, results = [], [], []
    for image_id in range(num_images):
        images.append({"id": image_id, "file_name": f"{image_id}.jpg"})
        labels = generator.integers(num_classes, size=2)
        for place, label in enumerate(labels.tolist()):
            box = [10 + 60 * place, 20, 40, 40]
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "category_id": label, "bbox": box})
        found = [label if (image_id + place) % 3 else (label + 1) % num_classes for place, label in enumerate(labels.tolist())]
        boxes = torch.tensor([[12.0, 20, 50, 60], [70.0, 20, 110, 60]])
        results.append({"scores": torch.tensor([0.9, 0.4]), "labels": torch.tensor(found), "boxes": boxes})
    categories = [{"id": label, "name": name} for label, name in enumerate(names)]
    path = folder / "truth.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    evaluator = CocoEvaluator(path, Categories.from_names(names))
    evaluator.update(list(range(num_images)), results)
    return Report(
        analysis=analyze(evaluator),
        title=f"detector on {NASTY}",
        read_image=lambda image_id: torch.full((3, 90, 130), 20 * int(image_id) % 250, dtype=torch.uint8),
        image_name=lambda image_id: f"{image_id}.jpg",
        worst=worst,
    )


@pytest.fixture(scope="session")
def make_report():
    return build_report


@pytest.fixture
def nasty():
    """The name of the last class."""
    return NASTY
