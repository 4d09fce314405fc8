"""Names of classes, files and detectors that are HTML stay text on every page."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from deformable_detr.categories import Categories
from deformable_detr.data.doctor.examine import examine
from deformable_detr.visualize import explain, look_inside
from deformable_detr.visualize.pages.doctor import write_doctor_page
from deformable_detr.visualize.pages.page import render

NASTY = """<script>alert("1")</script> & 'a' <b>[/red] {{ 7 * 7 }} {% raw %}"""
FILE = "a <b> & 'c' [d].png"


@pytest.fixture
def explanation(two_stage, photo, tmp_path):
    names = [f"{number} {NASTY}" for number in range(3)]
    inside = replace(look_inside(two_stage, photo), categories=Categories.from_names(names))
    return explain(inside, 0).save(tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.fixture
def doctor(tmp_path):
    folder = tmp_path / "data <i>"
    (folder / "annotations").mkdir(parents=True)
    (folder / "train").mkdir()
    Image.new("RGB", (100, 80), "grey").save(folder / "train" / FILE)
    record = {
        "images": [{"id": 1, "file_name": FILE, "width": 100, "height": 80}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": category, "bbox": [10, 20, 30, 40]} for category in (1, NASTY)],
        "categories": [{"id": 1, "name": NASTY}],
    }
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(record))
    return write_doctor_page(examine(folder), tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.fixture
def server():
    return render("server.html", title=NASTY)


@pytest.mark.parametrize(("kind", "scripts"), [("explanation", 0), ("doctor", 1), ("server", 1)])
def test_names_stay_text(kind, scripts, request, read_markup):
    page = read_markup(request.getfixturevalue(kind))
    assert NASTY in "".join(page.texts)
    assert len(page.of("script")) == scripts
    assert all(set(attributes) <= {"src", "alt", "width", "height", "style"} for attributes in page.of("img"))
    assert "http" not in "".join(page.texts) or kind == "server"
    if kind == "doctor":
        assert [image["alt"] for image in page.of("img")] == [f"boxes in train/{FILE}"] * len(page.of("img")) != []
        assert "data <i>: dataset examined" in page.texts
    if kind == "explanation":
        assert all(f"0 {NASTY}" in image["alt"] or NASTY in image["alt"] for image in page.of("img"))
