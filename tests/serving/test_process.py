"""The command in a process of its own, on a loopback port, ended by SIGTERM while it works."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from deformable_detr.checkpoints import save_weights

from .conftest import encoded, wait_until


@pytest.fixture
def server(tiny, tmp_path):
    weights = save_weights(tmp_path / "tiny.safetensors", tiny)
    command = [sys.executable, "-m", "deformable_detr", "serve", str(weights), "--port", "0", "--max_wait_ms", "1500"]
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
    address = f"http://127.0.0.1:{port}"
    answers = []

    def ask():
        request = urllib.request.Request(f"{address}/detect", encoded(images[0]), {"Content-Type": "image/png"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            answers.append((answer.status, answer.read()))

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: b"inside_images 1.0" in urllib.request.urlopen(f"{address}/metrics", timeout=30).read())
    process.send_signal(signal.SIGTERM)
    assert not answers  # the image still waits for company
    asking.join(60)
    assert answers[0][0] == 200
    assert b'"images":[{"name":"image 0"' in answers[0][1]
    assert process.wait(60) == -signal.SIGTERM  # ended as it was asked to, after all was done
    wait_until(lambda: "Application shutdown complete." in "".join(lines))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
