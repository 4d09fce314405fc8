"""Two detectors whose difference is known."""

import json

import pytest
import torch

from deformable_detr.categories import Categories
from deformable_detr.evaluation import CocoEvaluator, analyze
from deformable_detr.evaluation.comparison import compare

BOX = [10, 10, 40, 40]


@pytest.fixture
def analysis_of(tmp_path):
    """The images in which the one cat is detected → an analysis of 20 images."""

    def analysis_of(detected, names=("cat",), count=20):
        content = {
            "images": [{"id": number} for number in range(count)],
            "annotations": [{"id": number + 1, "image_id": number, "category_id": 0, "bbox": BOX} for number in range(count)],
            "categories": [{"id": label, "name": name} for label, name in enumerate(names)],
        }
        (tmp_path / "truth.json").write_text(json.dumps(content))
        evaluator = CocoEvaluator(tmp_path / "truth.json", Categories.from_names(names))
        for number in range(count):
            boxes = torch.tensor([[10.0, 10, 50, 50]] if number in detected else []).reshape(-1, 4)
            labels = torch.zeros(len(boxes), dtype=torch.int64)
            evaluator.update([number], [{"scores": torch.full((len(boxes),), 0.9), "labels": labels, "boxes": boxes}])
        return analyze(evaluator, [0.5] * len(names))

    return analysis_of


def test_better_on_most_and_worse_on_some_images(analysis_of):
    found = compare(analysis_of(range(4)), analysis_of(range(2, 20)))
    assert found.verdict == "better"
    assert [image.image_id for image in found.worsened] == [1, 0]
    assert {image.image_id for image in found.improved} == set(range(4, 20))
    assert found.images[0].error_mass == -1 and found.images[-1].error_mass == 1
    low, high = found.difference.ap
    assert low < found.second.metrics.ap - found.first.metrics.ap < high


def test_the_other_way_round_and_with_itself(analysis_of):
    good, bad = analysis_of(range(18)), analysis_of(range(3))
    assert compare(good, bad).verdict == "worse"
    same = compare(good, good)
    assert same.verdict == "undecided"
    assert same.improved == same.worsened == ()


def test_a_small_difference_is_undecided(analysis_of):
    """One image more and one less: the difference of the draws lies on both sides of 0."""
    assert compare(analysis_of(range(10)), analysis_of(range(1, 11))).verdict == "undecided"


def test_json(analysis_of, tmp_path):
    compare(analysis_of(range(4)), analysis_of(range(20))).save_json(tmp_path / "compare.json")
    record = json.loads((tmp_path / "compare.json").read_text(), parse_constant=pytest.fail)
    assert record["verdict"] == "better"
    assert record["classes"][0]["second"] == pytest.approx(1)
    assert len(record["images"]) == 20 and record["images"][0]["error_mass"] == -1


def test_what_cannot_be_compared(analysis_of):
    with pytest.raises(ValueError, match="the classes differ"):
        compare(analysis_of(range(4)), analysis_of(range(4), names=("cat", "dog")))
    with pytest.raises(ValueError, match="the same images"):
        compare(analysis_of(range(4)), analysis_of(range(4), count=19))
