"""The server against generated requests: whatever comes, it keeps to its own description and never fails."""

from typing import cast

import pytest
from fastapi.testclient import TestClient

from deformable_detr.data.images import UPLOAD_FORMATS, read_image
from deformable_detr.serving import Limits, create_app

from .conftest import CountingPredictor


@pytest.fixture(scope="module")
def app(tiny):
    app = create_app(CountingPredictor(tiny), limits=Limits(max_images=3, max_megabytes=0.1), max_wait=0.0)
    with TestClient(app):  # runs its threads
        yield app


@pytest.mark.parametrize(
    ("operation", "mode"),
    [(f"POST {path}", mode) for path in ("/detect", "/draw") for mode in ("positive", "negative")]
    + [(f"GET {path}", "positive") for path in ("/health", "/metrics")],
)
def test_the_server_keeps_to_its_description(app, operation, mode):
    import schemathesis  # here: this and hypothesis take seconds to import, which no other test needs
    from hypothesis import HealthCheck, given, settings
    from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

    from . import fuzz_images  # noqa: F401  # says what an image is

    method, path = operation.split()
    description = schemathesis.openapi.from_asgi("/openapi.json", app)

    every_check = cast("list[HealthCheck]", list(HealthCheck))

    @settings(max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=every_check)
    @given(description[path][method].as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    def send(case):
        # A damaged image is of the right form, and refused all the same. 413 is a refusal, too, of whatever form.
        response = case.call()
        refused = [negative_data_rejection] if response.status_code == 413 else []
        case.validate_response(response, excluded_checks=[positive_data_acceptance, *refused])

    send()


def test_a_damaged_image_is_read_or_refused():
    from hypothesis import given, settings

    from .fuzz_images import images

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(images())
    def read(content):
        try:
            pixels = read_image(content, name="sent", formats=UPLOAD_FORMATS, max_pixels=1000)
        except ValueError as error:
            assert str(error).startswith("sent: ")
        else:
            assert pixels.shape[0] == 3 and 0 < pixels.numel() <= 3000

    read()
