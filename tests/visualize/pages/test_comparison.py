"""The page that compares two detectors: complete in itself, names escaped, readable wide and narrow."""

import json
from dataclasses import replace

import numpy as np
import pytest

from deformable_detr.visualize.pages.comparison import ComparisonReport

NAMES = ("first <b>", 'second & "c"')


@pytest.fixture
def page(tmp_path, make_report):
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    first = make_report(tmp_path / "first", 3, num_images=12)
    second = make_report(tmp_path / "second", 3, num_images=12)
    worse = [replace(image, detected=np.zeros_like(image.detected)) for image in second.analysis.images[:2]]
    better = [replace(image, detected=np.ones_like(image.detected), types=(None, None)) for image in second.analysis.images[2:4]]
    analysis = replace(second.analysis, images=(*worse, *better, *second.analysis.images[4:]))
    return ComparisonReport(first, replace(second, analysis=analysis), NAMES, shown=1).save(tmp_path / "comparison")


def test_everything_is_written(page, read_markup):
    record = json.loads((page.parent / "compare.json").read_text(encoding="utf-8"))
    assert record["verdict"] == "undecided" and record["difference"]["ap"] == [0, 0]
    markup = read_markup(page.read_text(encoding="utf-8"))
    text = "".join(markup.texts)
    assert f"{NAMES[1]} compared with {NAMES[0]}" in text
    assert "is neither better nor worse for certain" in text
    assert "predictions of first <b> in" in "".join(image["alt"] for image in markup.of("img"))
    assert all(image["src"].startswith("data:image/") for image in markup.of("img"))
    assert len(markup.of("img")) % 3 == 0


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_in_a_browser(page, open_tab, width, scheme):
    with open_tab(page.as_uri(), viewport={"width": width, "height": 900}, color_scheme=scheme) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert tab.locator("section").count() == 5
