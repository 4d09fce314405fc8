"""Clicks and controls, on a pass through the network whose numbers are known."""

from dataclasses import replace

import pytest

from deformable_detr.visualize.explorer.choices import (
    at_another_image,
    at_point,
    cell_of,
    first_choices,
    look_of,
    on_level,
)


def test_first_is_the_strongest_detection_seen_by_all(inside):
    choices = first_choices(inside, 0.4)
    assert (choices.stage, choices.query, choices.decoder_layer, choices.encoder_layer) == ("decoder", 1, 2, 1)
    assert (choices.levels, choices.heads, choices.threshold) == ((0, 1), (0, 1), 0.4)
    assert inside.level_and_cell(choices.position) == (1, 0, 1)  # the middle of two columns of level 1


def test_a_click_in_the_decoder_takes_the_query_whose_box_is_there(inside):
    choices = first_choices(inside)
    assert at_point(inside, choices, 40, 50).query == 0
    assert at_point(inside, choices, 150, 50).query == 1
    assert at_point(inside, choices, 102, 52).query == 2  # in no box of a detection, but in this one
    assert at_point(inside, choices, 95, 30).query == 2  # in no box: the nearest
    assert [at_point(inside, choices, x, y).query for x, y in ((-12, 50), (210, 50), (100, 107))] == [0, 1, 2]  # in the margin


def test_a_click_in_the_encoder_takes_the_position_whose_cell_is_there(inside):
    choices = replace(on_level(inside, first_choices(inside), 0), stage="encoder")
    # level 0 has 5 columns, of which 4 are image, each 50 pixels wide, and 2 rows of 50 pixels
    for (x, y), cell in {(10, 10): (0, 0), (49, 51): (1, 0), (199, 99): (1, 3), (-30, 500): (1, 0)}.items():
        assert inside.level_and_cell(at_point(inside, choices, x, y).position) == (0, *cell)


def test_cells_and_the_same_place_on_another_level(inside):
    choices = replace(first_choices(inside), position=7)  # level 0, row 1, column 2
    assert cell_of(inside, 7) == pytest.approx((100, 50, 150, 100))
    coarse = on_level(inside, choices, 1)
    assert inside.level_and_cell(coarse.position) == (1, 0, 1)
    assert cell_of(inside, coarse.position) == pytest.approx((100, 0, 200, 100))


def test_points_lie_where_they_should_without_the_padding(inside):
    look = look_of(inside, first_choices(inside))
    assert look is not None and look.reference is not None
    assert look.points[0, 0, 0].tolist() == pytest.approx([50, 25])
    assert look.points[1, 1, 0].tolist() == pytest.approx([220, 50], abs=1e-4)
    assert look.reference.tolist() == pytest.approx([140, 50, 80, 40])


def test_filters_and_order(inside):
    choices = first_choices(inside)
    look = look_of(inside, choices)
    assert look is not None
    assert [(point.head, point.level) for point in look.strongest()] == [
        (1, 0),
        (0, 1),
        (0, 0),
        (1, 1),
    ]
    only = look.strongest(heads=(0,), levels=(1,))
    assert [tuple(point) for point in only] == [pytest.approx((0, 1, 0, 50, 25, 0.75))]


def test_nothing_is_sampled_before_the_first_layer(inside):
    assert look_of(inside, replace(first_choices(inside), decoder_layer=0)) is None


def test_another_image_keeps_the_settings(inside):
    choices = replace(first_choices(inside), query=0, position=0, levels=(1,), threshold=0.2, stage="encoder", zoom=True)
    again = at_another_image(inside, choices)
    assert again == replace(choices, query=1, position=first_choices(inside).position)
