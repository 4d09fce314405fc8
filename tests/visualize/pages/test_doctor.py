"""The doctor's page: the boxes in question are drawn where they are, also those that nothing else can use."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from deformable_detr.data.doctor.examine import examine
from deformable_detr.visualize.pages.doctor import MOST_HEIGHT, WIDTH, write_doctor_page

SCALE = WIDTH / 100
BOXES = {1: [10, 20, 30, 40], 2: [60, 50, 20, 20]}


@pytest.fixture
def page(tmp_path):
    """One grey image of 100 x 80 with a sound box and one of a category that is not listed."""
    folder = tmp_path / "data"
    (folder / "annotations").mkdir(parents=True)
    (folder / "train").mkdir()
    Image.new("RGB", (100, 80), "grey").save(folder / "train" / "a.png")
    boxes = [{"id": number, "image_id": 1, "category_id": number, "bbox": box} for number, box in BOXES.items()]
    boxes.append({"id": 3, "image_id": 1, "category_id": 9, "bbox": [1, 2, "three", None]})
    record = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 80}],
        "annotations": boxes,
        "categories": [{"id": 1, "name": "one"}],
    }
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(record))
    return write_doctor_page(examine(folder), tmp_path / "doctor.html").read_text(encoding="utf-8")


def test_box_of_an_unknown_category_is_red_and_the_sound_one_blue(page):
    section = next(part for part in page.split("<section") if "categories that are not listed" in part)
    assert "category_id is 2" in section and "category_id is 9" in section
    source = re.findall(r"base64,([^\"]+)", section)
    assert len(source) == 1
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(source[0]))).convert("RGB")).astype(int)
    assert pixels.shape[:2] == (80 * SCALE, WIDTH)
    for number, channel in ((1, 2), (2, 0)):
        left, top, width, height = (round(value * SCALE) for value in BOXES[number])
        for x, y in ((left + 1, top + height // 2), (left + width // 2, top + 1), (left + width // 2, top + height - 1)):
            colour = pixels[y, x]
            assert colour.argmax() == channel and colour[channel] > colour.min() + 60, (number, colour)


def test_a_very_tall_image(tmp_path):
    """It would be higher than a JPEG can be, were it as wide as the others."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 1200), "grey").save(tmp_path / "images" / "a.png")
    box = {"id": 1, "image_id": 1, "category_id": 9, "bbox": [0, 600, 4, 300]}
    record = {"images": [{"id": 1, "file_name": "a.png", "width": 4, "height": 1200}], "annotations": [box]}
    (tmp_path / "labels.json").write_text(json.dumps(record | {"categories": [{"id": 1, "name": "one"}]}))
    page = write_doctor_page(examine(tmp_path / "labels.json"), tmp_path / "doctor.html").read_text(encoding="utf-8")
    (source,) = set(re.findall(r"base64,([^\"]+)", page))
    with Image.open(io.BytesIO(base64.b64decode(source))) as image:
        assert image.height == MOST_HEIGHT
        column = np.asarray(image.convert("RGB")).astype(int)[:, 0]
    red = np.flatnonzero(column[:, 0] > column[:, 2] + 60) / MOST_HEIGHT
    assert (red.min(), red.max()) == (pytest.approx(600 / 1200, abs=0.01), pytest.approx(900 / 1200, abs=0.01))
