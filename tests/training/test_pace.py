"""A run holds its time on a machine that becomes slower or faster: with a clock of the test's own."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from accelerate import Accelerator
from safetensors.torch import load_file

from deformable_detr.config import RunConfig
from deformable_detr.settings import asked_settings, build_config
from deformable_detr.training import trainer
from deformable_detr.training.callbacks import Callback, Run, Step
from deformable_detr.training.interruption import TrainingInterrupted
from deformable_detr.training.optimizer import build_schedule
from deformable_detr.training.pace import Pace, Plan
from deformable_detr.training.time_left import TimeLeft


@pytest.mark.parametrize("steps", [1, 7, 1269, 30_600])
def test_without_a_change_each_step_is_its_own_place(steps: int) -> None:
    plan = Plan(steps)
    assert all(plan.place(step) == step for step in range(steps + 1))


def test_steps_share_what_is_left_of_the_course() -> None:
    plan = Plan(100)
    plan.change(20, 60)  # 80 places in 40 steps
    assert [plan.place(step) for step in (20, 21, 40, 60)] == [20, 22, 60, 100]
    plan.change(40, 140)  # 40 places in 100 steps
    assert [plan.place(step) for step in (40, 45, 140)] == [60, 62, 100]
    again = Plan(1)
    again.load_state_dict(plan.state_dict())
    assert [again.place(step) for step in (40, 45, 140)] == [60, 62, 100]


class Machine:
    """Runs a plan; what a step takes depends on how much of the time has passed."""

    def __init__(self, seconds: float, step: Callable[[float], float], evaluation: float = 8.0) -> None:
        self.now, self.seconds, self.step, self.evaluation = 1000.0, seconds, step, evaluation
        self.rates: list[float] = []

    def run(self, planned: int, per_epoch: int = 25, most: int = 10**6) -> Plan:
        """Train with an evaluation after every second epoch and at the end."""
        plan, began = Plan(planned), self.now
        schedule = build_schedule(planned, schedule="cosine", warmup_steps=planned // 20)
        time_left = TimeLeft(1, 1, lambda: self.now)
        pace = Pace(plan, self.seconds, most, time_left, Accelerator(cpu=True), lambda: self.now)
        every, step = 2 * per_epoch, 0

        def evaluations(steps: int) -> int:
            return -(-steps // every) - step // every

        while step < plan.steps:
            self.rates.append(schedule(plan.place(step)))
            self.now += self.step((self.now - began) / self.seconds)
            step += 1
            time_left.step()
            pace.check(step, evaluations)
            if step % every == 0 or step == plan.steps:
                with time_left.evaluation():
                    self.now += self.evaluation
                pace.check(step, evaluations, evaluated=True)
        self.took = self.now - began
        return plan


SPEEDS = {
    "twice as fast": lambda share: 0.5,
    "half as fast": lambda share: 2.0,
    "faster after a while": lambda share: 1.0 if share < 0.3 else 0.6,
    "slower in the second half": lambda share: 1.0 if share < 0.5 else 2.5,
    "busy for a while": lambda share: 3.0 if 0.2 < share < 0.6 else 1.0,
    "slow at first": lambda share: 4.0 if share < 0.05 else 1.0,
    "by turns": lambda share: 1.0 + (int(20 * share) % 2),
}


@pytest.mark.parametrize("name", SPEEDS)
@pytest.mark.parametrize("planned", [100, 1000])
def test_the_time_is_held(name: str, planned: int, caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(planned * 1.2, SPEEDS[name])
    with caplog.at_level(logging.INFO):
        plan = machine.run(planned)
    assert machine.took == pytest.approx(machine.seconds, rel=0.15)
    assert plan.place(plan.steps) == planned
    assert f"in place of {planned}, end in the" in caplog.text
    jumps = [abs(after - before) for before, after in zip(machine.rates, machine.rates[1:], strict=False)]
    steepest = max(20, 4 * 2) / planned  # of the warm-up; of the cosine where a step is four places
    assert max(jumps) <= 1.01 * steepest
    assert machine.rates[-1] < 0.1


def test_a_run_that_goes_as_planned_stays_as_planned(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(500 + 10 * 8 + 2, lambda share: 1.0)
    with caplog.at_level(logging.INFO):
        plan = machine.run(500)
    assert plan.steps == 500
    assert all(plan.place(step) == step for step in range(501))
    assert not caplog.records


def test_more_steps_than_are_of_use_are_not_made() -> None:
    machine = Machine(1000, lambda share: 0.1)
    assert machine.run(800, most=900).steps == 900


class Second(Callback):
    """Each step takes a second of a clock; keeps the learning rates."""

    def __init__(self) -> None:
        self.now, self.rates = 0.0, []

    def on_step(self, run: Run, step: Step) -> None:
        self.now += 1
        self.rates.append(step.lr)


class Silent(Callback):
    """In place of the run's log, whose curves take longer than the training."""

    def on_train_start(self, run: Run) -> None:
        (run.folder.root / "weights").mkdir(parents=True, exist_ok=True)


@pytest.fixture
def timed(config: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., RunConfig]:
    """A run of 8 planned steps that is to take 13 seconds of a clock."""

    def timed(name: str, clock: Second, **changes) -> RunConfig:
        for part in ("Pace", "TimeLeft"):
            original = {"Pace": Pace, "TimeLeft": TimeLeft}[part]
            monkeypatch.setattr(trainer, part, partial(original, clock=lambda: clock.now))
        monkeypatch.setattr(trainer, "RunLog", lambda show: Silent())
        length = {"steps": 8, "seconds": 13.0, "evaluate_every": 1, "logger": ()}
        parts = {"optimizer": replace(config.optimizer, schedule="cosine"), "train": replace(config.train, **length)}
        return replace(config, output_dir=str(tmp_path / name), **parts, **changes)

    return timed


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_plan(timed, stop_at) -> None:
    one = Second()
    whole = trainer.train(timed("whole", one), callbacks=[one], show_progress=False)
    assert 10 <= whole.steps <= 12  # more than were planned: a second each, and 2 for the end

    two = Second()
    with pytest.raises(TrainingInterrupted, match=rf"stopped after step 9 of {whole.steps};"):
        trainer.train(timed("halves", two), callbacks=[two, stop_at(9)], show_progress=False)
    two.now += 5000  # a pause does not count
    resumed = trainer.train(timed("halves", two, resume=True), callbacks=[two], show_progress=False)

    assert resumed.steps == whole.steps
    assert two.rates == one.rates
    weights = [load_file(run.last_weights) for run in (whole, resumed)]
    assert all(value.equal(weights[1][name]) for name, value in weights[0].items())


def test_a_finished_run_that_gets_more_time_becomes_a_longer_one(timed) -> None:
    """One of 13 seconds, a second a step, resumed with 40: 2 are for the end; the rate is that of a third of the longer course."""
    clock = Second()
    run = timed("run", clock)
    done = trainer.train(run, callbacks=[clock], show_progress=False).steps
    again = replace(run, resume=True)
    assert trainer.train(again, callbacks=[clock], show_progress=False).steps == done  # with the same time it stays finished
    longer = replace(again, train=replace(run.train, seconds=40.0))
    assert 36 <= trainer.train(longer, callbacks=[clock], show_progress=False).steps <= 39
    assert clock.rates[done] > 0.7 * run.optimizer.lr
    assert clock.rates[-1] < 0.05 * run.optimizer.lr


def test_steps_that_are_asked_for_are_not_held_to_a_time(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("dataset: data\ntrain: {steps: 100, seconds: 60.0}\n")
    assert build_config(asked_settings({}, file)).train.seconds == 60
    assert build_config(asked_settings({"steps": 50}, file)).train.seconds is None
    assert build_config(asked_settings({"epochs": 2}, file)).train.seconds is None
