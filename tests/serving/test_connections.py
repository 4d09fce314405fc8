"""Clients that are slow or leave, as the ASGI server hands them on."""

import asyncio

import pytest
from fastapi.testclient import TestClient

from deformable_detr.serving import Limits, create_app

from .conftest import encoded, gauge


def post(app, *messages):
    """Send a request whose body comes in these messages, and then nothing more; gives the status."""
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http", "path": "/detect",
        "raw_path": b"/detect", "root_path": "", "query_string": b"", "headers": [(b"content-type", b"image/png")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip
    waiting = list(messages)
    sent = []

    async def receive():
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"]


@pytest.fixture
def app(predictor):
    return create_app(predictor, limits=Limits(timeout=0.5), max_wait=0.0)


def body(content, more=False):
    return {"type": "http.request", "body": content, "more_body": more}


GONE = {"type": "http.disconnect"}


def test_a_body_that_does_not_end(app, predictor, images):
    with TestClient(app) as client:
        assert post(app, body(encoded(images[0])[:50], more=True)) == 408
        assert gauge(client, "inside_images") == 0


def test_a_client_that_leaves_within_the_body(app, images):
    with TestClient(app) as client:
        assert post(app, body(encoded(images[0])[:50], more=True), GONE) == 400
        assert gauge(client, "inside_images") == 0


def test_the_image_of_a_client_that_has_left_is_not_run(app, predictor, images):
    with TestClient(app) as client:
        predictor.batches.clear()
        assert post(app, body(encoded(images[0])), GONE) == 499
        assert gauge(client, "inside_images") == 0
    assert predictor.batches == []
