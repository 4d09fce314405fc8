"""A dataset of eight images with coloured rectangles, and a run small enough for a test."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deformable_detr.config import DataConfig, OptimizerConfig, RunConfig, TrainConfig
from deformable_detr.presets import model_preset
from deformable_detr.training import run_log
from deformable_detr.training.callbacks import Callback, Run, Step


class StopAt(Callback):
    """Ctrl-C after this step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, run: Run, step: Step) -> None:
        if step.step == self.step:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="session")
def stop_at() -> type[StopAt]:
    return StopAt


COLORS = {7: (220, 40, 40), 3: (40, 40, 220)}  # by category id


def write_split(root: Path, split: str, count: int, size: int = 64, seed: int = 0) -> None:
    """Images with two rectangles each, one per quarter of the image, and their COCO file."""
    rng = np.random.default_rng(seed)
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for number in range(count):
        canvas = np.full((size, size, 3), 190, np.uint8)
        for corner in rng.permutation(4)[:2]:
            width, height = (int(side) for side in rng.integers(14, 28, 2))
            left, top = (int(corner) % 2 * size // 2 + 2, int(corner) // 2 * size // 2 + 2)
            category = int(rng.choice(list(COLORS)))
            canvas[top : top + height, left : left + width] = COLORS[category]
            box = {"bbox": [left, top, width, height], "area": width * height, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": 100 + number, "category_id": category, **box})
        Image.fromarray(canvas).save(root / split / f"{number}.png")
        images.append({"id": 100 + number, "file_name": f"{number}.png", "width": size, "height": size})
    categories = [{"id": 3, "name": "blue"}, {"id": 7, "name": "red"}]
    record = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(record))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "set"
    write_split(root, "train", 8)
    write_split(root, "val", 4, seed=1)
    return root


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the curves of a run takes longer than training it; the one whose folder is looked at (test_trainer.py) has them."""
    for name in ("draw_loss_curve", "draw_metrics_curve"):
        monkeypatch.setattr(run_log, name, lambda path, rows: None)


@pytest.fixture(scope="session")
def config(dataset: Path) -> RunConfig:
    """Two epochs of four steps; tests replace `output_dir`."""
    return RunConfig(
        dataset=str(dataset),
        preset="tiny",
        output_dir="to be replaced",
        model=replace(model_preset("tiny"), num_encoder_layers=1, num_decoder_layers=2, dropout=0.1),
        data=DataConfig(
            train_short_sides=(48, 64), crop_short_sides=(), eval_short_side=64, max_long_side=64, transpose=0.5, num_workers=0
        ),
        optimizer=OptimizerConfig(lr=1e-3, backbone_lr_scale=1.0, sampling_lr_scale=1.0, clip_grad_norm=0.5),
        train=TrainConfig(epochs=2, batch_size=2, log_every=2, evaluate_every=2, device="cpu"),
    )
