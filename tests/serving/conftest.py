import io
import re
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from deformable_detr.categories import Categories
from deformable_detr.config import Metadata
from deformable_detr.inference import Predictor
from deformable_detr.model import build_model

CATEGORIES = Categories(("cat", "dog", "bird"), (7, 3, 90))


class CountingPredictor(Predictor):
    """Counts forward passes; `gate.clear()` holds the network up."""

    def __init__(self, model):
        super().__init__(model, device="cpu")
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None

    def _detect(self, batch, top_k, labels, nms_iou):
        assert self.gate.wait(120)
        self.batches.append(len(batch))
        if self.failure:
            raise self.failure
        return super()._detect(batch, top_k, labels, nms_iou)


@pytest.fixture(scope="session")
def tiny():
    torch.manual_seed(0)
    model = build_model("tiny", num_classes=3)
    model.metadata = Metadata(model.metadata.model, CATEGORIES, eval_short_side=64, max_long_side=96)
    return model


@pytest.fixture
def predictor(tiny):
    return CountingPredictor(tiny)


@pytest.fixture(scope="session")
def images():
    """Twelve of different sizes and contents, `[H, W, 3]`."""
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (40 + 5 * index, 90 - 4 * index, 3), dtype=np.uint8) for index in range(12)]


def encoded(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **options)
    return buffer.getvalue()


def form(*images):
    return [("image", (f"{index}.png", encoded(one), "image/png")) for index, one in enumerate(images)]


def raw(content, kind="image/png", accept="*/*"):
    return {"content": content, "headers": {"Content-Type": kind, "Accept": accept}}


def gauge(client, name):
    found = re.search(rf"^deformable_detr_{name} (\S+)$", client.get("/metrics").text, flags=re.MULTILINE)
    assert found
    return float(found[1])


def counted(client, method, path, status):
    labels = {"method": method, "path": path, "status": str(status)}
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == "deformable_detr_requests_total"]
    return sum(sample.value for sample in samples if sample.labels == labels)


def wait_until(condition):
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come to that")
