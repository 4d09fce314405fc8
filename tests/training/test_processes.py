import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from deformable_detr.cli.__main__ import main
from deformable_detr.config import RunConfig
from deformable_detr.criterion import SetCriterion
from deformable_detr.files import write_json
from deformable_detr.structures import Predictions, Target
from deformable_detr.training import learner
from deformable_detr.training.budget import measure_speed
from deformable_detr.training.run_folder import RunFolder
from deformable_detr.training.train_step import train_step
from deformable_detr.training.trainer import train

from ..processes import run_two
from .conftest import write_split


def train_as_told(rank: int, file: Path) -> None:
    assert main(["train", "--config", str(file)]) == 0


@pytest.mark.slow
def test_two_processes_train_like_one_with_twice_the_batch(config: RunConfig, tmp_path: Path) -> None:
    """The same images make each step, gradients and box counts are averaged, both share the evaluation."""
    config = replace(
        config,
        # all that depends on the composition of a batch: statistics, dropout, padding; Adam would amplify rounding at lr 1e-3
        model=replace(config.model, freeze_batch_norm=True, dropout=0.0),
        data=replace(config.data, train_short_sides=(64,)),
        optimizer=replace(config.optimizer, lr=1e-4),
        train=replace(config.train, epochs=1, evaluate_every=1, batch_size=4),
    )
    one = train(replace(config, output_dir=str(tmp_path / "one")))

    folder = RunFolder(tmp_path / "two")
    shared = RunFolder(tmp_path / "config")
    shared.write_config(replace(config, train=replace(config.train, batch_size=2), output_dir=str(folder.root)))
    run_two(train_as_told, shared.config)

    first, second = load_file(one.last_weights), load_file(folder.last_weights)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=1e-5, msg=name)
    metrics = [
        [record for record in RunFolder(root).read_log() if record["kind"] == "evaluation"][-1]
        for root in (one.output_dir, folder.root)
    ]
    assert metrics[0]["num_images"] == metrics[1]["num_images"] == 4
    losses = [
        [record for record in RunFolder(root).read_log() if record["kind"] == "train"][-1] for root in (one.output_dir, folder.root)
    ]
    assert losses[0]["step"] == losses[1]["step"] == 2
    for name in ("loss", "loss_class", "loss_bbox_0", "loss_giou_enc", "grad_norm"):
        assert abs(losses[0][name] - losses[1][name]) < 1e-4 * abs(losses[0][name]), name


def measure_alone(rank: int, config: RunConfig, folder: Path) -> None:
    write_json(folder / f"{rank}.json", vars(measure_speed(config)))


def test_the_speed_of_two_processes_with_one_image_to_evaluate(config: RunConfig, tmp_path: Path) -> None:
    write_split(tmp_path / "data", "train", 8)
    write_split(tmp_path / "data", "val", 1)
    settings = replace(config.train, budget="1s")  # one step is timed
    run_two(measure_alone, replace(config, dataset=str(tmp_path / "data"), train=settings), tmp_path)
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert one["evaluation"] == two["evaluation"] > 0
    assert one["step"] == two["step"] > 0


class Breaking(SetCriterion):
    """Breaks in the second process at its second call."""

    calls = 0

    def forward(self, predictions: Predictions, targets: Sequence[Target], num_boxes: Tensor | None = None) -> dict[str, Tensor]:
        losses = super().forward(predictions, targets, num_boxes)
        self.calls += 1
        broken = os.environ["RANK"] == "1" and self.calls == 2
        return losses | {"loss_bbox": losses["loss_bbox"] * float("nan")} if broken else losses


def train_breaking(rank: int, config: RunConfig) -> None:
    """Step 2 by its loss, step 3 by an image, whose diagnosis ends before that of the sound image in the other process."""
    learner.SetCriterion = Breaking  # type: ignore[misc]
    steps = iter(range(10**6))

    def with_broken_image(model, criterion, optimizer, batches, *others):
        if next(steps) == 2 and rank == 1:
            batches[0][0].images[0, 0, 3, 3] = float("nan")
        return train_step(model, criterion, optimizer, batches, *others)

    learner.train_step = with_broken_image
    train(config)


def test_all_processes_leave_out_the_steps_that_break_in_one(config: RunConfig, tmp_path: Path) -> None:
    settings = replace(config.train, batch_size=1, epochs=1, evaluate_every=0, log_every=1, on_non_finite="skip")
    config = replace(config, output_dir=str(tmp_path / "run"), train=settings)
    run_two(train_breaking, config)
    folder = RunFolder(tmp_path / "run")
    assert [record["step"] for record in folder.read_log() if record["kind"] == "train"] == [1, 4]
    assert sorted(path.name for path in folder.non_finite.iterdir()) == ["step-00000001.pt", "step-00000002.pt"]
    assert all(torch.isfinite(value).all() for value in load_file(folder.last_weights).values())
