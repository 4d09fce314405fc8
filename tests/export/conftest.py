"""Small detectors and, as exports take seconds, the files that several tests look at."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from deformable_detr.categories import Categories
from deformable_detr.export import export_model
from deformable_detr.model import DeformableDETR, build_model

VARIANTS = {
    "one-stage": {"two_stage": False, "box_refinement": False},
    "refine": {"two_stage": False},
    "two-stage": {},
    "single-scale": {"two_stage": False, "box_refinement": False, "num_feature_levels": 1},
    "single-scale-dc5": {"two_stage": False, "box_refinement": False, "num_feature_levels": 1, "dilation": True},
}
SHALLOW = {"layers": [1, 1, 1, 1]}  # half of a ResNet-18: an export takes time for every operation


@pytest.fixture(scope="session")
def small_model() -> Callable[..., DeformableDETR]:
    """Makes a detector with one encoder and one decoder layer, which is nearly all that an export can get wrong."""

    def make(variant: str, **settings) -> DeformableDETR:
        torch.manual_seed(0)
        settings = {"num_encoder_layers": 1, "num_decoder_layers": 1, "num_classes": 3} | VARIANTS[variant] | settings
        model = build_model("tiny", backbone_options=SHALLOW, **settings).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)  # all different: equal constants would be stored once
        categories = Categories(("cat", "Hündin", "bird"), (7, 3, 90))
        model.metadata = replace(model.metadata, categories=categories, eval_short_side=80, max_long_side=112)
        return model

    return make


@pytest.fixture(scope="session")
def images() -> list[np.ndarray]:
    """Wide, the same at three quarters, and tall."""
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((80, 112), (60, 80), (112, 80))]


@pytest.fixture(scope="session")
def prepared(small_model, tmp_path_factory, worker_id) -> tuple[DeformableDETR, Path]:
    """A detector, and its .onnx as a web page has it: preparation of the image and choice of the best 20 inside.

    All workers share one file.
    """
    model, folder = small_model("single-scale"), tmp_path_factory.getbasetemp()
    path = (folder if worker_id == "master" else folder.parent) / "prepared.onnx"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            export_model(model, path, preprocess=True, batch_size=1, top_k=20)
    return model, path
