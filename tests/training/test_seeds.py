"""Several seeds: a table of means and spreads, and runs that go on where they stopped."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deformable_detr.config import RunConfig
from deformable_detr.data.scenes import generate_scenes
from deformable_detr.settings import read_config
from deformable_detr.training import TrainingInterrupted, TrainResult, train_seeds
from deformable_detr.training.budget import Speed
from deformable_detr.training.recipe import plan_run

APS = {0: 0.5, 1: 0.6, 7: 0.55}


class Runs:
    """Trainings that do nothing: each leaves a state, and gives the AP of its seed."""

    def __init__(self, interrupted: int | None = None) -> None:
        self.interrupted, self.done = interrupted, []

    def __call__(self, config: RunConfig, *_: Any, **__: Any) -> TrainResult:
        seed, root = config.train.seed, Path(config.output_dir)
        self.done.append((seed, config.resume))
        (root / "state").mkdir(parents=True, exist_ok=True)
        (root / "state" / "step-5.pt").touch()
        if seed == self.interrupted:
            raise TrainingInterrupted("stopped")
        metrics: dict[str, float | None] = {"ap": APS[seed], "ap50": None}
        return TrainResult(root, metrics, metrics, root / "best", root / "last", 5)


@pytest.fixture
def run(config: RunConfig, tmp_path: Path) -> RunConfig:
    return replace(config, output_dir=str(tmp_path / "runs"))


def test_means_and_spreads(run: RunConfig, tmp_path: Path) -> None:
    result = train_seeds(run, [0, 1, 7], train_one=Runs())
    assert result.mean("ap") == pytest.approx(0.55)
    assert result.spread("ap") == pytest.approx(0.05)  # (.05² + .05² + 0) / 2 = .05²
    assert (result.mean("ap50"), result.spread("ap50")) == (None, None)
    record = json.loads((tmp_path / "runs" / "seeds.json").read_text())
    assert record["seeds"]["7"] == {"ap": 0.55, "ap50": None}
    assert (record["mean"]["ap"], record["spread"]["ap"]) == (pytest.approx(0.55), pytest.approx(0.05))
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(result.table())
    assert "0.550 ± 0.050" in console.export_text()


def test_the_same_command_goes_on(run: RunConfig) -> None:
    first, second = Runs(interrupted=1), Runs()
    with pytest.raises(TrainingInterrupted):
        train_seeds(run, [0, 1, 7], train_one=first)
    assert train_seeds(run, [0, 1, 7], train_one=second).values("ap") == [0.5, 0.6, 0.55]
    assert first.done == [(0, False), (1, False)]
    assert second.done == [(0, True), (1, True), (7, False)]


def test_the_runs_keep_their_length(run: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    """Another number of steps, as a budget gives when it is timed again, is that of the first time; what is free is new."""
    first = replace(run, train=replace(run.train, steps=50, seconds=60.0))
    train_seeds(first, [0], train_one=Runs())
    again = replace(run, train=replace(run.train, steps=77, seconds=58.5, log_every=9))
    train_seeds(again, [0, 1], train_one=Runs())
    kept = read_config(Path(run.output_dir) / "config.yaml").train
    assert (kept.steps, kept.seconds, kept.log_every) == (50, 60, 9)
    assert "as long as the first: train.seconds was 60.0, is 58.5; train.steps was 50, is 77" in caplog.text


def test_a_budget_with_a_recipe_that_is_timed_again(tmp_path: Path) -> None:
    """The recipe makes warm-up, average and input size depend on the steps: they are those of the first time, too."""
    dataset = generate_scenes(tmp_path / "data", train=12, val=4, image_size=64)
    asked = {"dataset": dataset, "recipe": "small-data", "budget": "20m", "output_dir": tmp_path / "runs"}
    runs, used = [plan_run(asked, measure=lambda _, time=time: Speed(time, 10.0, 6))[0] for time in (1.0, 1.06)], []
    assert runs[0].optimizer.warmup_steps != runs[1].optimizer.warmup_steps
    assert runs[0].train.ema_decay != runs[1].train.ema_decay
    runs[1] = replace(runs[1], data=replace(runs[1].data, eval_short_side=128, train_short_sides=(128,)))
    for run in runs:
        train_seeds(run, [0], train_one=lambda config, *_, **__: used.append(config) or Runs()(config))
    assert used[1] == replace(used[0], resume=True)
    with pytest.raises(ValueError, match=r"other settings: .*optimizer\.lr was"):
        train_seeds(replace(runs[1], optimizer=replace(runs[1].optimizer, lr=0.5)), [0], train_one=Runs())


OTHER = {
    r"optimizer\.lr was 0\.001, is 0\.5": lambda run: replace(run, optimizer=replace(run.optimizer, lr=0.5)),
    r"train\.epochs was 2, is 9": lambda run: replace(run, train=replace(run.train, epochs=9)),
    "dataset was .*, is .*/other": lambda run: replace(run, dataset="other"),
    "weights was None, is .*/a.pth": lambda run: replace(run, weights="a.pth"),
}


@pytest.mark.parametrize("message", OTHER)
def test_other_settings_are_another_folder(run: RunConfig, message: str) -> None:
    train_seeds(run, [0], train_one=Runs())
    with pytest.raises(ValueError, match=f"other settings: {message}"):
        train_seeds(OTHER[message](run), [0], train_one=Runs())


@pytest.mark.parametrize("seeds", [[], [3, 3]])
def test_seeds_that_make_no_sense(run: RunConfig, seeds: list[int]) -> None:
    with pytest.raises(ValueError, match="different numbers"):
        train_seeds(run, seeds, train_one=Runs())


def test_a_folder_with_a_single_run(run: RunConfig) -> None:
    root = Path(run.output_dir)
    root.mkdir()
    (root / "weights").mkdir()
    with pytest.raises(FileExistsError, match="holds files already"):
        train_seeds(run, [0], train_one=Runs())
