"""COCO's numbers on cases whose answers are known."""

import json
import math
import random

import pytest
import torch

from deformable_detr.categories import Categories
from deformable_detr.evaluation import CocoEvaluator
from deformable_detr.structures import Target

MODEL = Categories(("cat", "dog"), (3, 7))


def annotation_file(path, annotations, images=("a", "b"), categories=(("cat", 3), ("dog", 7))):
    """`annotations`: (image id, category id, xywh, further keys)."""
    content = {
        "images": [{"id": image_id, "width": 200, "height": 200, "file_name": f"{image_id}.png"} for image_id in images],
        "categories": [{"id": category_id, "name": name} for name, category_id in categories],
        "annotations": [
            {"id": number, "image_id": image_id, "category_id": category_id, "bbox": box} | (more[0] if more else {})
            for number, (image_id, category_id, box, *more) in enumerate(annotations)  # from 0, as some tools number
        ],
    }
    file = path / "instances.json"
    file.write_text(json.dumps(content))
    return file


def detections(*rows):
    """`rows`: (score, label, xywh)."""
    boxes = torch.tensor([row[2] for row in rows], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return {
        "scores": torch.tensor([row[0] for row in rows], dtype=torch.float32),
        "labels": torch.tensor([row[1] for row in rows], dtype=torch.int64),
        "boxes": boxes,
    }


CAT_A, DOG_A, CAT_B = [10, 10, 20, 20], [50, 50, 50, 50], [30, 40, 120, 120]
THREE = [("a", 3, CAT_A), ("a", 7, DOG_A), ("b", 3, CAT_B)]


def test_perfect_detections(tmp_path, capfd):
    evaluator = CocoEvaluator(annotation_file(tmp_path, THREE), MODEL)
    evaluator.update(["a", "b"], [detections((0.9, 0, CAT_A), (0.8, 1, DOG_A)), detections((0.7, 0, CAT_B))])
    metrics = evaluator.compute()
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar_1", "ar_100", "ar_small", "ar_large")
    assert {name: getattr(metrics, name) for name in names} == pytest.approx(dict.fromkeys(names, 1.0))
    assert [(c.name, c.ap, c.ap50, c.num_objects) for c in metrics.per_class] == [("cat", 1, 1, 2), ("dog", 1, 1, 1)]
    assert metrics.num_images == 2
    assert capfd.readouterr().out == ""


def test_a_missed_object(tmp_path):
    """One of two cats found: precision 1 up to recall .5, which 51 of the 101 recall points do not exceed."""
    evaluator = CocoEvaluator(annotation_file(tmp_path, THREE), MODEL)
    evaluator.update(["a", "b"], [detections((0.9, 0, CAT_A), (0.8, 1, DOG_A)), detections()])
    metrics = evaluator.compute()
    cat, dog = metrics.per_class
    assert cat.ap == cat.ap50 == pytest.approx(51 / 101)
    assert dog.ap == 1
    assert metrics.ap == pytest.approx((51 / 101 + 1) / 2)
    assert metrics.ar_100 == pytest.approx((0.5 + 1) / 2)
    assert metrics.ap_large == 0


def test_a_duplicate_counts_as_false(tmp_path):
    """Ranked: right, duplicate, right. Precision 1 up to recall .5, then 2/3."""
    evaluator = CocoEvaluator(annotation_file(tmp_path, [THREE[0], THREE[2]]), MODEL)
    evaluator.update(["a", "b"], [detections((0.9, 0, CAT_A), (0.8, 0, CAT_A)), detections((0.7, 0, CAT_B))])
    metrics = evaluator.compute()
    assert metrics.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert metrics.per_class[0].precision[:51] == pytest.approx([1.0] * 51)
    assert metrics.per_class[0].precision[51:] == pytest.approx([2 / 3] * 50)


def test_iou_decides_at_which_thresholds_a_box_is_right(tmp_path):
    """Shifted by 1/5 of its width: intersection .8, union 1.2, IoU 2/3: right at .50, .55, .60, .65 and wrong above."""
    evaluator = CocoEvaluator(annotation_file(tmp_path, [("a", 3, [0, 0, 100, 100])]), MODEL)
    evaluator.update(["a"], [detections((0.9, 0, [20, 0, 100, 100]))])
    metrics = evaluator.compute()
    assert (metrics.ap, metrics.ap50, metrics.ap75) == pytest.approx((0.4, 1, 0))


def test_detections_in_a_crowd_are_neither_right_nor_wrong(tmp_path):
    crowd = [100, 100, 80, 80]
    rows = [THREE[0], ("a", 3, crowd, {"iscrowd": 1, "area": 6400})]
    evaluator = CocoEvaluator(annotation_file(tmp_path, rows), MODEL)
    in_crowd = [(0.95, 0, [110, 110, 20, 20]), (0.94, 0, [140, 140, 20, 20])]
    evaluator.update(["a"], [detections((0.5, 0, CAT_A), *in_crowd)])
    metrics = evaluator.compute()
    assert metrics.ap == pytest.approx(1)
    assert metrics.per_class[0].num_objects == 1


def test_area_of_the_file_decides_the_size(tmp_path):
    evaluator = CocoEvaluator(annotation_file(tmp_path, [("a", 3, DOG_A, {"area": 500})]), MODEL)  # box 2500, outline 500
    evaluator.update(["a"], [detections((0.5, 0, DOG_A))])
    metrics = evaluator.compute()
    assert metrics.ap_small == pytest.approx(1)
    assert math.isnan(metrics.ap_medium) and math.isnan(metrics.ap_large)


def test_no_detections_at_all_is_zero(tmp_path):
    evaluator = CocoEvaluator(annotation_file(tmp_path, THREE), MODEL)
    evaluator.update(["a", "b"], [detections(), detections()])
    metrics = evaluator.compute()
    assert metrics.ap == metrics.ap50 == metrics.ar_100 == 0
    assert evaluator.results() == []


def test_classes_without_objects_are_left_out_of_the_mean(tmp_path):
    evaluator = CocoEvaluator(annotation_file(tmp_path, [THREE[0]]), MODEL)
    evaluator.update(["a"], [detections((0.9, 0, CAT_A), (0.99, 1, DOG_A))])
    metrics = evaluator.compute()
    assert metrics.ap == pytest.approx(1)
    assert math.isnan(metrics.per_class[1].ap) and metrics.per_class[1].precision == ()


def test_split_without_objects(tmp_path):
    evaluator = CocoEvaluator(annotation_file(tmp_path, []), MODEL)
    evaluator.update(["a"], [detections((0.9, 0, CAT_A))])
    assert math.isnan(evaluator.compute().ap)


def test_only_the_images_that_were_seen_count(tmp_path):
    evaluator = CocoEvaluator(annotation_file(tmp_path, THREE), MODEL)
    evaluator.update([Target(torch.zeros(0, 4), torch.zeros(0), image_id="b")], [detections((0.7, 0, CAT_B))])
    metrics = evaluator.compute()
    assert (metrics.ap, metrics.num_images) == (pytest.approx(1), 1)
    assert evaluator.image_ids == ("b",)


def test_an_image_that_comes_twice_counts_once(tmp_path):
    evaluator = CocoEvaluator(annotation_file(tmp_path, THREE), MODEL)
    for _ in range(2):
        evaluator.update(["b"], [detections((0.7, 0, CAT_B))])
    assert evaluator.compute().ap == pytest.approx(1)
    assert len(evaluator.results()) == 1


def test_results_carry_the_ids_of_the_file(tmp_path):
    evaluator = CocoEvaluator(annotation_file(tmp_path, THREE), MODEL)
    evaluator.update(["b", "a"], [detections((0.25, 0, CAT_B)), detections((0.5, 1, DOG_A), (0.75, 0, CAT_A))])
    evaluator.save_results(tmp_path / "new" / "results.json")
    assert json.loads((tmp_path / "new" / "results.json").read_text()) == [
        {"image_id": "a", "category_id": 3, "bbox": CAT_A, "score": 0.75},
        {"image_id": "a", "category_id": 7, "bbox": DOG_A, "score": 0.5},
        {"image_id": "b", "category_id": 3, "bbox": CAT_B, "score": 0.25},
    ]


def test_model_of_other_classes_is_matched_by_name(tmp_path):
    model = Categories(("horse", "Dog", "cat"), (1, 2, 3))
    evaluator = CocoEvaluator(annotation_file(tmp_path, THREE), model)
    found = [detections((0.9, 2, CAT_A), (0.8, 1, DOG_A), (0.99, 0, DOG_A)), detections((0.7, 2, CAT_B))]
    evaluator.update(["a", "b"], found)
    assert evaluator.compute().ap == pytest.approx(1)
    assert {row["category_id"] for row in evaluator.results()} == {3, 7}


@pytest.mark.parametrize(
    ("images", "found", "message"),
    [
        (["c"], [detections()], "image 'c'.*same split"),
        ([None], [detections()], "image 0 of the batch has no image_id"),
        (["a"], [detections((0.5, 2, CAT_A))], "image 'a': detections have labels from 2 to 2, but there are 2 classes"),
        (["a"], [detections((0.5, 0, CAT_A)) | {"scores": torch.ones(3)}], r"image 'a': .*not of the shapes .*\[3\].*\[1, 4\]"),
        (["a"], [detections((0.5, 0, CAT_A)) | {"labels": torch.zeros(1)}], "image 'a': labels are whole numbers, not float32"),
        (["a"], [detections((0.5, 0, CAT_A)) | {"boxes": torch.ones(1, 5)}], r"image 'a': .*not of the shapes .*\[1, 5\]"),
    ],
)
def test_detections_that_do_not_fit(tmp_path, images, found, message):
    evaluator = CocoEvaluator(annotation_file(tmp_path, THREE), MODEL)
    with pytest.raises(ValueError, match=message):
        evaluator.update(images, found)


@pytest.mark.parametrize("given", [{"labels": None}, {"boxes": [[1.0, 2.0, 3.0, 4.0]]}])
def test_detections_that_are_no_tensors(tmp_path, given):
    evaluator = CocoEvaluator(annotation_file(tmp_path, THREE), MODEL)
    with pytest.raises(TypeError, match=f"image 'a': '{next(iter(given))}' of its detections must be a tensor"):
        evaluator.update(["a"], [detections((0.5, 0, CAT_A)) | given])


def test_detections_that_are_not_finite(tmp_path):
    evaluator = CocoEvaluator(annotation_file(tmp_path, THREE), MODEL)
    with pytest.raises(FloatingPointError, match="image 'b'"):
        evaluator.update(["a", "b"], [detections(), detections((math.nan, 0, CAT_B))])


def test_nothing_was_evaluated(tmp_path):
    with pytest.raises(ValueError, match="no image was evaluated"):
        CocoEvaluator(annotation_file(tmp_path, THREE), MODEL).compute()


def test_bad_annotation_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing.json"):
        CocoEvaluator(tmp_path / "missing.json", MODEL)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken.json: not valid JSON"):
        CocoEvaluator(tmp_path / "broken.json", MODEL)
    (tmp_path / "other.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match="the key 'categories' is missing"):
        CocoEvaluator(tmp_path / "other.json", MODEL)
    with pytest.raises(ValueError, match="annotation 0: image_id is 'z', which is not among 'images'"):
        CocoEvaluator(annotation_file(tmp_path, [("z", 3, CAT_A)]), MODEL)
    with pytest.raises(ValueError, match="annotation 0: category_id is 9; known are 3, 7"):
        CocoEvaluator(annotation_file(tmp_path, [("a", 9, CAT_A)]), MODEL)
    with pytest.raises(ValueError, match="annotation 0: bbox is None"):
        CocoEvaluator(annotation_file(tmp_path, [("a", 3, None)]), MODEL)


@pytest.mark.parametrize("names", [False, True])
def test_equal_scores_of_different_images_go_by_the_id(tmp_path, names):
    """As pycocotools sorts images by id: neither the order in the file nor that of the evaluation changes anything."""
    draw = random.Random(0)
    boxes = {n: [[100 * k + draw.randint(0, 40), draw.randint(0, 80), 20, 20] for k in range(3)] for n in range(1, 13)}
    hits = {n: [draw.random() < 0.5 for _ in range(3)] for n in boxes}
    scores = {n: [draw.choice([0.5, 0.9]) for _ in range(3)] for n in boxes}
    key = {n: f"{n:02d}" if names else n for n in boxes}
    found = []
    for _ in range(3):
        order = draw.sample(list(boxes), 12)
        truth = [(key[n], 3, box) for n in order for box in boxes[n]]
        evaluator = CocoEvaluator(annotation_file(tmp_path, truth, images=[key[n] for n in order]), MODEL)
        for n in draw.sample(order, 12):
            shifted = [[x, y + 500 * (not hit)] for (x, y, *_), hit in zip(boxes[n], hits[n], strict=True)]
            corners = torch.tensor([[x, y, x + 20, y + 20] for x, y in shifted], dtype=torch.float32)
            labels = torch.full((3,), MODEL.names.index("cat"))
            evaluator.update([key[n]], [{"scores": torch.tensor(scores[n]), "labels": labels, "boxes": corners}])
        found.append(evaluator.compute().ap)
    ranked = [hit for score in (0.9, 0.5) for n in boxes for hit, own in zip(hits[n], scores[n], strict=True) if own == score]
    precision = [sum(ranked[: i + 1]) / (i + 1) for i in range(36)]
    recall = [sum(ranked[: i + 1]) / 36 for i in range(36)]
    levels = [
        max([p for p, r in zip(precision, recall, strict=True) if r >= level / 100 - 1e-9], default=0) for level in range(101)
    ]
    assert found == pytest.approx([sum(levels) / 101] * 3, abs=1e-6)
