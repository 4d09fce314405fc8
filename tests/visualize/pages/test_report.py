"""The report on disk and in a browser: complete in itself, readable with many classes, nothing asked from elsewhere."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import supervision as sv
import torch
from PIL import Image

from deformable_detr.categories import Categories
from deformable_detr.evaluation import CocoEvaluator, analyze
from deformable_detr.visualize.drawing.detections import draw_detections
from deformable_detr.visualize.figures import INK, new_figure
from deformable_detr.visualize.pages.page import embed_figure
from deformable_detr.visualize.pages.report import Report


def test_everything_is_written(tmp_path, make_report, nasty):
    report = make_report(tmp_path, 3)
    page = report.save(tmp_path / "new" / "report")
    assert page == tmp_path / "new" / "report" / "report.html"
    files = {str(path.relative_to(page.parent)) for path in page.parent.rglob("*") if path.is_file()}
    figures = {"pr_curves.png", "f1_curves.png", "calibration.png", "confusion.png", "error_types.png"}
    assert {name for name in files if not name.startswith("worst")} == {"report.html", "report.json", *figures}
    worst = sorted(name for name in files if name.startswith("worst"))
    ids = [image.image.image_id for image in report.analysis.images[:2]]
    assert worst == [f"worst/01-{ids[0]}.png", f"worst/02-{ids[1]}.png"]
    for name in (*figures, *worst):
        with Image.open(page.parent / name) as image:
            assert min(image.size) > 200
    assert json.loads((page.parent / "report.json").read_text())["confusion"]["names"][2] == nasty
    text = page.read_text()
    assert "http" not in text and "<b>bold</b>" not in text
    assert text.count('src="') == text.count('src="data:image/') == 5 + 2 * 2
    assert text.count('srcset="') == text.count('srcset="data:image/') == 5


def test_an_earlier_report_and_long_names(tmp_path, make_report):
    """The worst images are those of this report alone; their names hold as much of the images' as fits."""
    worst = tmp_path / "report" / "worst"
    worst.mkdir(parents=True)
    for name in ("01-old.png", "99-old.png", "120-old.png", "2024-mine.png", "mine.png"):
        (worst / name).touch()
    report = replace(make_report(tmp_path, 3), image_name=lambda image_id: f"{image_id}{124 * 'ä'}.jpg")  # 253 bytes
    page = report.save(tmp_path / "report")
    assert f"{124 * 'ä'}.jpg" in page.read_text(encoding="utf-8")
    names = sorted(path.name for path in worst.iterdir())
    assert names[2:] == ["2024-mine.png", "mine.png"]
    ids = [image.image.image_id for image in report.analysis.images[:2]]
    assert [name[:6] for name in names[:2]] == [f"01-{ids[0]}ää", f"02-{ids[1]}ää"]


def test_names_in_another_encoding(tmp_path, make_report):
    report = replace(make_report(tmp_path, 3), image_name=lambda image_id: f"{image_id}-caf\udce9.jpg")
    assert r"-caf\udce9.jpg" in report.save_html(tmp_path / "report.html").read_text(encoding="utf-8")


def test_no_errors_and_no_objects(tmp_path, make_report):
    report = make_report(tmp_path, 1)
    assert report.analysis.point.f1 == 1
    text = report.save_html(tmp_path / "report.html").read_text()
    assert "There are no errors at these thresholds." in text and "No class is confused with another one." in text
    empty = make_report(tmp_path, 2, num_images=1)
    evaluator = CocoEvaluator(_without_objects(tmp_path), Categories.from_names(["a"]))
    evaluator.update([0], [{"scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}])
    page = Report(analyze(evaluator), "nothing", empty.read_image, empty.image_name).save(tmp_path / "empty")
    assert "This split has no objects" in page.read_text()


def _without_objects(folder: Path) -> Path:
    path = folder / "empty.json"
    path.write_text(json.dumps({"images": [{"id": 0}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}))
    return path


def test_colors_of_choice():
    image = np.full((480, 480, 3), 255, np.uint8)
    found = sv.Detections(xyxy=np.array([[100.0, 100, 300, 300]]), class_id=np.array([0]))
    drawn = draw_detections(image, found, colors=[sv.Color(255, 0, 0)])
    assert drawn[200, 100].tolist() == [255, 0, 0]


@pytest.fixture(scope="module")
def page_of_95_classes(make_report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return make_report(folder, 95, num_images=150).save_html(folder / "report.html")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_in_a_browser_with_95_classes(open_tab, page_of_95_classes, nasty, width, scheme):
    with open_tab(page_of_95_classes.as_uri(), viewport={"width": width, "height": 900}, color_scheme=scheme) as tab:
        assert tab.inner_text("h1") == f"detector on {nasty}"
        assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 100 && image.alt)")
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        dark = tab.locator("picture source").first.get_attribute("srcset")
        assert (tab.evaluate("document.querySelector('picture img').currentSrc") == dark) == (scheme == "dark")
        table = tab.locator("table").first
        assert table.locator("tbody tr").count() == 95
        assert table.bounding_box()["height"] > 1000 > tab.locator(".table").first.bounding_box()["height"]  # it scrolls
        column = "td:nth-child(2)"
        table.get_by_role("button", name="objects").click()
        counts = [int(cell) for cell in table.locator(f"tbody {column}").all_inner_texts()]
        assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]
        table.get_by_role("button", name="objects").press("Enter")
        assert [int(cell) for cell in table.locator(f"tbody {column}").all_inner_texts()] == counts[::-1]
        tab.get_by_role("link", name="Worst images").click()
        assert tab.url.endswith("#worst-images")


def test_embedding_leaves_a_figure_as_it_was():
    """Its ink is light on dark pages alone, whatever it was before."""
    figure = new_figure(3, 2)
    axes = figure.add_subplot(title="a")
    axes.plot([0, 1], color=INK)
    axes.plot([1, 0], color="black")
    colors = [artist.get_color() for artist in (axes.title, *axes.lines)]
    embedded = embed_figure(figure, "two lines")
    assert embedded["light"] != embedded["dark"]
    assert [artist.get_color() for artist in (axes.title, *axes.lines)] == colors


def test_every_link_leads_to_a_section(tmp_path, make_report, read_markup):
    page = read_markup(make_report(tmp_path, 2).save_html(tmp_path / "report.html").read_text())
    sections = {attributes.get("id") for attributes in page.of("section")}
    links = {link["href"] for link in page.of("a")}
    assert links and links <= {f"#{name}" for name in sections}
