"""Warnings while training: what the logged numbers say is going wrong, each warning once."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

logger = logging.getLogger(__name__)

FEW_STEPS = 300
"""Below this number of steps an AP of 0 is usual for a model whose transformer starts at random."""

NO_AP = 1e-3
"""AP50 below this counts as none."""

FOUND_OTHERS = 0.1
"""A class without any hit is worth a word only once the detector as a whole has an AP50 above this."""

DIVERGED = 2.0
"""The mean loss over a log interval against the best one before."""


class Advisor:
    """Watches the losses and evaluations of a run and says, once each, what looks wrong and what to do.

    Args:
        total_steps: of the run.
    """

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self._lowest_loss = math.inf
        self._said: dict[str, str] = {}

    @property
    def said(self) -> list[str]:
        """Everything so far."""
        return list(self._said.values())

    def losses(self, step: int, means: Mapping[str, float]) -> None:
        """Look at the mean losses of a log interval.

        Args:
            step: finished steps.
            means: by name; `loss` and `grad_norm` are looked at.
        """
        loss = means["loss"]
        if loss > DIVERGED * self._lowest_loss:
            self._say(
                "diverges",
                f"the loss diverges: {loss:.2f} at step {step}, it was {self._lowest_loss:.2f} before. "
                "Lower optimizer.lr (a third), or set optimizer.warmup_steps; the best weights so far are kept",
            )
        self._lowest_loss = min(self._lowest_loss, loss)

    def evaluation(self, history: Sequence[Mapping[str, Any]], per_class: Sequence[Mapping[str, Any]]) -> None:
        """Look at the evaluations so far.

        Args:
            history: one row per evaluation, with `step` and `ap50`.
            per_class: `name`, `ap50` and `num_objects` of each class at the last one.
        """
        ap50 = [row["ap50"] for row in history if row["ap50"] is not None]
        if not ap50:  # nothing to find
            return
        late = history[-1]["step"] >= max(FEW_STEPS, self.total_steps // 4)
        if late and len(ap50) >= 2 and max(ap50) < NO_AP:
            self._say(
                "no ap",
                f"AP50 is still 0 after {history[-1]['step']} steps. Usual causes, likeliest first: too few steps for a network "
                "that starts at random (start from a detector: --weights, or use --recipe small-data), boxes in another format "
                "than the file says (deformable-detr doctor DATA, deformable-detr preview DATA), a learning rate that is too high",
            )
        if late and ap50[-1] >= FOUND_OTHERS:
            never = [entry["name"] for entry in per_class if entry["num_objects"] and not entry["ap50"]]
            for name in never:
                self._say(
                    f"class {name}",
                    f"not one object of the class {name!r} has been found, while others are (AP50 {ap50[-1]:.2f}). "
                    "It may be too rare, too small for the input size, or named differently in the splits: deformable-detr doctor",
                )

    def _say(self, key: str, text: str) -> None:
        if key not in self._said:
            self._said[key] = text
            logger.warning("%s", text)
