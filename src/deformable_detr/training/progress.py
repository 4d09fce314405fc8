"""What a person sees while training: a live bar on a terminal, plain log lines elsewhere."""

import logging
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column

from deformable_detr.training.callbacks import Step

logger = logging.getLogger(__name__)


class ProgressDisplay:
    """Shows losses, learning rate, images per second and the time left; a context manager around the training."""

    def __init__(self, total_steps: int, finished_steps: int, total_epochs: int, show: bool = True) -> None:
        """Nothing is shown before `__enter__`.

        Args:
            total_steps: optimiser steps of the whole training.
            finished_steps: steps done before, when resumed.
            total_epochs: for "epoch 3/50".
            show: whether this process shows anything; only one of several should.
        """
        self.total_steps = total_steps
        self.total_epochs = total_epochs
        self._show = show
        self._bar: Progress | None = None
        if show and sys.stderr.isatty():
            console = Console(stderr=True)
            self._wide = console.width >= 120
            self._bar = _bar(console, self._wide)
            self._task = self._bar.add_task("training", total=total_steps, completed=finished_steps, text="", left="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def plan(self, total_steps: int, total_epochs: int) -> None:
        """Go on with another length of the training; arguments as above."""
        self.total_steps, self.total_epochs = total_steps, total_epochs
        if self._bar is not None:
            self._bar.update(self._task, total=total_steps)

    def step(self, step: Step, seconds_left: float | None) -> None:
        """Move the bar after an optimiser step.

        Args:
            step: what was done.
            seconds_left: of the whole run; None: not known yet.
        """
        if self._bar is not None:
            if self._wide:
                text = f"{_short(step.losses)}  lr {step.lr:.1e}  {step.images_per_second:.0f} images/s"
            else:
                text = f"loss {step.losses['loss']:.2f} lr {step.lr:.1e}"
            epoch = f"epoch {step.epoch}/{self.total_epochs}"
            self._bar.update(self._task, completed=step.step, description=epoch, text=text, left=_left(seconds_left))

    def evaluating(self, done: int, total: int) -> None:
        """Show how far an evaluation has come, in images of this process."""
        if self._bar is not None:
            self._bar.update(self._task, text=f"evaluating {done}/{total}")

    def line(self, step: Step, seconds_left: float | None) -> None:
        """Log the means up to a step in a line, where there is no bar; arguments as in :meth:`step`."""
        if self._show and self._bar is None and step.means is not None:
            logger.info(
                "step %d/%d  epoch %d/%d  %s  lr %.2g  %.1f images/s  %s",
                step.step,
                self.total_steps,
                step.epoch,
                self.total_epochs,
                _short(step.means),
                step.lr,
                step.images_per_second,
                _left(seconds_left),
            )

    def message(self, text: str) -> None:
        """Print a line that stays on the screen, such as the result of an evaluation."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        elif self._show:
            logger.info("%s", text)


def format_seconds(seconds: float) -> str:
    """Such as `2 h 05 min`, `12 min 30 s` or `9 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"{format_seconds(seconds)} left"


def _short(losses: Mapping[str, float]) -> str:
    """The total and the last layer's terms; those of the other layers are in the log."""
    terms = {"loss": "loss", "loss_class": "class", "loss_bbox": "bbox", "loss_giou": "giou"}
    return "  ".join(f"{label} {losses[name]:.3f}" for name, label in terms.items() if name in losses)


def _bar(console: Console, wide: bool) -> Progress:
    """A line that fits: on a narrow terminal with a short bar and without the time that has passed."""
    fixed = Column(no_wrap=True)
    columns: list[ProgressColumn] = [TextColumn("{task.description}", table_column=fixed), BarColumn(24 if wide else 8)]
    columns += [MofNCompleteColumn(table_column=fixed), *([TimeElapsedColumn()] if wide else [])]
    columns.append(TextColumn("{task.fields[left]}", table_column=fixed))
    return Progress(*columns, TextColumn("{task.fields[text]}"), console=console)
