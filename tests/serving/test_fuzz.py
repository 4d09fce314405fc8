"""The server against generated requests: whatever comes, it keeps to its own description and never fails."""

import numpy as np
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from deformable_detr.serving import Limits, create_app

from .conftest import CountingPredictor, encoded

PICTURES = [
    encoded(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8), kind, **options)
    for kind, options in [("PNG", {}), ("JPEG", {"progressive": True}), ("GIF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {})]
]


@st.composite
def pictures(draw):
    """A picture file, whole, cut off, or with some bytes changed."""
    content = bytearray(draw(st.sampled_from(PICTURES)))
    for _ in range(draw(st.integers(0, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])
