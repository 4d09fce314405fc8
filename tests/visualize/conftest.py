from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from deformable_detr.categories import Categories
from deformable_detr.model import build_model
from deformable_detr.model.deformable_attention import MultiScaleDeformableAttention


def small_model(preset="tiny", **overrides):
    """A network with random weights that looks about: offsets and weights that depend on the query."""
    torch.manual_seed(0)
    model = build_model(preset, num_classes=3, **overrides)
    model.metadata = replace(
        model.metadata, eval_short_side=96, max_long_side=128, categories=Categories.from_names(["a", "b", "c"])
    )
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, MultiScaleDeformableAttention):
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


class Markup(HTMLParser):
    """The elements of a page, as a browser would read them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="session")
def read_markup():
    return Markup
