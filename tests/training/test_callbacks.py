"""What callbacks are told, and what they may do: end a run, draw random numbers, send everything to experiment loggers."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deformable_detr.config import RunConfig
from deformable_detr.evaluation.metrics import Metrics
from deformable_detr.training import Callback, Run, Samples, Step, TrainingInterrupted, trackers, train
from deformable_detr.training.run_folder import RunFolder


class Diary(Callback):
    """Writes down what it is told, disturbs the random generators, and leaves the network as a prediction with it would."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_train_start(self, run: Run) -> None:
        torch.rand(3)
        self.lines.append(f"start at {run.position.step} of {run.total_steps}")

    def on_step(self, run: Run, step: Step) -> None:
        self.lines.append(f"step {step.step}{' with means' if step.means else ''}")
        assert step.losses["loss"] > 0
        run.result.eval()
        if step.step % 2:
            run.network.train()  # all of it, with the batch norms of what is frozen
        torch.rand(3)

    def on_evaluation_step(self, run: Run, done: int, total: int) -> None:
        assert run.state == "evaluating"
        assert done <= total == 4

    def on_evaluation(self, run: Run, metrics: Metrics) -> None:
        torch.rand(3)
        self.lines.append(f"evaluation {len(run.history)}, {run.history[-1]['ap'] == metrics.ap}")

    def on_checkpoint(self, run: Run, paths: Sequence[Path]) -> None:
        assert all(path.is_file() for path in paths)
        torch.rand(3)
        self.lines.append(f"saved {' '.join(path.stem for path in paths)}")

    def on_train_end(self, run: Run) -> None:
        self.lines.append(run.state)


@pytest.mark.slow
def test_a_callback_is_told_everything_in_order_and_changes_nothing(config: RunConfig, tmp_path: Path) -> None:
    """Four steps of an epoch, means every second one; dropout and augmentation draw on after what the diary draws."""
    diary, settings = Diary(), replace(config.train, evaluate_every=1)
    config = replace(config, optimizer=replace(config.optimizer, freeze=("backbone",)))
    runs = [replace(config, output_dir=str(tmp_path / name), train=settings) for name in ("watched", "alone")]
    watched, alone = train(runs[0], callbacks=[diary]), train(runs[1])
    steps = ["step 1", "step 2 with means", "step 3", "step 4 with means"]
    assert diary.lines[:8] == [
        *("start at 0 of 8", *steps),
        *("saved step-00000004", "evaluation 1, True", "saved last best step-00000004"),
    ]
    assert diary.lines[-1] == "finished"
    weights = load_file(alone.last_weights)
    assert all(torch.equal(value, weights[name]) for name, value in load_file(watched.last_weights).items())


class StopAfter(Callback):
    def on_step(self, run: Run, step: Step) -> None:
        if step.step == 2:
            run.stop("two are enough")


def test_a_callback_ends_a_run_which_is_then_evaluated_and_saved(config: RunConfig, tmp_path: Path) -> None:
    diary = Diary()
    result = train(replace(config, output_dir=str(tmp_path / "run")), callbacks=[StopAfter(), diary])
    assert (result.steps, [row["step"] for row in result.history]) == (2, [2])
    assert result.best_weights.is_file()
    assert diary.lines[-1] == "finished"


class Fails(Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_step(self, run: Run, step: Step) -> None:
        raise self.error


@pytest.mark.parametrize(("error", "state"), [(RuntimeError("no"), "failed"), (TrainingInterrupted("no"), "stopped")])
def test_the_end_is_told_whatever_happens(config: RunConfig, tmp_path: Path, error: BaseException, state: str) -> None:
    diary = Diary()
    with pytest.raises(type(error), match="no"):
        train(replace(config, output_dir=str(tmp_path / "run")), callbacks=[diary, Fails(error)])
    assert diary.lines == ["start at 0 of 8", "step 1", state]


class FailsAtTheStart(Callback):
    def on_train_start(self, run: Run) -> None:
        raise RuntimeError("no account")


def test_a_run_that_cannot_begin_has_failed(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no account"):
        train(replace(config, output_dir=str(tmp_path / "run")), callbacks=[FailsAtTheStart()])
    assert json.loads((tmp_path / "run" / "progress.json").read_text())["state"] == "failed"


def draw(model, dataset, folder: Path) -> None:
    Image.fromarray(np.full((4, 6, 3), 200, dtype=np.uint8)).save(folder / "overview.png")


def test_tensorboard_gets_curves_drawings_and_the_best_metrics(config: RunConfig, tmp_path: Path) -> None:
    result = train(replace(config, output_dir=str(tmp_path / "run")), callbacks=[Samples(draw)])
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    records = [record for record in RunFolder(result.output_dir).read_log() if record["kind"] == "train"]
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(record["step"], pytest.approx(record["loss"], rel=1e-6)) for record in records]
    assert events.Scalars("best/ap")[0].value == pytest.approx(result.best_metrics["ap"])
    (drawing,) = events.Images("samples")
    assert (drawing.step, drawing.width, drawing.height) == (8, 6, 4)


def test_a_logger_that_is_not_installed_is_named_before_anything_is_written(config: RunConfig, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "comet_ml" else True)
    run = replace(config, output_dir=str(tmp_path / "run"), train=replace(config.train, logger=("tensorboard", "comet_ml")))
    with pytest.raises(ImportError, match="logger comet_ml is not installed: pip install comet-ml"):
        train(run)
    assert not (tmp_path / "run").exists()


def test_no_logger_at_all(config: RunConfig, tmp_path: Path) -> None:
    train(replace(config, output_dir=str(tmp_path / "run"), train=replace(config.train, steps=1, logger=())))
    assert not (tmp_path / "run" / "tensorboard").exists()
