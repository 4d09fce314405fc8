"""The estimate against runs whose every duration is known."""

import numpy as np
import pytest

from deformable_detr.training.time_left import TimeLeft


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def run(durations, evaluation_seconds, steps_per_epoch, images=(4, 100)):
    """Play a run: (finished steps, estimate, what was really left) after every step; evaluations end the epochs."""
    clock = Clock()
    left, seen = TimeLeft(images[0], images[1], clock), []
    num_evaluations = len(durations) // steps_per_epoch
    ends = []
    for number, duration in enumerate(durations, 1):
        clock.now += duration
        left.step()
        done = (number - 1) // steps_per_epoch
        seen.append((number, left.seconds(len(durations) - number, num_evaluations - done), clock.now))
        if number % steps_per_epoch == 0:
            with left.evaluation():
                clock.now += evaluation_seconds
        ends.append(clock.now)
    return [(number, estimate, ends[-1] - now) for number, estimate, now in seen]


def test_within_15_percent_once_an_evaluation_was_timed():
    """Slow first steps, steps of different sizes, evaluations that take longer than an epoch of steps."""
    generator = np.random.default_rng(0)
    durations = [8.0, 4.0, *generator.uniform(0.5, 1.5, 598)]
    seen = run(durations, 130.0, 100)
    for number, estimate, truth in seen[100:-30]:
        assert estimate == pytest.approx(truth, rel=0.15), number


def test_before_the_first_evaluation_its_length_is_guessed_from_the_steps():
    """4 images a step of 1.2 s, 100 evaluated three times as fast: 10 s."""
    seen = run([1.2] * 300, 10.0, 100)
    for number, estimate, truth in seen[10:]:
        assert estimate == pytest.approx(truth, rel=0.01), number


def test_it_follows_a_machine_that_becomes_slower():
    seen = run([1.0] * 300 + [2.0] * 700, 0.0, 10_000)
    _, estimate, truth = seen[300 + 250]
    assert estimate == pytest.approx(truth, rel=0.01)
    assert seen[290][1] == pytest.approx(709)  # nobody could know


def test_too_early():
    left = TimeLeft(4, 100, Clock())
    for _ in range(3):
        assert left.seconds(10, 1) is None
        left.step()


def test_an_evaluation_that_fails_counts_no_step_time():
    clock = Clock()
    left = TimeLeft(1, 1, clock)
    for number in range(6):
        clock.now += 1
        left.step()
        if number == 3:
            with pytest.raises(RuntimeError), left.evaluation():
                clock.now += 100
                raise RuntimeError
    assert left.seconds(10, 0) == pytest.approx(10)
