"""Whole evaluations with a model that knows the answers."""

import json

import pytest
import torch
from torch import nn

from deformable_detr.categories import Categories
from deformable_detr.evaluation import evaluate
from deformable_detr.structures import ImageBatch, Predictions, Target

CATEGORIES = Categories(("cat", "dog"), (3, 7))
SIZE = (100, 200)  # height, width
BOXES = {1: [[10.0, 10.0, 40.0, 40.0]], 2: [[0.0, 0.0, 150.0, 90.0], [20.0, 5.0, 10.0, 30.0]], 5: []}  # xywh
LABELS = {1: [0], 2: [1, 0], 5: []}


class Oracle(nn.Module):
    """Predicts what `answers` says (cxcywh and labels per image id), with three queries, and remembers how it was called."""

    def __init__(self, targets):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.answers = {target.image_id: target for target in targets}
        self.seen_training, self.seen_autocast = [], []

    def forward(self, batch):
        self.seen_training.append(self.training)
        self.seen_autocast.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        logits = torch.full((1, len(batch), 3, 2), -8.0)
        boxes = torch.full((1, len(batch), 3, 4), 0.5)
        for row, image_id in enumerate(batch.image_ids):
            answer = self.answers[image_id]
            for query, (box, label) in enumerate(zip(answer.boxes, answer.labels, strict=True)):
                logits[0, row, query, label] = 4.0
                boxes[0, row, query] = box
        return Predictions(logits, boxes)


def targets():
    height, width = SIZE
    found = []
    for image_id, boxes in BOXES.items():
        box = torch.tensor(boxes).reshape(-1, 4)
        box = torch.cat((box[:, :2] + box[:, 2:] / 2, box[:, 2:]), dim=1) / torch.tensor([width, height, width, height])
        found.append(Target(box, torch.tensor(LABELS[image_id], dtype=torch.int64), image_id, SIZE))
    return found


def loader(which):
    """Batches of one image and a time, smaller than the original, as after resizing."""
    return [(ImageBatch.from_images([torch.zeros(3, 50, 100)], [target.image_id]), [target]) for target in which]


@pytest.fixture
def annotation_file(tmp_path):
    content = {
        "images": [{"id": image_id, "height": SIZE[0], "width": SIZE[1], "file_name": "-"} for image_id in BOXES],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {"id": 10 * image_id + row, "image_id": image_id, "category_id": CATEGORIES.ids[label], "bbox": box, "iscrowd": 0}
            for image_id in BOXES
            for row, (box, label) in enumerate(zip(BOXES[image_id], LABELS[image_id], strict=True))
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path


def test_right_answers_give_one(annotation_file, tmp_path):
    model, done = Oracle(targets()), []
    model.train()
    results_file = tmp_path / "results.json"
    metrics = evaluate(
        model, loader(targets()), CATEGORIES, annotation_file, top_k=3, results_file=results_file, progress=done.append
    )
    assert metrics.ap == pytest.approx(1)
    assert metrics.num_images == 3
    assert done == [1, 2, 3]
    assert model.seen_training == [False] * 3 and model.training
    best = [row for row in json.loads(results_file.read_text()) if row["score"] > 0.5]
    assert [(row["image_id"], row["category_id"]) for row in best] == [(1, 3), (2, 7), (2, 3)]
    assert best[1]["bbox"] == pytest.approx([0, 0, 150, 90], abs=0.01)


def test_part_of_the_images(annotation_file):
    metrics = evaluate(Oracle(targets()), loader(targets()[:1]), CATEGORIES, annotation_file)
    assert (metrics.ap, metrics.num_images) == (pytest.approx(1), 1)


def test_wrong_classes_give_zero(annotation_file):
    swapped = [Target(t.boxes, 1 - t.labels, t.image_id, t.image_size) for t in targets()]
    assert evaluate(Oracle(swapped), loader(targets()), CATEGORIES, annotation_file, top_k=2).ap50 < 0.1


def test_precision_reaches_the_forward_pass(annotation_file):
    model = Oracle(targets())
    evaluate(model, loader(targets()), CATEGORIES, annotation_file, precision="bf16", device="cpu")
    assert model.seen_autocast == [torch.bfloat16] * 3


def test_training_mode_comes_back_after_an_error(annotation_file):
    model = Oracle(targets())
    sizeless = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), image_id=5)
    with pytest.raises(ValueError, match="image 5: its target has no image_size"):
        evaluate(model, loader([sizeless]), CATEGORIES, annotation_file)
    assert model.training


def test_wrong_arguments(annotation_file):
    with pytest.raises(ValueError, match="unknown precision 'int8'"):
        evaluate(Oracle([]), [], CATEGORIES, annotation_file, precision="int8")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="no image was evaluated"):
        evaluate(Oracle([]), [], CATEGORIES, annotation_file)


@pytest.mark.parametrize("option", [{"top_k": True}, {"top_k": 2.5}, {"nms_iou": True}, {"nms_iou": "0.5"}])
def test_options_that_are_no_numbers(annotation_file, option):
    with pytest.raises(TypeError, match=f"{next(iter(option))} must be a"):
        evaluate(Oracle(targets()), loader(targets()), CATEGORIES, annotation_file, **option)
