"""How long a run still takes: its steps and its evaluations, each by what they took lately."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WINDOW = 200
"""Steps that the estimate looks back over: sizes differ from step to step, and other programs come and go."""

WARM_UP = 3
"""The first steps are left out: workers start, and memory is laid out."""

EVALUATED_FASTER = 3.0
"""An image is evaluated about so many times faster than it is trained on, as there is no backward pass: a guess, used only until an
evaluation was timed."""


class TimeLeft:
    """Watches a run from its first step on.

    Args:
        images_per_step: of all processes.
        images_per_evaluation: of all processes.
        clock: seconds.
    """

    def __init__(self, images_per_step: int, images_per_evaluation: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.images_per_step, self.images_per_evaluation = images_per_step, images_per_evaluation
        self._clock = clock
        self._marks: deque[float] = deque(maxlen=WINDOW + 1)
        self._steps = 0
        self._elsewhere = 0.0  # seconds that were no steps, since the beginning
        self.last_evaluation: float | None = None  # seconds

    def step(self) -> None:
        """Note that a step has ended."""
        self._steps += 1
        if self._steps >= WARM_UP:
            self._marks.append(self._clock() - self._elsewhere)

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Time an evaluation, with what belongs to it (weights, drawings); the time is not one of steps."""
        began = self._clock()
        try:
            with self.elsewhere():
                yield
        finally:
            self.last_evaluation = self._clock() - began

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Leave out what happens only once and belongs to no step."""
        began = self._clock()
        try:
            yield
        finally:
            self._elsewhere += self._clock() - began

    def seconds(self, steps: int, evaluations: int) -> float | None:
        """Estimate what is left; None as long as too few steps were seen.

        Args:
            steps: that are still to do.
            evaluations: that are still to do.
        """
        if len(self._marks) < 2:
            return None
        step = (self._marks[-1] - self._marks[0]) / (len(self._marks) - 1)
        evaluation = self.last_evaluation
        if evaluation is None:
            evaluation = step / max(self.images_per_step, 1) / EVALUATED_FASTER * self.images_per_evaluation
        return steps * step + evaluations * evaluation


def format_seconds(seconds: float) -> str:
    """Such as `2 h 05 min`, `12 min 30 s` or `9 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
