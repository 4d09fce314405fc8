"""The page in a real Chromium: it loads without the network, and clicks and controls change the drawing."""

import json
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from playwright.sync_api import Page as Tab
from playwright.sync_api import expect

from deformable_detr.categories import Categories
from deformable_detr.checkpoints import save_weights
from deformable_detr.data.scenes import generate_scenes
from deformable_detr.inference.predictor import Predictor
from deformable_detr.model import build_model
from deformable_detr.visualize.inside.look import look_inside

pytestmark = pytest.mark.slow
THRESHOLD = 0.3  # that the page starts with
PATIENCE = 60_000  # milliseconds, for busy machines


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    folder = generate_scenes(tmp_path_factory.mktemp("scenes"), train=1, val=2, image_size=64)
    return sorted((folder / "val").iterdir())


@pytest.fixture(scope="module")
def detector() -> Predictor:
    """Random weights, but sure of itself."""
    torch.manual_seed(1)
    model = build_model("tiny", num_classes=2)
    categories = Categories.from_names(["cat", "dog"])
    model.metadata = replace(model.metadata, categories=categories, eval_short_side=64, max_long_side=96)
    for head in model.class_heads.children():
        assert isinstance(head, torch.nn.Linear)
        torch.nn.init.normal_(head.bias)
    return Predictor(model, device="cpu")


@pytest.fixture(scope="module")
def address(detector, images, tmp_path_factory):
    """The command itself, in a process of its own: there gradio's deprecated call of pandas is no error."""
    folder = tmp_path_factory.mktemp("server")
    weights = save_weights(folder / "tiny.safetensors", detector.model)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "deformable_detr", "explore", str(weights), str(images[0].parent), "--port", port]
    with (folder / "output.txt").open("w+") as output:
        server = subprocess.Popen([*command, "--device", "cpu"], stdout=output, stderr=subprocess.STDOUT)
        while "The explorer is at" not in (folder / "output.txt").read_text():
            assert server.poll() is None, (folder / "output.txt").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/"
        server.terminate()
        server.wait()


@pytest.fixture
def tab(open_tab, address):
    with open_tab(address) as tab:
        tab.set_default_timeout(PATIENCE)
        tab.wait_for_selector("#stage svg .sample")
        yield tab


def drawing(tab: Tab) -> str:
    return tab.inner_html("#stage svg")


def click_image(tab: Tab, x: float, y: float) -> None:
    """A click on a point of the image, in its own pixels."""
    place = tab.evaluate(
        """([x, y]) => {
            const drawing = document.querySelector("#stage svg");
            const point = new DOMPoint(x, y).matrixTransform(drawing.getScreenCTM());
            return [point.x, point.y];
        }""",
        [x, y],
    )
    tab.mouse.click(*place)


def test_clicks_and_controls_change_the_drawing(tab, detector, images):
    inside = look_inside(detector, images[0])
    first = inside.detections()[0].query
    heading = tab.locator("#heading h2")
    expect(heading).to_contain_text(f"Query {first}:", timeout=PATIENCE)
    height, width = inside.image_size
    grid = [(x, y) for x in range(2, width, 5) for y in range(2, height, 5)]
    x, y = next(point for point in grid if inside.query_at(*point, THRESHOLD) != first)
    before = drawing(tab)
    click_image(tab, x, y)
    expect(heading).to_contain_text(f"Query {inside.query_at(x, y, THRESHOLD)}:", timeout=PATIENCE)
    assert drawing(tab) != before

    slider = tab.locator("#decoder-layer input[type=range]")
    slider.focus()
    slider.press("ArrowLeft")
    expect(tab.locator("#heading p")).to_contain_text("In decoder layer 1", timeout=PATIENCE)
    slider.press("ArrowLeft")
    expect(tab.locator("#stage .sample")).to_have_count(0, timeout=PATIENCE)
    slider.press("End")
    expect(tab.locator("#stage .sample")).to_have_count(2 * 4 * 4, timeout=PATIENCE)
    tab.locator("#levels input").nth(0).click()
    expect(tab.locator("#stage .sample")).to_have_count(2 * 3 * 4, timeout=PATIENCE)

    tab.get_by_role("tab", name="Queries").click()
    tab.locator(f"#queries button[data-index='{first}']").click()
    expect(heading).to_contain_text(f"Query {first}:", timeout=PATIENCE)
    tab.get_by_role("tab", name="Shapes").click()
    expect(tab.locator("#journey")).to_contain_text("sampling locations", timeout=PATIENCE)


def test_encoder_positions_and_saving(tab, detector, images):
    inside = look_inside(detector, images[0])
    tab.locator("#kind input").nth(1).click()
    expect(tab.locator("#stage .cell")).to_have_count(1, timeout=PATIENCE)
    tab.locator("#position-level input").nth(0).click()
    expect(tab.locator("#heading h2")).to_contain_text("level 0", timeout=PATIENCE)
    click_image(tab, 20.5, 30.5)
    level, row, column = inside.level_and_cell(inside.position_at(20.5, 30.5, 0))
    expect(tab.locator("#heading h2")).to_have_text(f"Position in row {row}, column {column} of level {level}", timeout=PATIENCE)

    saved = {}
    for kind in ("png", "svg", "json"):
        with tab.expect_download() as download:
            tab.click(f"#save-{kind}")
        saved[kind] = Path(download.value.path())
    with Image.open(saved["png"]) as image:
        assert max(image.size) == 1600
    assert saved["svg"].read_text().startswith("<svg ")
    assert json.loads(saved["json"].read_text())["position"]["row"] == row


def test_images_are_chosen_and_dropped_and_bad_ones_are_named(tab, detector, images, tmp_path):
    tab.locator("#strip button").nth(1).click()
    expect(tab.locator("#strip button.chosen")).to_have_attribute("title", images[1].name, timeout=PATIENCE)
    (tmp_path / "bad.png").write_text("no image")
    tab.set_input_files("#drop input[type=file]", tmp_path / "bad.png")
    expect(tab.get_by_text(re.compile("bad.png: not an image"))).to_be_visible(timeout=PATIENCE)
    tab.wait_for_selector("#drop input[type=file]", state="attached")
    Image.new("RGB", (80, 40), "teal").save(tmp_path / "teal.png")
    tab.set_input_files("#drop input[type=file]", tmp_path / "teal.png")
    expect(tab.locator("#stage image")).to_have_attribute("width", "80", timeout=PATIENCE)
