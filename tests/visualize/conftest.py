import os
import shutil
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from playwright.sync_api import sync_playwright

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


CHROMIUM = "/usr/bin/chromium" if Path("/usr/bin/chromium").exists() else shutil.which("chromium")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        message = "this test needs Chromium: apt-get install chromium"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def open_tab(browser):
    """Opens an address in a tab; when the block ends: nothing was asked from elsewhere, and nothing went wrong in the page."""

    @contextmanager
    def open_tab(address, **settings):
        requests, complaints = [], []
        tab = browser.new_page(**{"viewport": {"width": 1280, "height": 800}, **settings})
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
        tab.goto(address)
        yield tab
        tab.close()
        assert complaints == []
        assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []

    return open_tab


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
