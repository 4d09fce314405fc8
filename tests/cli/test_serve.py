import io
import ipaddress
import logging
import socket
import sys

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from deformable_detr import serving
from deformable_detr.categories import Categories
from deformable_detr.checkpoints import save_weights
from deformable_detr.cli import serve
from deformable_detr.cli.__main__ import main
from deformable_detr.config import Metadata
from deformable_detr.model import build_model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    model = build_model("tiny", num_classes=2)
    metadata = Metadata(model.metadata.model, Categories(("cat", "dog"), (7, 3)), eval_short_side=64, max_long_side=96)
    return str(save_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors", model, metadata=metadata))


def test_the_options_reach_the_server(weights, monkeypatch):
    seen = []

    class Server:
        started = True

        def __init__(self, app, **settings):
            self.app, self.settings = app, settings

        def run(self, sockets):
            (listener,) = sockets
            with TestClient(self.app) as client:
                seen.append((client.get("/health").json(), listener.getsockname(), self.settings))
                look(client)

    def look(client):
        seen.append(client.post("/detect", content=bytes(2000), headers={"Content-Type": "image/png"}).json())
        grey = io.BytesIO()
        Image.new("L", (9, 9)).save(grey, "PNG")
        for query in ("threshold=0", "threshold=0&top_k=3"):
            seen.append(client.post(f"/detect?{query}", content=grey.getvalue()).json())

    monkeypatch.setattr(serving, "build_server", Server)
    arguments = [
        "--port",
        "0",
        "--batch-size",
        "7",
        "--no-access-log",
        "--timeout",
        "9",
        "--max_megabytes",
        "0.001",
        "--top-k",
        "2",
    ]
    assert main(["serve", weights, *arguments, "--device", "cpu"]) == 0
    health, address, settings = seen[0]
    assert (health["model"], health["classes"], health["batch_size"]) == ("tiny.safetensors", ["cat", "dog"], 7)
    assert ipaddress.ip_address(address[0]).is_loopback
    assert settings == {"access_log": False, "timeout": 9.0}
    assert "0.001 MB" in seen[1]["error"]
    assert [len(response["images"][0]["detections"]) for response in seen[2:]] == [2, 3]


@pytest.mark.parametrize(("host", "warns"), [("127.0.0.1", False), ("0.0.0.0", True), ("localhost", False)])
def test_a_warning_where_other_machines_can_reach_it(host, warns, caplog):
    with caplog.at_level(logging.INFO), serve.bind(host, 0):
        pass
    assert ("there is no login" in caplog.text) == warns
    assert "http://" in caplog.text


def test_a_port_that_is_taken(weights, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", weights, "--port", str(taken.getsockname()[1])]) == 2
    assert "choose another --host or --port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.safetensors", "--port", "0"], "nowhere.safetensors"),
        (["x", "--port", "99999"], "port must be in [0, 65535]"),
        (["x", "--threads", "0"], "threads must be at least 1"),
        (["x", "--port", "0", "--max_images", "99"], "max_images (99) must not exceed max_waiting (32)"),
        (["x", "--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
    ],
)
def test_errors_are_named(arguments, message, capsys):
    assert main(["serve", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "0"], "batch_size must be at least 1, not 0"),
        (["--max-wait-ms", "-1"], "max_wait must be at least 0, not -0.001"),
        (["--top-k", "0"], "top_k must be at least 1, not 0"),
    ],
)
def test_a_server_that_could_not_start_says_why(weights, arguments, message, capsys):
    assert main(["serve", weights, "--port", "0", "--device", "cpu", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_the_extra(weights, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("deformable_detr.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve", weights, "--port", "0"]) == 2
    assert 'the server needs fastapi, which is not installed: pip install "deformable-detr[serve]"' in capsys.readouterr().err
