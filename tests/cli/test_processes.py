"""Two processes share out the images and come to what one process comes to."""

import contextlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.categories import Categories
from deformable_detr.checkpoints import save_weights
from deformable_detr.cli.__main__ import main
from deformable_detr.config import Metadata
from deformable_detr.model import build_model

from ..processes import run_two


def run_all(rank, commands, output):
    with output.with_suffix(f".{rank}").open("w") as file, contextlib.redirect_stdout(file):
        assert [main(arguments) for arguments in commands] == [0] * len(commands)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    model = build_model("tiny", num_classes=2)
    metadata = Metadata(model.metadata.model, Categories(("cat", "dog"), (7, 3)), eval_short_side=80, max_long_side=112)
    return str(save_weights(tmp_path / "tiny.safetensors", model, metadata=metadata))


@pytest.fixture
def dataset(tmp_path):
    root = tmp_path / "data"
    (root / "annotations").mkdir(parents=True)
    (root / "val").mkdir()
    generator = np.random.default_rng(0)
    for index in range(5):
        Image.fromarray(generator.integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(root / "val" / f"{index}.png")
    content = {
        "images": [{"id": index, "file_name": f"{index}.png", "width": 90, "height": 60} for index in range(5)],
        "annotations": [
            {"id": index + 1, "image_id": index, "category_id": 7, "bbox": [5, 5, 80, 50], "area": 4000, "iscrowd": 0}
            for index in range(5)
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return root


def commands(weights, dataset, output):
    evaluation = [
        "evaluate",
        weights,
        str(dataset),
        "--num_workers",
        "0",
        "--device",
        "cpu",
        "--json",
        str(output / "numbers.json"),
    ]
    prediction = ["predict", weights, str(dataset / "val"), "--device", "cpu", "--threshold", "0", "--output", str(output)]
    prediction += ["--precision", "fp32"]
    report = ["--worst", "1", "--report", str(output.with_name(f"report of {output.name}"))]
    return [[*evaluation, *report, "--results", str(output / "results.json")], prediction]


@pytest.mark.slow
def test_two_processes_equal_one(weights, dataset, tmp_path):
    for arguments in commands(weights, dataset, tmp_path / "one"):
        assert main(arguments) == 0
    run_two(run_all, commands(weights, dataset, tmp_path / "two"), tmp_path / "shown")
    assert [(tmp_path / f"shown.{rank}").read_text().count("Average precision") for rank in (0, 1)] == [1, 0]
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert sorted(one) == sorted(two)
    assert len(one) == 5 + 3  # drawn images, and three JSON files
    for name in ("numbers.json", "results.json", "predictions.json"):
        assert json.loads(one[name]) == json.loads(two[name])
    reports = [json.loads((tmp_path / f"report of {name}" / "report.json").read_text()) for name in ("one", "two")]
    assert reports[0] == reports[1]
    assert (tmp_path / "report of two" / "report.html").is_file()
