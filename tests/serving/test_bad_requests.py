import struct
import zlib

import numpy as np
import pytest
from fastapi.testclient import TestClient

from deformable_detr.serving import Limits, create_app

from .conftest import CountingPredictor, encoded, form, gauge, raw


@pytest.fixture(scope="module")
def served(tiny):
    predictor = CountingPredictor(tiny)
    limits = Limits(max_megabytes=0.2, max_megapixels=0.02, max_images=3, max_waiting=8, timeout=120.0)
    with TestClient(create_app(predictor, limits=limits), raise_server_exceptions=False) as client:
        predictor.batches.clear()  # without the image that warms up
        yield client, predictor


def bomb(width, height):
    """A PNG whose header promises more pixels than it has."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = struct.pack(">I", 99) + b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + data + bytes(99)


IMAGE = encoded(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
MULTIPART = "multipart/form-data; boundary=x"
PART = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n'
BAD_REQUESTS = {
    "a text": ("/detect", raw(b"no image"), 422, "image 0: not an image that can be read (8 bytes)"),
    "an EPS": ("/detect", raw(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), 422, "not an image"),
    "half an image": ("/detect", raw(IMAGE[: len(IMAGE) // 2]), 422, "image 0: the image is damaged or truncated"),
    "empty": ("/detect", raw(b""), 422, "the body is empty"),
    "float pixels": ("/detect", raw(encoded(np.ones((4, 4), np.float32), "TIFF")), 422, "32-bit float pixels"),
    "a wrong type": ("/detect", raw(IMAGE, "text/plain"), 415, "cannot take a body of type text/plain"),
    "a compressed body": (
        "/detect",
        {"content": IMAGE, "headers": {"Content-Encoding": "gzip"}},
        415,
        "Content-Encoding gzip",
    ),
    "many bytes": ("/detect", raw(bytes(200_001)), 413, "larger than the 0.2 MB allowed"),
    "many bytes in pieces": ("/detect", raw(iter([bytes(100_000)] * 3)), 413, "larger than the 0.2 MB allowed"),
    "many pixels": ("/detect", raw(encoded(np.zeros((201, 100), np.uint8))), 413, "100 x 201 pixels are more than the 20000"),
    "a bomb": ("/detect", raw(bomb(12_000, 9_000)), 413, "pixels"),
    "a large bomb": ("/detect", raw(bomb(60_000, 60_000)), 413, "pixels"),
    "many images": ("/detect", {"files": form(*[np.zeros((4, 4, 3), np.uint8)] * 4)}, 413, "more than the 3 images"),
    "very many images": ("/detect", {"files": form(*[np.zeros((4, 4, 3), np.uint8)] * 9)}, 413, "more than the 3 images"),
    "one bad of two": ("/detect", {"files": [("image", ("a.png", IMAGE)), ("image", ("b.png", b"x"))]}, 422, "b.png: not"),
    "two to draw": ("/draw", {"files": form(*[np.zeros((4, 4, 3), np.uint8)] * 2)}, 422, "one image is drawn per request, not 2"),
    "an empty form": ("/detect", raw(b"--x--\r\n", MULTIPART), 422, "the form is empty"),
    "no boundary": ("/detect", raw(IMAGE, "multipart/form-data"), 400, "names no usable boundary"),
    "a broken form": ("/detect", raw(IMAGE, MULTIPART), 400, "the form cannot be read"),
    "half a form": ("/detect", raw(PART + b"\r\n" + IMAGE, MULTIPART), 400, "ends before its closing boundary"),
    "an empty file": ("/detect", raw(PART + b"\r\n\r\n--x--\r\n", MULTIPART), 422, "a.png: the file is empty"),
    "a form of texts": ("/detect", {"files": [("image", (None, "text"))]}, 422, "holds text where a file is expected"),
    "another field": ("/detect", {"files": [("photo", ("a.png", IMAGE))]}, 422, "unknown form field 'photo'"),
    "a file of a wrong type": ("/detect", {"files": [("image", ("a.txt", b"a", "text/plain"))]}, 415, "a.txt: cannot take a file"),
    "a strange charset": ("/detect", raw(PART + b"\r\n\r\n--x--\r\n", MULTIPART + "; charset=utf-7"), 422, "the file is empty"),
    "threshold": ("/detect?threshold=1.5", raw(IMAGE), 422, "threshold: Input should be less than or equal to 1"),
    "no number": ("/detect?threshold=nan", raw(IMAGE), 422, "threshold"),
    "top_k": ("/detect?top_k=0", raw(IMAGE), 422, "top_k: Input should be greater than or equal to 1"),
    "a class": ("/detect?classes=fish", raw(IMAGE), 422, "unknown class 'fish'; this detector knows cat, dog, bird"),
    "two thresholds": ("/detect?threshold=0.1&threshold=0.9", raw(IMAGE), 422, "threshold: given more than once"),
    "an unknown setting": ("/detect?thresh=0.3", raw(IMAGE), 422, "thresh: Extra inputs are not permitted"),
    "accept": ("/draw", raw(IMAGE, accept="text/html"), 406, "image/jpeg or image/png"),
    "another path": ("/nowhere", raw(IMAGE), 404, "Not Found (POST /nowhere)"),
}  # fmt: skip


@pytest.mark.parametrize("request_name", BAD_REQUESTS)
def test_bad_requests_are_answered_with_a_reason(served, request_name):
    client, predictor = served
    path, request, status, reason = BAD_REQUESTS[request_name]
    answer = client.post(path, **request)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert reason in answer.json()["error"]
    assert "Traceback" not in answer.text
    assert predictor.batches == []
    assert gauge(client, "inside_images") == 0
