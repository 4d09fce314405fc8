"""The page that `export --to web` writes, in a real browser, beside Python's detections."""

import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from deformable_detr.data.scenes import draw_scene
from deformable_detr.export import web_page
from deformable_detr.export.web_page import export_web, runtime_archive
from deformable_detr.inference import Predictor


@pytest.fixture
def site(prepared, tmp_path, monkeypatch):
    """Around the file that other tests have, too: made as the page's own."""
    try:
        runtime_archive()
    except FileNotFoundError as error:
        pytest.skip(str(error))

    def export(model, path, **settings):
        assert (model, settings) == (prepared[0], {"preprocess": True, "batch_size": 1, "grid_sample": True, "top_k": 20})
        shutil.copy(prepared[1], path)

    monkeypatch.setattr(web_page, "export_model", export)
    for _ in range(2):  # a page that is there already is replaced
        export_web(prepared[0], tmp_path / "site", top_k=20)
    return prepared[0], tmp_path / "site"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address(site):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site[1])))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_the_page_finds_what_python_finds(site, address, open_tab, tmp_path):
    """An image that is resized on the way, named in the address or chosen; a PNG, so that the browser decodes the same pixels."""
    model, folder = site
    pixels = draw_scene(np.random.default_rng(3), 160)[0][:150, :120]
    Image.fromarray(pixels).save(tmp_path / "scene.png")
    expected = Predictor(model, device="cpu").predict(tmp_path / "scene.png", 0.0, top_k=20)
    shutil.copy(tmp_path / "scene.png", folder)
    with open_tab(f"{address}?image=scene.png") as tab:
        expect(tab.locator("#state")).to_contain_text("objects in", timeout=120_000)
        assert tab.evaluate("self.crossOriginIsolated"), "no threads: the service worker does not isolate the page"
        tab.locator("#threshold").fill("0")
        tab.set_input_files("#file", tmp_path / "scene.png")
        expect(tab.locator("#state")).to_contain_text("20 objects", timeout=120_000)
        found = tab.evaluate("self.detections")
        assert tab.locator("tbody tr").count() == 20
        move = "value => { threshold.value = value; threshold.dispatchEvent(new Event('input')); }"
        tab.evaluate(move, 1)
        expect(tab.locator("#state")).to_contain_text(re.compile("^0 objects"))
        tab.evaluate(f"[1, 0].forEach({move})")  # the second one while the first is at work
        expect(tab.locator("#state")).to_contain_text("20 objects")
    assert [one["name"] for one in found] == expected.data["class_name"].tolist()
    np.testing.assert_allclose([one["score"] for one in found], expected.confidence, atol=1e-4)
    np.testing.assert_allclose([one["box"] for one in found], expected.xyxy, atol=0.05)


def test_another_file_than_the_pinned_runtime_is_refused(tmp_path):
    (tmp_path / "other.tgz").write_bytes(b"something")
    with pytest.raises(ValueError, match=r"is not onnxruntime-web-.* as published: its SHA-256 is"):
        runtime_archive(tmp_path / "other.tgz")
    with pytest.raises(FileNotFoundError, match="expected the npm package onnxruntime-web"):
        runtime_archive(tmp_path / "missing.tgz")


def test_without_npm_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(web_page, "user_cache", lambda: tmp_path)
    monkeypatch.setattr(web_page.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="npm is not here: where there is npm, `npm pack onnxruntime-web@"):
        runtime_archive()
    assert list(tmp_path.iterdir()) == []
