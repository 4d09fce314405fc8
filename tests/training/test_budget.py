"""A time in place of a number of steps: with a clock of the test's own, so that nothing depends on this machine."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.config import RunConfig, TrainConfig
from deformable_detr.data.scenes import generate_scenes
from deformable_detr.settings import asked_settings, build_config, by_full_name
from deformable_detr.training.budget import MOST_PASSES, START, Speed, fit, fit_run, measure_speed, parse_budget
from deformable_detr.training.learner import Learner
from deformable_detr.training.recipe import plan_run
from deformable_detr.training.time_left import WARM_UP

SIZE_256 = 256 * 256


class Machine:
    """Takes a second for a step at 256 pixels, in proportion to the pixels at others; measuring costs 20 seconds."""

    def __init__(self, speed: float = 1.0, evaluation: float = 10.0) -> None:
        self.now, self.speed, self.evaluation, self.measured = 0.0, speed, evaluation, []

    def measure(self, config: RunConfig) -> Speed:
        side = config.data.eval_short_side
        self.measured.append(side)
        self.now += 20
        return Speed(self.speed * side**2 / SIZE_256, self.evaluation, 40, took=20.0)


def run_of(time: str, side: int = 256) -> RunConfig:
    config = RunConfig(dataset="", train=TrainConfig(budget=time))
    return replace(config, data=replace(config.data, eval_short_side=side))


@pytest.mark.parametrize(
    ("text", "seconds"), [("30m", 1800), ("1h30m", 5400), ("90s", 90), ("1.5h", 5400), ("1h 5m 2s", 3902), ("10min", 600)]
)
def test_times(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "soon", "0m", "1m2h", "1.2.3m", "-5m"])
def test_no_times(text: str) -> None:
    with pytest.raises(ValueError, match="is no time; write 30m"):
        parse_budget(text)


@pytest.mark.parametrize("seconds", [120, 600, 1800, 7200])
@pytest.mark.parametrize("step", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("evaluation", [0.0, 5.0, 30.0])
def test_a_run_fills_its_time(seconds: float, step: float, evaluation: float) -> None:
    found = fit(seconds, Speed(step, evaluation, 40))
    between = (-(-found.steps // 40) - 1) // found.evaluate_every  # evaluations after whole epochs, and one at the end
    taken = START + found.steps * step + (between + 1) * evaluation
    assert taken == pytest.approx(found.seconds)
    assert taken <= seconds
    assert taken > 0.9 * seconds or found.steps == MOST_PASSES * 40
    assert between * evaluation <= 0.1 * seconds


def test_a_fast_machine_is_not_kept_busy_for_nothing() -> None:
    assert fit(36_000, Speed(0.01, 1.0, 40)).steps == MOST_PASSES * 40


@pytest.mark.parametrize(("time", "sides"), [("25m", [256]), ("8m", [256, 192]), ("3h", [256, 320]), ("3m", [256, 128])])
def test_the_images_become_as_large_as_the_time_allows(time: str, sides: list[int]) -> None:
    machine = Machine()
    found, config = fit_run(run_of(time), lambda side: run_of(time, side), machine.measure)
    assert machine.measured == sides
    assert config.data.eval_short_side == sides[-1]
    assert found.seconds + machine.now == pytest.approx(parse_budget(time), rel=0.1)


def test_a_size_that_was_asked_for_stays() -> None:
    machine = Machine()
    assert fit_run(run_of("8m"), None, machine.measure)[1] == run_of("8m")
    assert machine.measured == [256]


def test_a_time_in_which_nothing_can_be_learned() -> None:
    machine = Machine(evaluation=60)
    with pytest.raises(ValueError, match=r"too short here: one step takes 1\.0 s and an evaluation 60 s"):
        fit_run(run_of("1m"), None, machine.measure)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return generate_scenes(tmp_path / "data", train=12, val=4, image_size=64)


def settings(options: Mapping[str, Any], measure: Any = None) -> RunConfig:
    return plan_run(options, measure=measure)[0]


def test_the_recipe_is_that_of_the_steps_that_fit(dataset: Path) -> None:
    config = settings({"dataset": dataset, "recipe": "small-data", "budget": "20m"}, lambda _: Speed(1.0, 10.0, 6))
    assert config.train.budget is None  # what is kept of it are the steps as planned, and the time to which they are held
    assert config.train.seconds == 1200
    length = {"steps": config.train.steps, "seconds": 1200.0, "evaluate_every": config.train.evaluate_every}
    assert settings({"dataset": dataset, "recipe": "small-data", **length}) == config
    assert config.train.ema_decay == pytest.approx(1 - 10 / (config.train.steps or 0), abs=1e-5)


def test_a_budget_without_a_recipe_is_a_number_of_steps(dataset: Path) -> None:
    asked = {"dataset": dataset, "preset": "tiny", "lr": 1e-3, "budget": "5m"}
    config = settings(asked, lambda _: Speed(0.1, 1.0, 6))
    length = {"budget": None, "steps": config.train.steps, "seconds": 300.0, "evaluate_every": config.train.evaluate_every}
    assert settings({**asked, **length}) == config


def test_two_lengths_are_one_too_many(dataset: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.budget and train\.epochs both say"):
        settings({"dataset": dataset, "recipe": "small-data", "budget": "5m", "epochs": 3})


@pytest.mark.parametrize("length", [{"epochs": 7}, {"steps": 70}, {"budget": "1h"}, {"steps": 70, "seconds": 60.0}])
def test_the_length_that_options_give_replaces_that_of_a_file(dataset: Path, tmp_path: Path, length: dict[str, Any]) -> None:
    """Every `config.yaml` holds epochs, which a budget beside it was refused for."""
    file = tmp_path / "config.yaml"
    file.write_text(f"dataset: {dataset}\npreset: tiny\nrecipe: none\ntrain: {json.dumps(length)}\n")

    def course(**options: Any) -> tuple[int, int | None, float | None, str | None]:
        train = plan_run(options, file, measure=lambda _: Speed(1.0, 1.0, 6))[0].train
        return train.epochs, train.steps, train.seconds, train.budget

    assert course(epochs=3) == (3, None, None, None)
    assert course(steps=30) == (50, 30, None, None)
    _, steps, *held = course(budget="5m")
    assert 200 < (steps or 0) < 300  # a second each, and evaluations
    assert held == [300.0, None]
    assert course(steps=30, seconds=9.0) == (50, 30, 9.0, None)


@pytest.mark.parametrize(("budget", "steps"), [(None, 13), ("1m40s", 10), ("10s", 1)])
def test_real_steps_are_timed(dataset: Path, budget: str | None, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that strikes at each look: a second from step to step, whatever they took. More than 12 seconds are not needed,
    nor more than a tenth of the budget."""
    made: list[int] = []

    def step(learner: Learner, batches: Any, number: int, real: Any = Learner.step) -> Any:
        made.append(number)
        assert learner.network.encoder.gradient_checkpointing  # as in the run
        return real(learner, batches, number)

    monkeypatch.setattr(Learner, "step", step)
    ticks = iter(range(1000))
    options = {
        **{"dataset": dataset, "preset": "tiny", "ema_decay": 0.9, "num_workers": 0, "device": "cpu", "eval_short_side": 64},
        **{"train_short_sides": [64], "crop_short_sides": [], "max_long_side": 64, "budget": budget},
        "gradient_checkpointing": True,
    }
    speed = measure_speed(build_config(asked_settings(by_full_name(options))), clock=lambda: float(next(ticks)))
    assert len(made) == WARM_UP + steps
    assert speed.step == 1.0
    assert speed.evaluation > 0
    assert speed.steps_per_epoch == 6
