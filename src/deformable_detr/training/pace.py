"""Holding a run to its time: steps that turn out slower or faster than was measured change their number on the way.

The learning rate is a function of the place on a course, which is as long as the steps that were planned at first. A run that
goes as planned is one place further after each step. Where the plan changes, the steps that are left share what is left of the
course: the rate never jumps, and the run ends at the end of its schedule however many steps it came to have.
"""

import logging
import time
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator

from deformable_detr.training.processes import mean_over_processes
from deformable_detr.training.time_left import TimeLeft, format_seconds

logger = logging.getLogger(__name__)

CHECKS = 20
"""So often in a run the plan is compared with the clock, beside after each evaluation."""

TOLERATED = 0.03
"""A plan that would miss the time by a smaller share of it, or by less than a step, stays."""

MOST_PASSES = 300
"""Passes over the images beyond which a run is no longer drawn out to fill its time."""

AT_THE_END = 2.0
"""Seconds after the last evaluation: writing files."""


class Plan:
    """How many steps a run has, and where on its course each of them is.

    Args:
        steps: optimiser steps, at first.
    """

    def __init__(self, steps: int) -> None:
        self.course = self.steps = steps
        self._changed_at: tuple[int, float] = (0, 0.0)  # finished steps, and their place

    def place(self, step: int) -> float:
        """Where on the course a run is after this number of steps: in [0, course]."""
        since, place = self._changed_at
        return place + (self.course - place) * (step - since) / max(1, self.steps - since)

    def change(self, step: int, steps: int) -> None:
        """Have so many steps in all, from now on, when `step` of them are done."""
        self._changed_at = step, self.place(step)
        self.steps = steps

    def state_dict(self) -> dict[str, Any]:
        """The plan as it is now, for resuming."""
        return {"course": self.course, "steps": self.steps, "changed_at": list(self._changed_at)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.course, self.steps = state["course"], state["steps"]
        self._changed_at = tuple(state["changed_at"])


class Pace:
    """Holds a run to a time, from the making of this object on.

    Args:
        plan: what is changed.
        seconds: the time. None: the number of steps is fixed, nothing is ever changed.
        most: largest number of steps.
        time_left: knows what steps and evaluations take.
        accelerator: all processes decide the same.
        clock: seconds.
    """

    def __init__(
        self,
        plan: Plan,
        seconds: float | None,
        most: int,
        time_left: TimeLeft,
        accelerator: Accelerator,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan, self.seconds, self.most = plan, seconds, most
        self.time_left, self.accelerator, self._clock = time_left, accelerator, clock
        self._began = clock()

    def check(self, step: int, evaluations: Callable[[int], int], *, evaluated: bool = False) -> None:
        """Change the plan if it is time to look at it, and if the run would end too early or too late.

        Args:
            step: finished steps.
            evaluations: how many are left of a run that has so many steps in all.
            evaluated: an evaluation was just made.
        """
        if self.seconds is None:
            return
        if not (evaluated or self._tick(step) > self._tick(step - 1)) or step >= self.plan.steps:
            return
        one, evaluation = self.time_left.seconds(1, 0), self.time_left.last_evaluation
        if one is None:
            return
        local = {"used": self._clock() - self._began, "one": one, "evaluation": evaluation or 0.0}
        means = mean_over_processes(local, self.accelerator)

        def end(steps: int) -> float:
            return means["used"] + (steps - step) * means["one"] + evaluations(steps) * means["evaluation"] + AT_THE_END

        left = self.seconds - end(self.plan.steps)
        unknown = evaluation is None and evaluations(self.plan.steps) > 0  # they may take all that seems to be left
        if abs(left) <= max(TOLERATED * self.seconds, means["one"]) or (left > 0 and unknown):
            return
        possible = range(step + 1, max(step + 1, self.most) + 1)
        steps = possible[max(0, bisect_right(possible, self.seconds, key=end) - 1)]
        if steps != self.plan.steps:
            logger.info(
                "step %d: a step takes %.2f s, so %d steps in all, in place of %d, end in the %s that are left",
                *(step, means["one"], steps, self.plan.steps, format_seconds(max(0.0, self.seconds - means["used"]))),
            )
            self.plan.change(step, steps)

    def _tick(self, step: int) -> int:
        return int(CHECKS * self.plan.place(step) / self.plan.course)

    def state_dict(self) -> dict[str, Any]:
        """The time, what is used of it, the plan, and what an evaluation takes; nothing where steps are fixed."""
        if self.seconds is None:
            return {}
        used = self._clock() - self._began
        return {"seconds": self.seconds, "used": used, "plan": self.plan.state_dict(), "evaluation": self.time_left.last_evaluation}

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """The inverse of :meth:`state_dict`, for a run with `step` finished steps.

        One that was at its end and has more time now becomes the longer run that this time would have been planned for.
        """
        if self.seconds is None or not state:
            return
        self._began = self._clock() - state["used"]
        self.plan.load_state_dict(state["plan"])
        self.time_left.last_evaluation = state["evaluation"]
        if step >= self.plan.steps and self.seconds > state.get("seconds", self.seconds):
            steps = max(step, min(self.most, int(step * self.seconds / state["used"])))
            self.plan.load_state_dict({"course": self.plan.course, "steps": steps, "changed_at": (0, 0.0)})
