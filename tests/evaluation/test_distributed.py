"""Two processes that share the images of an evaluation."""

import json

import pytest
import torch
from torch import distributed

from deformable_detr.categories import Categories
from deformable_detr.evaluation import CocoEvaluator

from ..processes import run_two

BOX = [10, 10, 40, 40]
SHARES = ((1, 3), (2, 1))  # image 1 comes twice, as samplers do to give every process equally many; 3 is not detected


def evaluate_share(rank, annotation_file, folder):
    distributed.init_process_group("gloo")
    evaluator = CocoEvaluator(annotation_file, Categories(("cat",), (4,)))
    for image_id in SHARES[rank]:
        count = 0 if image_id == 3 else 1
        found = {"scores": torch.full((count,), 0.9), "labels": torch.zeros(count, dtype=torch.int64)}
        evaluator.update([image_id], [found | {"boxes": torch.tensor([[10.0, 10.0, 50.0, 50.0]] * count).reshape(-1, 4)}])
    evaluator.merge_processes()
    results = [row["image_id"] for row in evaluator.results()]
    (folder / f"{rank}.json").write_text(json.dumps([evaluator.compute().to_dict(), results]))
    distributed.destroy_process_group()


def test_every_image_counts_once_and_all_processes_agree(tmp_path):
    content = {
        "images": [{"id": image_id} for image_id in (1, 2, 3)],
        "categories": [{"id": 4, "name": "cat"}],
        "annotations": [{"id": i, "image_id": i, "category_id": 4, "bbox": BOX} for i in (1, 2, 3)],
    }
    annotation_file = tmp_path / "instances.json"
    annotation_file.write_text(json.dumps(content))
    run_two(evaluate_share, annotation_file, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    metrics, results = first
    assert metrics["num_images"] == 3
    assert metrics["ap"] == pytest.approx(67 / 101)  # two of three found: precision 1 up to recall 2/3
    assert results == [1, 2]
