"""Small detectors of every variant with weights that leave nothing to chance, and images for them."""

import copy
import functools

import pytest
import torch
from torch import nn

from deformable_detr.categories import Categories
from deformable_detr.config import Metadata
from deformable_detr.model import build_model
from deformable_detr.structures import ImageBatch

VARIANTS = {
    "one-stage": {},
    "refine": {"box_refinement": True},
    "two-stage": {"box_refinement": True, "two_stage": True},
    "single-scale-dc5": {"num_feature_levels": 1, "dilation": True},
}
CLASSES = Categories.from_names(["cell", "vessel", "nucleus", "dust", "edge"])


def randomise_weights(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.data.uniform_(0.7, 1.3, generator=generator)
        elif tensor.ndim > 1:
            tensor.data.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
        else:
            tensor.data.normal_(0, 2.0 if name.endswith("sampling_offsets.bias") else 0.2, generator=generator)


def small_model(variant: str, categories: Categories | None = CLASSES, num_classes: int | None = None, thin: bool = True):
    """Width 64, 8 heads, 2 + 2 layers.

    Thin: a ResNet-18 with a quarter of its channels; else a small ResNet that timm has under a name, as transformers wants it.
    """
    return copy.deepcopy(built_model(variant, categories, num_classes, thin))


@functools.cache
def built_model(variant: str, categories: Categories | None, num_classes: int | None, thin: bool):
    num_classes = num_classes or len(categories or CLASSES)
    settings = VARIANTS[variant] | {"num_classes": num_classes, "hidden_dim": 64, "ffn_dim": 48, "num_queries": 12}
    settings |= {"num_encoder_layers": 2, "num_decoder_layers": 2, "pretrained_backbone": False, "dropout": 0.0}
    settings |= {"backbone_options": {"channels": [16, 32, 64, 128]}} if thin else {"backbone": "test_resnet"}
    model = build_model("r18", **settings).eval()
    randomise_weights(model)
    model.metadata = Metadata(model=model.metadata.model, categories=categories)
    return model


def check_same_weights(first: nn.Module, second: nn.Module) -> None:
    a, b = first.state_dict(), second.state_dict()
    assert list(a) == list(b)
    assert not [name for name in a if not torch.equal(a[name], b[name])]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These networks are too small for more: threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=VARIANTS)
def variant(request) -> str:
    return request.param


@pytest.fixture
def model(variant):
    return small_model(variant)


@pytest.fixture(scope="session")
def randomise():
    return randomise_weights


@pytest.fixture(scope="session")
def make_model():
    return small_model


@pytest.fixture(scope="session")
def assert_same_weights():
    return check_same_weights


@pytest.fixture
def batch() -> ImageBatch:
    """Two images of different sizes on one canvas."""
    generator = torch.Generator().manual_seed(1)
    return ImageBatch.from_images([torch.randn(3, *size, generator=generator) for size in ((64, 96), (96, 48))])
