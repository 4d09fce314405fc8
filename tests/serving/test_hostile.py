"""A server on a loopback port and clients that want to keep it busy: they stop in the middle of whatever they do."""

import http.client
import re
import socket
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from deformable_detr.serving import Limits, admission, build_server, connections, create_app

from .conftest import encoded, wait_until

NOISE = np.random.default_rng(0).integers(0, 255, (900, 1000, 3), dtype=np.uint8)  # as PNG 2.7 MB, drawn too


class Served:
    """A running server."""

    def __init__(self, app, limits):
        self.clients = []
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32768)  # so that the kernel does not take whole responses
        self.listener.bind(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.server = build_server(app, timeout=limits.timeout)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.thread.start()
        wait_until(lambda: self.server.started)

    def close(self):
        for client in self.clients:
            client.close()
        self.server.should_exit = True
        self.thread.join(60)
        self.listener.close()
        assert not self.thread.is_alive()

    def connect(self, sent=b""):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", self.port))
        client.settimeout(60)
        client.sendall(sent)
        self.clients.append(client)
        return client

    def ask(self, method="GET", path="/health", body=None, **headers):
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        client.request(method, path, body, headers)
        response = client.getresponse()
        content = response.read()
        client.close()
        return response.status, content

    def inside(self):
        found = re.search(rb"^deformable_detr_inside_images (\S+)$", self.ask(path="/metrics")[1], re.MULTILINE)
        assert found
        return float(found[1])


@pytest.fixture
def serve(predictor):
    running = []

    def start(**limits):
        chosen = Limits(**limits)
        running.append(Served(create_app(predictor, limits=chosen, max_wait=0.0), chosen))
        return running[-1]

    yield start
    predictor.gate.set()
    for one in running:
        one.close()


def head(path, body, **headers):
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: image/png", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode()


def draw(pixels):
    body = encoded(pixels)
    return head("/draw", body, Accept="image/png") + body


def is_cut(client):
    """Whether the server has closed the connection; what it says before is read."""
    client.settimeout(0.01)
    try:
        while client.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def test_the_body_of_a_response_does_not_wait_for_its_head(serve):
    served = serve()
    served.connect()
    wait_until(lambda: served.server.server_state.connections)
    (connection,) = served.server.server_state.connections
    assert connection.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_heads_that_do_not_end(serve):
    served = serve(timeout=1.0)
    clients = [served.connect(b"POST /detect HTTP/1.1\r\nHost: x\r\n") for _ in range(100)]
    silent = [served.connect() for _ in range(100)]
    assert served.ask()[0] == 200
    assert clients[0].recv(100).startswith(b"HTTP/1.1 408 ")
    wait_until(lambda: all(is_cut(client) for client in clients + silent))
    wait_until(lambda: not served.server.server_state.connections)


def test_a_head_that_comes_byte_by_byte_after_a_good_request(serve):
    served = serve(timeout=1.0)
    client = served.connect(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.recv(15) == b"HTTP/1.1 200 OK"
    for letter in b"GET /health HTTP/1.1\r\nX: " + 200 * b"y":
        try:
            client.send(bytes([letter]))
        except ConnectionError:
            break
        time.sleep(0.02)
    assert is_cut(client)


def test_an_early_response_does_not_let_the_body_go_on_for_ever(serve):
    served = serve(timeout=1.0, max_megabytes=0.1)
    client = served.connect(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 900000000\r\n\r\n")
    assert client.recv(12) == b"HTTP/1.1 413"
    wait_until(lambda: is_cut(client))


def test_more_connections_than_allowed(serve, monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 10)
    served = serve(timeout=60.0)
    clients = [served.connect() for _ in range(30)]
    assert served.ask()[0] == 200
    wait_until(lambda: sum(is_cut(client) for client in clients) >= 20)
    assert not is_cut(clients[-1])


def test_responses_that_nobody_takes_count(serve, monkeypatch):
    monkeypatch.setattr(admission, "STALL_SECONDS", 1e9)
    served = serve(timeout=600.0, max_waiting=2, max_images=1)
    clients = [served.connect(draw(NOISE)) for _ in range(2)]
    assert all(client.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 200" for client in clients)
    assert served.inside() == 2
    status, reason = served.ask("POST", "/detect", encoded(NOISE[:50]), **{"Content-Type": "image/png"})
    assert status == 503, reason
    clients[0].close()
    wait_until(lambda: served.inside() == 1)
    assert served.ask("POST", "/detect", encoded(NOISE[:50]), **{"Content-Type": "image/png"})[0] == 200


def test_responses_that_nobody_takes_are_given_up(predictor):
    """The app has time without end; the connections have half a second for a response."""
    limits = Limits(timeout=600.0)
    served = Served(create_app(predictor, limits=limits, max_wait=0.0), replace(limits, timeout=0.5))
    try:
        clients = [served.connect(draw(NOISE)) for _ in range(2)]
        wait_until(lambda: all(is_cut(client) for client in clients))
        wait_until(lambda: served.inside() == 0)
    finally:
        served.close()


@pytest.mark.parametrize("kind", ["response", "body"])
def test_clients_that_stall_lose_their_places_to_others(serve, monkeypatch, kind):
    monkeypatch.setattr(admission, "STALL_SECONDS", 0.3)
    served = serve(timeout=60.0, max_waiting=2, max_images=1)
    body = encoded(NOISE)
    clients = [served.connect(draw(NOISE) if kind == "response" else head("/detect", body) + body[:70000]) for _ in range(2)]
    wait_until(lambda: served.inside() == 2)
    if kind == "response":
        assert all(client.recv(12, socket.MSG_PEEK) for client in clients)
    time.sleep(0.5)
    assert served.ask("POST", "/detect", encoded(NOISE[:50]), **{"Content-Type": "image/png"})[0] == 200
    wait_until(lambda: sum(is_cut(client) for client in clients) == 1)  # one place was enough


def test_a_client_that_reads_slowly_gets_everything(serve):
    served = serve(timeout=60.0)
    client = served.connect(draw(NOISE))
    content = b""
    while b"\r\n\r\n" not in content:
        content += client.recv(2000)
    announced = re.search(rb"content-length: (\d+)", content)
    assert announced
    length = int(announced[1]) + content.index(b"\r\n\r\n") + 4
    assert length > 2_000_000
    while len(content) < length:
        content += client.recv(40_000)
        time.sleep(0.001)
    assert content.endswith(b"IEND\xaeB`\x82")  # the last chunk of a PNG
    wait_until(lambda: served.inside() == 0)


def test_requests_in_pieces_and_in_a_row(serve, images):
    """Chunked transfer with Expect, then two requests at once on the same connection, then HTTP/1.0 with a whole address."""
    served = serve()
    body = encoded(images[0])
    client = served.connect(
        b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    )
    assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    for start in range(0, len(body), 700):
        piece = body[start : start + 700]
        client.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
    client.sendall(b"0\r\n\r\n" + 2 * (head("/detect", body) + body))
    received = b""
    while received.count(b'"total_ms"') < 3:
        received += client.recv(4096)
    assert received.count(b"HTTP/1.1 200 OK") == 3
    client.close()
    one = head("/detect", body).replace(b"/detect", b"http://x:1/detect").replace(b"HTTP/1.1", b"HTTP/1.0")  # as to a proxy
    client = served.connect(one + body)
    received = b""
    while piece := client.recv(4096):
        received += piece
    assert b"200 OK" in received and received.endswith(b"}")
