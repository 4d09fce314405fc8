from dataclasses import replace

import pytest
import torch

from deformable_detr.categories import Categories
from deformable_detr.model import build_model


def small_model(preset="tiny", **overrides):
    """A network with random weights that looks about: offsets and weights that depend on the query."""
    torch.manual_seed(0)
    model = build_model(preset, num_classes=3, **overrides)
    model.metadata = replace(
        model.metadata, eval_short_side=96, max_long_side=128, categories=Categories.from_names(["a", "b", "c"])
    )
    with torch.no_grad():
        for layer in [*(layer.self_attn for layer in model.encoder.layers), *(layer.cross_attn for layer in model.decoder.layers)]:
            layer.sampling_offsets.weight.normal_(0, 0.2)
            layer.attention_weights.weight.normal_(0, 0.3)
    return model.eval()


@pytest.fixture(scope="session")
def two_stage():
    return small_model()


@pytest.fixture(scope="session")
def one_stage():
    return small_model(two_stage=False, box_refinement=False)


@pytest.fixture(scope="session")
def photo():
    return torch.randint(0, 255, (3, 120, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
