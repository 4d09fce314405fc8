import io
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from deformable_detr.serving import Limits, create_app
from deformable_detr.serving.app import drawing_format

from .conftest import counted, encoded, form, gauge, raw, wait_until

LIMITS = Limits(max_megabytes=0.2, max_megapixels=0.02, max_images=3, max_waiting=8, timeout=120.0)


@pytest.fixture
def client(predictor):
    app = create_app(predictor, name="tiny", limits=LIMITS, batch_size=4, max_wait=0.05)
    with TestClient(app, raise_server_exceptions=False) as client:
        predictor.batches.clear()  # without the image that warms up
        yield client


def assert_found(entries, expected):
    np.testing.assert_allclose([entry["box"] for entry in entries], expected.xyxy, atol=0.02)
    np.testing.assert_allclose([entry["score"] for entry in entries], expected.confidence, atol=2e-5)
    assert [entry["class_name"] for entry in entries] == expected.data["class_name"].tolist()
    assert [entry["label"] for entry in entries] == expected.class_id.tolist()
    assert [entry["category_id"] for entry in entries] == expected.data["category_id"].tolist()


@pytest.mark.parametrize("body", [lambda one: {"files": form(one)}, lambda one: raw(encoded(one))])
def test_detect(client, predictor, images, body):
    answer = client.post("/detect?threshold=0&top_k=5", **body(images[1]))
    assert answer.status_code == 200
    record = answer.json()
    assert record["model"] == "tiny"
    (image,) = record["images"]
    assert (image["width"], image["height"]) == (86, 45)
    assert image["times"]["batch_size"] == 1
    assert record["total_ms"] > image["times"]["network_ms"] > 0
    assert_found(image["detections"], predictor.predict(images[1], 0.0, top_k=5))


def test_several_images_and_classes(client, predictor, images):
    answer = client.post("/detect?threshold=0&top_k=4&classes=bird&classes=cat", files=form(*images[:3])).json()
    assert [image["name"] for image in answer["images"]] == ["0.png", "1.png", "2.png"]
    assert predictor.batches == [3]
    for image, pixels in zip(answer["images"], images, strict=False):
        assert_found(image["detections"], predictor.predict(pixels, 0.0, top_k=4, classes=["bird", "cat"]))


def test_concurrent_requests_share_forward_passes(client, predictor, images):
    predictor.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(client.post, "/detect?threshold=0&top_k=5", files=form(one)) for one in images[:8]]
        wait_until(lambda: gauge(client, "inside_images") == 8 and gauge(client, "queue_images") >= 4)
        predictor.gate.set()
    assert sum(predictor.batches) == 8
    assert len(predictor.batches) < 8
    assert max(predictor.batches) == 4
    for answer, pixels in zip(answers, images, strict=False):
        assert_found(answer.result().json()["images"][0]["detections"], predictor.predict(pixels, 0.0, top_k=5))


@pytest.mark.parametrize(("accept", "kind"), [("image/png", "PNG"), ("image/jpeg;q=0.4, image/png;q=0.5", "PNG"), ("*/*", "JPEG")])
def test_draw(client, accept, kind):
    white = np.full((100, 120, 3), 255, np.uint8)
    headers = {"Content-Type": "image/png"} | ({"Accept": accept} if accept else {})
    answer = client.post("/draw?threshold=0&top_k=3", content=encoded(white), headers=headers)
    assert answer.headers["content-type"] == f"image/{kind.lower()}"
    with Image.open(io.BytesIO(answer.content)) as drawn:
        assert drawn.format == kind
        assert drawn.size == (480, 400)  # enlarged, as on the command line
        assert np.ptp(np.asarray(drawn)) > 100  # something is on it
    empty = client.post("/draw?threshold=1", **raw(encoded(white), accept=accept))
    with Image.open(io.BytesIO(empty.content)) as drawn:
        assert np.asarray(drawn).min() > 250


def test_a_drawing_that_is_too_long_for_a_jpeg(predictor):
    strip = encoded(np.full((1, 65501, 3), 77, dtype=np.uint8))
    with TestClient(create_app(predictor), raise_server_exceptions=False) as client:
        refused = client.post("/draw", **raw(strip))
        drawn = client.post("/draw", **raw(strip, accept="image/png"))
    assert refused.status_code == 422
    assert "Accept: image/png" in refused.json()["error"]
    assert Image.open(io.BytesIO(drawn.content)).size == (65501, 1)


def test_images_are_upright_and_of_any_kind(client, predictor):
    pixels = np.random.default_rng(1).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    (image,) = client.post("/detect?threshold=0&top_k=5", **raw(encoded(pixels, exif=exif))).json()["images"]
    assert (image["width"], image["height"]) == (40, 60)
    assert_found(image["detections"], predictor.predict(np.ascontiguousarray(np.rot90(pixels, -1)), 0.0, top_k=5))
    for kind in ("*/*", "application/x-www-form-urlencoded"):  # of clients that say nothing, and of curl --data-binary
        assert client.post("/detect?threshold=0&top_k=5", **raw(encoded(pixels), kind)).status_code == 200
    grey = pixels[:, :, 0]
    as_rgb = predictor.predict(np.repeat(grey[:, :, None], 3, axis=2), 0.0, top_k=5)
    for content in (encoded(grey), encoded(grey.astype(np.uint16) * 256 + 99), encoded(grey, "TIFF"), encoded(grey, "BMP")):
        (image,) = client.post("/detect?threshold=0&top_k=5", **raw(content, "application/octet-stream")).json()["images"]
        assert_found(image["detections"], as_rgb)
    rgba = np.dstack((pixels, np.zeros((40, 60), np.uint8)))
    (image,) = client.post("/detect?threshold=0&top_k=5", **raw(encoded(rgba))).json()["images"]
    assert_found(image["detections"], predictor.predict(pixels, 0.0, top_k=5))


IMAGE = encoded(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))


def test_another_method(client):
    answer = client.get("/detect")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_a_failure_is_logged_and_hidden(client, predictor):
    predictor.failure = RuntimeError("secret inside")
    answer = client.post("/detect", **raw(IMAGE))
    assert (answer.status_code, answer.json()) == (500, {"error": "the server failed on this request; its log says why"})
    predictor.failure = None
    assert client.post("/detect", **raw(IMAGE)).status_code == 200
    assert counted(client, "POST", "/detect", 500) == 1
    assert counted(client, "POST", "/detect", 200) == 1
    assert gauge(client, "inside_images") == 0


def test_a_image_that_the_detector_does_not_take(client, predictor):
    predictor.failure = ValueError("an image of 99x9 pixels does not go into the file")
    answer = client.post("/detect", **raw(IMAGE))
    assert (answer.status_code, answer.json()) == (422, {"error": "an image of 99x9 pixels does not go into the file"})


def test_a_full_server_turns_away(client, predictor, images):
    predictor.gate.clear()
    with ThreadPoolExecutor(4) as pool:
        taken = [pool.submit(client.post, "/detect", files=form(*images[:2])) for _ in range(4)]
        wait_until(lambda: gauge(client, "inside_images") == 8)
        refused = client.post("/detect", **raw(IMAGE))
        predictor.gate.set()
    assert refused.status_code == 503
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert "busy with 8 images; try again in" in refused.json()["error"]
    assert [answer.result().status_code for answer in taken] == [200] * 4
    assert client.post("/detect", **raw(IMAGE)).status_code == 200


def test_no_answer_in_time(predictor, images):
    app = create_app(predictor, limits=Limits(timeout=0.3), max_wait=0.0)
    with TestClient(app) as client:
        predictor.gate.clear()
        answer = client.post("/detect", **raw(IMAGE))
        predictor.gate.set()
        assert answer.status_code == 504
        assert answer.headers["retry-after"]
        assert gauge(client, "inside_images") == 0


def test_before_the_start_and_after_the_end(predictor, images):
    """Also inside another application, which does not run the lifespan of those that it mounts."""
    app = create_app(predictor, name="tiny", limits=LIMITS)
    for _ in range(2):
        for path in ("/detect", "/draw"):
            refused = TestClient(app).post(path, **raw(encoded(images[0])))
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
            assert "not running" in refused.json()["error"]
        with TestClient(app) as client:
            assert client.post("/detect", **raw(encoded(images[0]))).status_code == 200


def test_health_page_and_description(client):
    health = client.get("/health").json()
    assert health["ready"] is True
    assert (health["model"], health["classes"], health["device"]) == ("tiny", ["cat", "dog", "bird"], "cpu")
    page = client.get("/", follow_redirects=True)
    assert page.headers["content-type"].startswith("text/html")
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", page.text)  # everything comes from this server
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/detect", "/draw", "/health", "/metrics"}
    assert set(paths["/detect"]["post"]["requestBody"]["content"]) == {"multipart/form-data", "image/jpeg", "image/png"}


def test_metrics(client, images):
    client.post("/detect", files=form(*images[:3]))
    client.post("/detect", **raw(b"x"))
    client.request("BREW", "/coffee")
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    assert counted(client, "POST", "/detect", 200) == 1
    assert counted(client, "POST", "/detect", 422) == 1
    assert counted(client, "other", "other", 404) == 1
    assert families["deformable_detr_images"].samples[0].value == 3
    sizes = {
        sample.labels["le"]: sample.value for sample in families["deformable_detr_batch_size"].samples if "le" in sample.labels
    }
    assert (sizes["2.0"], sizes["4.0"]) == (0, 1)
    times = [s.value for s in families["deformable_detr_request_seconds"].samples if s.labels.get("path") == "/detect"]
    assert times


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("image/*", "jpeg"),
        ("image/png;q=0", None),
        ("image/webp, */*;q=0.1", "jpeg"),
        ("image/jpeg;q=0, */*", "png"),
        ("", "jpeg"),
        ("x/y", None),
    ],
)
def test_drawing_format(accept, kind):
    assert drawing_format(accept) == kind


@pytest.mark.parametrize("wrong", [{"timeout": 0}, {"max_megabytes": float("nan")}, {"max_images": 9, "max_waiting": 8}])
def test_impossible_limits(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)


@pytest.mark.parametrize("path", ["/health", "/metrics", "/docs", "/openapi.json"])
def test_head_is_get_without_a_body(client, path):
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert int(head.headers["content-length"]) > 0


def test_options_name_the_methods(client):
    for path, allowed in (("/detect", "POST, OPTIONS"), ("/draw", "POST, OPTIONS"), ("/health", "GET, HEAD, OPTIONS")):
        response = client.options(path)
        assert (response.status_code, response.headers["allow"], response.content) == (204, allowed, b"")
    assert client.options("/nowhere").status_code == 404


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/octet-stream"}, {"Content-Type": "IMAGE/PNG; q=1"}])
def test_an_image_as_the_body_with_and_without_a_type(client, headers):
    assert client.post("/detect", content=IMAGE, headers=headers).status_code == 200


def test_the_first_image_has_the_size_of_a_file_for_one_size(predictor):
    predictor.model.image_size = (40, 72)
    taken = []

    def detect(batch, *settings):
        taken.extend(item.pixels.shape for item in batch)
        return run(batch, *settings)

    run, predictor._detect = predictor._detect, detect
    try:
        with TestClient(create_app(predictor)):
            assert taken == [(3, 40, 72)]
    finally:
        del predictor.model.image_size


def test_a_model_that_fails_on_the_first_image_is_served_all_the_same(predictor, caplog):
    predictor.failure = RuntimeError("out of memory")
    with TestClient(create_app(predictor), raise_server_exceptions=False) as client:
        assert "the model failed on a grey image, and may fail on others: out of memory" in caplog.text
        assert client.post("/detect", **raw(IMAGE)).status_code == 500
        predictor.failure = None
        assert client.post("/detect", **raw(IMAGE)).status_code == 200
