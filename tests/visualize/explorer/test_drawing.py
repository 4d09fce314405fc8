"""The drawing, read back as XML."""

import base64
import io
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.visualize.colors import level_color
from deformable_detr.visualize.explorer.choices import first_choices
from deformable_detr.visualize.explorer.drawing import draw, point_radius

SVG = "{http://www.w3.org/2000/svg}"


def elements(drawing: str, kind: str, name: str = "") -> list[ElementTree.Element]:
    found = ElementTree.fromstring(drawing).iter(SVG + kind)
    return [item for item in found if not name or item.get("class") == name]


def numbers(element: ElementTree.Element, *names: str) -> list[float]:
    return [float(element.get(name, "nan")) for name in names]


def test_points_have_the_place_the_colour_of_the_level_and_the_size_of_the_weight(inside):
    points = elements(draw(inside, first_choices(inside)), "circle", "sample")
    unit = 2.28  # a hundredth of 200 pixels and twice 7 % margin
    expected = [(150, 75, 0, 0.9), (50, 25, 1, 0.75), (50, 25, 0, 0.25), (220, 50, 1, 0.1)]  # heaviest first
    assert len(points) == 4
    for point, (x, y, level, weight) in zip(points, expected, strict=True):
        assert numbers(point, "cx", "cy") == pytest.approx([x, y], abs=0.01)
        assert numbers(point, "r") == pytest.approx([point_radius(weight, unit)], abs=0.002)
        assert point.get("fill") == level_color(level)
        text = point[0].text or ""
        assert f"level {level}" in text and f"weight {weight:.3f}" in text
    areas = [point_radius(weight, 1.0) - point_radius(0.0, 1.0) for weight in (0.2, 0.8)]
    assert areas[1] == pytest.approx(2 * areas[0])


def test_filters(inside):
    choices = replace(first_choices(inside), levels=(1,), heads=(1,))
    (point,) = elements(draw(inside, choices), "circle", "sample")
    assert (point.get("data-level"), point.get("data-head")) == ("1", "1")
    assert not elements(draw(inside, replace(choices, heads=())), "circle", "sample")


def test_boxes_follow_the_layers(inside):
    box = ("x", "y", "width", "height")
    expected = {0: [100, 30, 80, 40], 1: [105, 32.5, 90, 45], 2: [120, 10, 60, 80]}  # of query 1, by hand
    for layer, numbers_of_box in expected.items():
        drawing = draw(inside, replace(first_choices(inside), decoder_layer=layer))
        (chosen,) = elements(drawing, "rect", "chosen")
        assert numbers(chosen, *box) == pytest.approx(numbers_of_box, abs=0.01)
        earlier = [numbers(item, *box) for item in elements(drawing, "rect", "earlier")]
        assert earlier == [pytest.approx(expected[before], abs=0.01) for before in range(layer)]


def test_the_threshold_hides_other_detections(inside):
    for threshold, count in ((0.5, 1), (0.7, 0), (0.0, 2)):
        assert len(elements(draw(inside, replace(first_choices(inside), threshold=threshold)), "rect", "detection")) == count


def test_names_are_escaped_and_carry_the_score_of_the_layer(inside):
    texts = [item.text for item in elements(draw(inside, replace(first_choices(inside), decoder_layer=1)), "text")]
    assert texts == ["cat 0.50", "dog <b> 0.60"]


def test_of_equal_boxes_the_better_one_has_a_label(inside):
    boxes = inside.predictions.boxes.clone()
    boxes[:, 0, 2] = boxes[:, 0, 0]
    same = replace(inside, predictions=replace(inside.predictions, boxes=boxes))
    texts = [item.text for item in elements(draw(same, replace(first_choices(same), threshold=0.0)), "text")]
    assert texts == ["cat 0.60", "dog <b> 0.90"]


def test_a_learned_reference_is_a_point_before_the_first_layer(learned_inside):
    choices = replace(first_choices(learned_inside), decoder_layer=0)
    drawing = draw(learned_inside, choices)
    assert not elements(drawing, "rect", "chosen")
    crosses = elements(drawing, "g", "reference")
    assert "M" in crosses[-1][1].get("d", "")
    assert len(crosses) == 2  # the other detection's and its own


def test_the_encoders_cell_and_all_queries(inside):
    choices = replace(first_choices(inside), stage="encoder", position=7)
    drawing = draw(inside, choices)
    (cell,) = elements(drawing, "rect", "cell")
    assert numbers(cell, "x", "y", "width", "height") == pytest.approx([100, 50, 50, 50])
    assert cell.get("stroke") == level_color(0)
    assert not elements(drawing, "rect", "detection")
    rings = elements(draw(inside, replace(first_choices(inside), all_references=True)), "circle", "query")
    assert [numbers(ring, "cx", "cy") for ring in rings] == [pytest.approx([50, 50]), pytest.approx([100, 50])]


def test_zooming_shows_a_part_with_the_box_in_it(inside):
    choices = replace(first_choices(inside), zoom=True, query=2, levels=(), heads=())
    whole = [
        float(value) for value in ElementTree.fromstring(draw(inside, replace(choices, zoom=False))).get("viewBox", "").split()
    ]
    assert whole == [-14, -14, 228, 128]
    choices = replace(choices, stage="encoder", encoder_layer=1, position=7)
    left, top, width, height = (float(value) for value in ElementTree.fromstring(draw(inside, choices)).get("viewBox", "").split())
    assert width / height == pytest.approx(228 / 128, rel=1e-3)
    assert left <= 100 and top <= 50 and left + width >= 150 and top + height >= 100
    assert left >= -14 and top >= -14 and left + width <= 214.01 and top + height <= 114.01


@pytest.mark.parametrize(("size", "kind"), [((60, 90), "PNG"), ((700, 2000), "JPEG")])
def test_the_image_is_in_the_drawing(inside, size, kind):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 255, (3, *size), dtype=torch.uint8, generator=generator)
    head, content = elements(draw(replace(inside, image=pixels), first_choices(inside)), "image")[0].get("href", "").split(",")
    shown = Image.open(io.BytesIO(base64.b64decode(content)))
    assert head == f"data:image/{kind.lower()};base64"
    assert (shown.format, max(shown.size)) == (kind, min(max(size), 1600))
    if kind == "PNG":
        np.testing.assert_array_equal(np.asarray(shown), pixels.permute(1, 2, 0).numpy())
