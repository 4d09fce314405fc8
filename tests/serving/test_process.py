"""The command in a process of its own, on a loopback port, ended by SIGTERM while it works."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import closing

import pytest

from deformable_detr.checkpoints import save_weights

from .conftest import encoded, wait_until


@pytest.fixture
def server(tiny, tmp_path):
    weights = save_weights(tmp_path / "tiny.safetensors", tiny)
    command = [sys.executable, "-m", "deformable_detr", "serve", str(weights), "--port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    errors = process.stderr
    assert errors is not None
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(errors.readline, "")))
    reader.start()
    yield process, lines
    process.kill()
    process.wait()
    reader.join()
    errors.close()


@pytest.mark.slow
def test_a_request_under_way_is_finished(server, images):
    process, lines = server
    deadline = time.monotonic() + 120
    while "Application startup complete." not in "".join(lines):
        assert process.poll() is None, lines
        assert time.monotonic() < deadline, lines
        time.sleep(0.05)
    found = re.search(r"http://127\.0\.0\.1:(\d+)", "".join(lines))
    assert found
    port = int(found[1])
    content = encoded(images[0])
    under_way = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    under_way.putrequest("POST", "/detect")
    under_way.putheader("Content-Type", "image/png")
    under_way.putheader("Content-Length", str(len(content)))
    under_way.endheaders(content[:100])
    metrics = f"http://127.0.0.1:{port}/metrics"
    wait_until(lambda: b"inside_images 1.0" in urllib.request.urlopen(metrics, timeout=30).read())
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: "Shutting down" in "".join(lines))
    under_way.send(content[100:])
    with closing(under_way), under_way.getresponse() as answer:
        assert answer.status == 200
        assert b'"images":[{"name":"image 0"' in answer.read()
    assert process.wait(60) == -signal.SIGTERM  # ended as it was asked to, after all was done
    wait_until(lambda: "Application shutdown complete." in "".join(lines))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
