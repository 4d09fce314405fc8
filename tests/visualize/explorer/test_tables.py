"""The numbers beside the image, against ones worked out by hand."""

import json
from dataclasses import replace

import pytest

from deformable_detr.visualize.explorer import tables
from deformable_detr.visualize.explorer.choices import first_choices
from deformable_detr.visualize.inside.description import Description, PartCost, Row
from deformable_detr.visualize.pages.page import macros

PARTS = macros("explorer.html")


def test_share_of_each_level_is_the_mean_over_the_chosen_heads(inside):
    choices = first_choices(inside)
    assert [item.weight for item in tables.level_shares(inside, choices)] == pytest.approx([(0.25 + 0.9) / 2, (0.75 + 0.1) / 2])
    one = tables.level_shares(inside, replace(choices, heads=(1,)))
    assert [(item.level, item.shape, round(item.weight, 6)) for item in one] == [(0, (2, 5), 0.9), (1, (1, 3), 0.1)]
    assert tables.level_shares(inside, replace(choices, heads=())) == []


def test_refinement(inside, learned_inside):
    rows = tables.refinement(inside, 1).rows
    overlap = 60 * 40 / (80 * 40 + 60 * 80 - 60 * 40)  # of (100, 30, 180, 70) and (120, 10, 180, 90)
    assert rows[0] == ("proposal", "", "", "100, 30, 180, 70", f"{overlap:.2f}")
    assert rows[2] == ("layer 2", "dog <b>", "0.90", "120, 10, 180, 90", "1.00")
    assert tables.refinement(learned_inside, 1).rows[0] == ("reference", "", "", "140, 50", "0.00")


def test_queries_and_points(inside):
    assert [(query, name, round(score, 3)) for query, _, name, score in tables.queries(inside)] == [
        (1, "dog <b>", 0.9),
        (0, "cat", 0.6),
        (2, "cat", 0.05),
    ]
    assert tables.strongest_points(inside, first_choices(inside), count=2).rows == [
        ("0", "1", "0", "0.900", "150.0, 75.0"),
        ("1", "0", "0", "0.750", "50.0, 25.0"),
    ]


def test_what_is_seen_in_words(inside, learned_inside):
    choices = first_choices(inside)
    assert tables.title(inside, choices) == "Query 1: dog <b> 0.90"
    seen = tables.explanation(inside, choices)
    assert "4 points (2 heads × 2 levels × 1 points)" in seen
    assert "1 of them lies outside" in seen
    assert "around its box of the previous layer" in seen
    assert "around the proposed box" in tables.explanation(inside, replace(choices, decoder_layer=1))
    assert "position of level 1" in tables.explanation(inside, replace(choices, decoder_layer=0))
    assert "learned" in tables.explanation(learned_inside, replace(choices, decoder_layer=0))
    assert "around the cross" in tables.explanation(learned_inside, choices)
    encoder = replace(choices, stage="encoder", position=7)
    assert tables.title(inside, encoder) == "Position in row 1, column 2 of level 0"
    assert "encoder layer 1" in tables.explanation(inside, encoder)


def test_record_is_json_with_all_that_is_shown(inside):
    choices = replace(first_choices(inside), levels=(0,))
    shown = json.loads(json.dumps(tables.record(inside, choices, "a.png")))
    assert (shown["image"], shown["width"], shown["height"]) == ("a.png", 200, 100)
    assert [point["weight"] for point in shown["points"]] == pytest.approx([0.9, 0.25])
    assert shown["boxes_per_layer"][2] == pytest.approx([120, 10, 180, 90])
    assert shown["scores_per_layer"] == pytest.approx([0.6, 0.9])
    encoder = json.loads(json.dumps(tables.record(inside, replace(choices, stage="encoder", position=7), "a.png")))
    assert encoder["position"] == {"level": 0, "row": 1, "column": 2, "cell": pytest.approx([100, 50, 150, 100])}


def test_shapes_and_costs(inside):
    rows = (Row("neck", "level 0", (1, 64, 16, 14), "a < b"), Row("neck", "level 1", (1, 64, 8, 7), ""))
    description = Description((), rows, (PartCost("neck", 1000, 234, 0.3), PartCost("encoder", 1, 0, 0.1)), (), inside)
    assert tables.journey(description).rows == [
        ("neck", "level 0", "1 × 64 × 16 × 14", "a < b"),
        ("", "level 1", "1 × 64 × 8 × 7", ""),
    ]
    assert tables.costs(description).rows[0] == ("neck", "1,234", "0.300", "75%")
    html = PARTS.table(tables.journey(description), classes={2: "shape"}, marked=1)
    assert "a &lt; b" in html
    assert html.count('<tr class="marked">') == 1
    assert html.count('<td class="shape">') == 2


def test_names_are_escaped_everywhere(inside):
    choices = first_choices(inside)
    for html in (
        PARTS.queries(tables.queries(inside), 1),
        PARTS.heading(tables.title(inside, choices), ""),
        PARTS.table(tables.refinement(inside, 1)),
        PARTS.thumbnails([("<b>.png", None, True)], 1),
    ):
        assert "<b>.png" not in html
        assert "dog <b>" not in html


def test_thumbnails():
    html = PARTS.thumbnails([("a.png", "data:,", False), ("bad&.png", None, True)], 9)
    assert "<span>bad&amp;.png</span>" in html
    assert '<img alt="a.png" src="data:,">' in html
    assert html.count('class="chosen"') == 1 and 'data-index="1" class="chosen"' in html
    assert "the first 2 of 9" in html


def test_the_share_of_each_level_is_a_bar(inside):
    html = PARTS.shares(tables.level_shares(inside, first_choices(inside)), shown=(1,))
    assert "width:57.5%" in html and "width:42.5%" in html
    assert html.count("hidden-level") == 1
    assert "Nothing is sampled" in PARTS.shares([], ())
