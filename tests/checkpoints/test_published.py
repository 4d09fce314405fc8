"""Published weights by short names: fetched from a server on this machine by the real code, and refused offline with advice."""

import hashlib
import re
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import constants

from deformable_detr.checkpoints import load_pretrained, published, save_weights
from deformable_detr.checkpoints.convert import convert
from deformable_detr.checkpoints.published import PUBLISHED
from deformable_detr.model import build_model
from deformable_detr.presets import MODEL_PRESETS

NAME = "r50-dino-mmdet-12e"


class Server(ThreadingHTTPServer):
    """Serves one content; `cut` ends the connection early."""

    content, cut, requests = b"", False, 0


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        assert isinstance(server, Server)
        server.requests += 1
        if not self.path.endswith(".pth"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(server.content)))
        self.end_headers()
        self.wfile.write(server.content[: len(server.content) // 2 if server.cut else None])

    def log_message(self, format, *arguments):
        pass


@pytest.fixture
def server(make_model, tmp_path, monkeypatch):
    save_weights(tmp_path / "a.safetensors", make_model("two-stage"))
    convert(tmp_path / "a.safetensors", tmp_path / "a.pth", "official", classes="keep")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server(("127.0.0.1", 0), Handler)
    server.content = (tmp_path / "a.pth").read_bytes()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    publish(monkeypatch, server, "weights.pth", hashlib.sha256(server.content).hexdigest()[:8])
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def publish(monkeypatch, server, path, sha256):
    address = f"http://127.0.0.1:{server.server_address[1]}/{path}"
    monkeypatch.setitem(PUBLISHED, NAME, replace(PUBLISHED[NAME], address=address, sha256=sha256))


def files_of(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_fetched_once(server, make_model, tmp_path, assert_same_weights):
    assert_same_weights(make_model("two-stage"), load_pretrained(NAME))
    assert files_of(tmp_path / "cache") == ["weights.pth"]
    assert_same_weights(make_model("two-stage"), load_pretrained(NAME))
    assert server.requests == 1


def test_another_file_than_the_published_one(server, tmp_path):
    server.content = server.content[:-1] + b"x"
    with pytest.raises(ValueError, match=r"is not the file that was published.*nothing was kept"):
        load_pretrained(NAME)
    assert files_of(tmp_path / "cache") == []


@pytest.mark.parametrize("known", [True, False])
def test_a_connection_that_ends_early(known, server, tmp_path, monkeypatch):
    publish(monkeypatch, server, "weights.pth", PUBLISHED[NAME].sha256 if known else None)
    server.cut = True
    with pytest.raises(ConnectionError, match=r"the connection ended after [\d,]+ of [\d,]+ bytes"):
        load_pretrained(NAME)
    assert files_of(tmp_path / "cache") == []


def test_a_file_that_is_gone(server, tmp_path, monkeypatch):
    publish(monkeypatch, server, "gone.zip", None)
    with pytest.raises(ConnectionError, match="the server answers 404"):
        load_pretrained(NAME)
    assert files_of(tmp_path / "cache") == []


def test_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*arguments, **options):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(published.urllib.request, "urlopen", no_network)
    with pytest.raises(ConnectionError) as caught:
        load_pretrained(NAME)
    for part in ("Network is unreachable", PUBLISHED[NAME].address, str(tmp_path), "pass the file"):
        assert part in str(caught.value)
    assert files_of(tmp_path) == []


def test_offline_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConnectionError, match="hf://SenseTime/deformable-detr-with-box-refine-two-stage is neither in the hub's cache"
    ):
        load_pretrained("r50-two-stage-coco")


def test_a_file_of_that_name_goes_first(make_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(make_model("one-stage").state_dict(), tmp_path / NAME)
    assert load_pretrained(NAME).metadata.model.num_queries == 12


def test_a_misspelt_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="published weights are called r50-two-stage-coco"):
        load_pretrained("r50-twostage-coco")


def test_settings_that_only_the_name_of_a_file_tells(make_model, tmp_path):
    item = PUBLISHED["r50-dino-improved-mmdet-12e"]
    small = {"backbone": "resnet18.tv_in1k", "hidden_dim": 64, "ffn_dim": 48, "num_queries": 12, "num_classes": 3}
    small |= {"num_encoder_layers": 1, "num_decoder_layers": 2, "pretrained_backbone": False}
    torch.save({"model": build_model("r50-dino", **small).state_dict()}, tmp_path / item.file_name)
    config = load_pretrained(tmp_path / item.file_name).metadata.model
    assert (config.position_temperature, config.position_offset, config.denoising_queries) == (10_000, 0.5, 300)
    torch.save({"model": make_model("one-stage").state_dict()}, tmp_path / item.file_name)  # another network under that name
    assert load_pretrained(tmp_path / item.file_name).metadata.model.position_offset == 0.5


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_entry_is_complete(name):
    item = PUBLISHED[name]
    assert item.preset in MODEL_PRESETS
    assert name not in MODEL_PRESETS  # `--preset` and `--weights` are different things
    assert item.license in ("apache-2.0", "mit") and 35 < item.ap < 60 and item.epochs in (12, 24, 36, 50)
    assert item.address.startswith(("https://", "hf://"))
    assert item.sha256 is None or re.fullmatch("[0-9a-f]{8}", item.sha256)
    MODEL_PRESETS[item.preset].replace(**item.settings)


def test_file_names_are_unique():
    names = [item.file_name for item in PUBLISHED.values()]
    assert len(set(names)) == len(names)
