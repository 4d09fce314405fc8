import pytest

from deformable_detr.categories import Categories
from deformable_detr.evaluation.coco_evaluator import match_categories


def test_names_go_before_ids():
    model = Categories(("a", "b", "c"), (1, 2, 3))
    dataset = Categories(("c", "A "), (1, 9))
    assert match_categories(model, dataset) == {0: 1, 2: 0}


def test_ids_only_when_asked():
    model, dataset = Categories(("1", "2", "3"), (1, 2, 3)), Categories(("x", "y"), (3, 1))
    assert match_categories(model, dataset, by="id") == {0: 1, 2: 0}
    with pytest.raises(ValueError, match=r"no name in common .* match classes by id"):
        match_categories(model, dataset)
    assert match_categories(model, Categories(("2", "1"), (1, 2)), by="id") == {0: 0, 1: 1}


def test_a_name_that_stands_twice_is_told_apart_by_the_id():
    names = ("cells", "red", "cells")
    model = Categories(names, (0, 1, 2))
    assert match_categories(model, Categories(names, (0, 1, 2))) == {0: 0, 1: 1, 2: 2}
    assert match_categories(model, Categories(("cells", "cells", "red"), (2, 5, 7))) == {2: 0, 0: 1, 1: 2}


def test_categories_that_the_model_does_not_know_are_logged(caplog):
    match_categories(Categories.from_names(["a"]), Categories(("a", "b"), (4, 5)))
    assert "'b' (id 5)" in caplog.text


def test_nothing_fits():
    with pytest.raises(ValueError, match=r"'a' \(id 0\), 'b' \(id 1\).*'c' \(id 7\)"):
        match_categories(Categories.from_names(["a", "b"]), Categories(("c",), (7,)))
