"""Teaches schemathesis what an image is. Also for its command line: SCHEMATHESIS_HOOKS=tests/serving/fuzz_images.py"""

import io

import numpy as np
import schemathesis
from hypothesis import strategies as st
from PIL import Image

FORMATS = {"PNG": {}, "JPEG": {"progressive": True}, "GIF": {}, "TIFF": {"compression": "tiff_lzw"}, "BMP": {}}


def image(kind):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format=kind, **FORMATS[kind])
    return buffer.getvalue()


IMAGES = [image(kind) for kind in FORMATS]


@st.composite
def images(draw):
    """An image file: whole, cut off, or with some bytes changed."""
    content = bytearray(draw(st.sampled_from(IMAGES)))
    for _ in range(draw(st.integers(0, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])


schemathesis.openapi.format("binary", images())
for media_type in ("image/png", "image/jpeg"):
    schemathesis.openapi.media_type(media_type, images())
