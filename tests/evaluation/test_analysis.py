"""The analysis as a whole, on two small images, and what it advises."""

import json
import math

import numpy as np
import pytest
import torch

from deformable_detr.categories import Categories
from deformable_detr.evaluation import CocoEvaluator, ErrorType, analyze
from deformable_detr.evaluation.advice import advise

MODEL = Categories(("horse", "Dog", "cat"), (1, 2, 3))
A, B, C, D = [0, 0, 40, 40], [60, 0, 40, 40], [0, 60, 40, 40], [60, 60, 40, 40]  # xywh


@pytest.fixture
def make(tmp_path):
    """(truth, detections) per image → an evaluator that has seen them; labels and categories are cat 3, dog 7 and bird 9."""

    def make(*images, crowd=()):
        rows = [(number, category, box) for number, (truth, _) in enumerate(images) for category, box in truth]
        content = {
            "images": [{"id": number} for number in range(len(images))],
            "annotations": [
                {"id": place + 1, "image_id": number, "category_id": category, "bbox": box, "iscrowd": int(place in crowd)}
                for place, (number, category, box) in enumerate(rows)
            ],
            "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 9, "name": "bird"}],
        }
        path = tmp_path / "truth.json"
        path.write_text(json.dumps(content))
        evaluator = CocoEvaluator(path, MODEL)
        for number, (_, found) in enumerate(images):
            boxes = torch.tensor([row[2] for row in found], dtype=torch.float32).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            scores, labels = (torch.tensor([row[place] for row in found]) for place in (0, 1))
            evaluator.update([number], [{"scores": scores, "labels": labels.long(), "boxes": boxes}])
        return evaluator

    return make


@pytest.fixture
def evaluator(make):
    """Two cats (label 2) and a dog (label 1) detected; a dog as a cat, and a bird not at all; the second image is perfect."""
    first = ([(3, A), (7, B), (9, C)], [(0.8, 2, A), (0.6, 2, B), (0.1, 1, D)])
    return make(first, ([(3, A), (7, B)], [(0.9, 2, A), (0.7, 1, B)]))


def test_at_given_thresholds(evaluator):
    analysis = analyze(evaluator, [0.9, 0.3, 0.5])  # horse, dog, cat
    assert analysis.thresholds_from == "given"
    assert analysis.thresholds == (0.5, 0.3, 0.5)  # cat, dog; the model has no bird
    assert [(point.true_positives, point.false_positives, point.false_negatives) for point in analysis.points] == [
        (2, 1, 0),
        (1, 0, 1),
        (0, 0, 1),
    ]
    assert (analysis.point.precision, analysis.point.recall) == (pytest.approx(3 / 4), pytest.approx(3 / 5))
    assert analysis.point.f1 == pytest.approx(6 / 9)
    assert analysis.confusion.counts.tolist() == [[2, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert analysis.counts == {kind: int(kind in (ErrorType.CLASSIFICATION, ErrorType.MISSED)) for kind in ErrorType}
    assert analysis.errors.counts[ErrorType.BACKGROUND] == 1  # below the threshold, but it counts in AP
    assert analysis.errors.ap50 == pytest.approx(analysis.metrics.ap50)
    assert [image.image.image_id for image in analysis.images] == [0, 1]
    assert [image.error_mass for image in analysis.images] == [pytest.approx(0.6 + 2), 0]


def test_at_the_thresholds_of_this_split(evaluator):
    analysis = analyze(evaluator)
    assert analysis.thresholds_from == "found here"
    assert analysis.thresholds[0] == pytest.approx((0.6 + 0.8) / 2)
    assert analysis.points[0].f1 == 1


def test_json(evaluator, tmp_path):
    analysis = analyze(evaluator, [0.9, 0.3, 0.5])
    analysis.save_json(tmp_path / "new" / "report.json")
    record = json.loads((tmp_path / "new" / "report.json").read_text(), parse_constant=pytest.fail)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["report.json"]
    cat, dog, bird = record["classes"]
    assert (cat["name"], cat["threshold"], cat["true_positives"], cat["false_positives"]) == ("cat", 0.5, 2, 1)
    assert cat["best_threshold"] == pytest.approx(0.7)
    assert len(dog["precision_at_recall"]) == len(dog["f1_at_threshold"]) == 101
    assert dog["f1_at_threshold"][50] == pytest.approx(2 / 3, abs=1e-5)
    assert bird["precision"] is None and bird["best_threshold"] is None
    assert record["confusion"]["counts"][1] == [1, 1, 0, 0]
    assert set(record["errors"]["gains"]) == {str(kind) for kind in ErrorType}
    assert record["images"] == [{"image_id": 0, "error_mass": 2.6, "counts": {"false_negatives": 2, "classification": 1}}]


def test_another_number_of_thresholds(evaluator):
    with pytest.raises(ValueError, match="2 thresholds for the 3 classes of the model"):
        analyze(evaluator, [0.5, 0.5])


@pytest.mark.parametrize("wrong", [math.nan, 2, -0.1])
def test_thresholds_that_are_no_scores(evaluator, wrong):
    with pytest.raises(ValueError, match=r"thresholds must lie in \[0, 1\]"):
        analyze(evaluator, [0.5, wrong, 0.5])


def test_no_true_positive(make):
    analysis = analyze(make(([(3, A)], [(0.9, 2, D)])))
    assert (analysis.thresholds_from, analysis.thresholds) == ("default", (0.5, 0.5, 0.5))
    (sentence,) = advise(analysis)
    assert sentence.startswith("There is no true positive")


def test_nothing_there(make):
    analysis = analyze(make(([], [(0.9, 2, D)])))
    assert math.isnan(analysis.errors.ap50)
    assert advise(analysis) == ("This split has no objects, so nothing could be measured.",)
    json.dumps(analysis.to_dict(), allow_nan=False)


def test_nothing_detected(make):
    analysis = analyze(make(([(3, A)], [])))
    assert analysis.confusion.counts[0].tolist() == [0, 0, 0, 1]


def test_crowds(make):
    analysis = analyze(make(([(3, A), (3, B)], [(0.9, 2, A), (0.8, 2, B)]), crowd=[1]))
    assert (analysis.point.true_positives, analysis.point.false_positives, analysis.point.num_objects) == (1, 0, 1)


def test_advice_names_what_costs_most(make):
    """The cats are detected, all dogs as cats: AP 1 and 0, and 1 and 1 once their classes are fixed."""
    images = [([(3, A), (7, B)], [(0.9, 2, A), (0.8, 2, B)]) for _ in range(5)]
    sentences = advise(analyze(make(*images), [0.5, 0.5, 0.5]))
    assert sentences[0].startswith("Classification errors cost 50.0 points of AP50")
    assert "The class “dog” is confused with “cat” in 5 objects (100 %)." in sentences
    assert any("Fewer than 20 objects" in sentence and "cat, dog" in sentence for sentence in sentences)
    assert any(sentence.startswith("Without a true positive: dog.") for sentence in sentences)


def test_advice_names_the_confusions_of_small_classes(make):
    """Of 120 cats 5 are detected as dogs and the other way round, 4 % each; of 4 birds 3 as cats, which these two concealed."""
    images = [([(3, A), (7, B)], [(0.9, 1 if odd else 2, A), (0.8, 2 if odd else 1, B)]) for odd in [True] * 5 + [False] * 115]
    birds = [([(9, C)], [(0.9, 2, C)] if found else []) for found in (True, True, True, False)]
    confused = [text for text in advise(analyze(make(*images, *birds), [0.5] * 3)) if "is confused with" in text]
    assert confused == ["The class “bird” is confused with “cat” in 3 objects (75 %)."]


def test_advice_to_store_other_thresholds(make):
    evaluator = make(([(3, A)], [(0.3, 2, A)]))
    assert any("mean F1 of 0.00 on this split, its best ones 1.00" in text for text in advise(analyze(evaluator, [0.5] * 3)))
    assert not any("its best ones" in text for text in advise(analyze(evaluator, [0.2] * 3)))


def test_many_detections_of_one_class_count_as_in_coco(make):
    """COCO looks at the hundred best of each class in an image."""
    boxes = [[float(place), 0, 5, 5] for place in range(150)]
    evaluator = make(([(3, A)], [(1 - place / 200, 2, box) for place, box in enumerate(boxes)] + [(0.001, 1, D)]))
    (image,) = evaluator.images()
    assert np.bincount(image.labels).tolist() == [100, 1]
