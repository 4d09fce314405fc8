"""What goes on beside the steps of a run: the hooks that it calls, and the callbacks for sample images and early stopping."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from deformable_detr.config import RunConfig
from deformable_detr.data.coco import CocoDataset
from deformable_detr.evaluation.metrics import Metrics
from deformable_detr.model import DeformableDETR
from deformable_detr.training.learner import Learner
from deformable_detr.training.pace import Plan
from deformable_detr.training.preparation import RunData
from deformable_detr.training.result import Position
from deformable_detr.training.run_folder import RunFolder, files_are_a_bonus
from deformable_detr.training.time_left import TimeLeft
from deformable_detr.training.validation import Validation


@dataclass(frozen=True)
class Step:
    """A finished optimiser step."""

    step: int
    """Its number in the run, from 1."""

    epoch: int
    """The epoch it belongs to, from 1."""

    losses: Mapping[str, float]
    """Of this step in this process: `loss` is the weighted sum, beside it `grad_norm` and the single terms."""

    means: Mapping[str, float] | None
    """Every `train.log_every` steps: the same numbers over the steps since, in all processes. Otherwise None."""

    lr: float
    """Learning rate of the first parameter group."""

    images_per_second: float
    """Of all processes together, since the last `means`."""


class Run:
    """What a callback sees of the run; to look at, not to change."""

    config: RunConfig
    """Every setting, as used."""

    folder: RunFolder
    """Paths of the run's files."""

    data: RunData
    """The splits `train` and `val` (None: no evaluation)."""

    accelerator: Accelerator
    """Device and processes; `accelerator.is_main_process` in one of them."""

    network: DeformableDETR
    """What is trained."""

    position: Position
    """Finished steps and the present epoch, from 0."""

    state: str = "training"
    """`training`, `evaluating`, and at the end `finished`, `stopped` (from outside) or `failed`."""

    stop_reason: str | None = None
    """What :meth:`stop` was called with."""

    steps_per_epoch: int
    """Optimiser steps of one pass over the images."""

    learner: Learner
    plan: Plan
    time_left: TimeLeft
    validation: Validation

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run; a budget may change it on the way."""
        return self.plan.steps

    @property
    def total_epochs(self) -> int:
        """Its epochs, the last one perhaps not whole."""
        return -(-self.total_steps // self.steps_per_epoch)

    @property
    def result(self) -> DeformableDETR:
        """What is evaluated and saved: the EMA weights where there are any."""
        return self.learner.result

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row per evaluation: step, epoch, lr, train_loss and the metrics."""
        return self.validation.history

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the history with the highest AP."""
        return self.validation.best

    def seconds_left(self) -> float | None:
        """Until the end of the run; None: not known yet."""
        return self.time_left.seconds(self.total_steps - self.position.step, self.evaluations_left(self.total_steps))

    def evaluations_left(self, total_steps: int) -> int:
        """How many evaluations are still due if the run has so many steps in all."""
        return self.validation.count(self.position.epoch, -(-total_steps // self.steps_per_epoch))

    def stop(self, reason: str) -> None:
        """End the run after this step: it is evaluated and saved as at its end. One process is enough."""
        self.stop_reason = self.stop_reason or reason


class Callback:
    """Hooks that do nothing: a callback overrides those it needs, and `train(config, callbacks=[...])` takes it.

    All are called in every process of the run, in the order of the list; `on_train_end` in the reverse order. They do not
    change the run: random numbers go on as without them, and steps are made in training mode whatever a callback sets.
    """

    def on_train_start(self, run: Run) -> None:
        """Before the first step, also of a run that goes on."""

    def on_step(self, run: Run, step: Step) -> None:
        """After every optimiser step whose numbers were finite."""

    def on_evaluation_step(self, run: Run, done: int, total: int) -> None:
        """After every batch of an evaluation: images done and in all, of this process."""

    def on_evaluation(self, run: Run, metrics: Metrics) -> None:
        """After an evaluation; `run.history[-1]` is its row."""

    def on_checkpoint(self, run: Run, paths: Sequence[Path]) -> None:
        """After the state was saved; at the end of an epoch the weights are among the files, too."""

    def on_train_end(self, run: Run) -> None:
        """After the last step, or what ended the run before; `run.state` says which."""


class Samples(Callback):
    """Draws predictions after every evaluation.

    Args:
        draw: takes the evaluated model, the validation split and a folder, the run's `samples/`; passed in, because training does
            not import visualization.
    """

    def __init__(self, draw: Callable[[DeformableDETR, CocoDataset, Path], None]) -> None:
        self.draw = draw

    def on_evaluation(self, run: Run, metrics: Metrics) -> None:
        """Draw in the first process."""
        if run.accelerator.is_main_process and run.data.val is not None:
            with files_are_a_bonus():
                run.folder.samples.mkdir(exist_ok=True)
                self.draw(run.result.eval(), run.data.val, run.folder.samples)


class EarlyStopping(Callback):
    """Ends a run whose AP has not become better.

    Args:
        patience: after this many evaluations in a row without a better AP than the best before them.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_train_start(self, run: Run) -> None:
        """A run that was ended by this stays so when it is resumed."""
        if not run.position.batch:
            self._check(run)

    def on_evaluation(self, run: Run, metrics: Metrics) -> None:
        """Count the evaluations since the best one."""
        self._check(run)

    def _check(self, run: Run) -> None:
        if run.best is not None and len(run.history) - 1 - run.history.index(run.best) >= self.patience:
            run.stop(f"the AP has not become better in the last {self.patience} evaluations")
