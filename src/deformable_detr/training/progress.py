"""What a person sees while training: a live bar on a terminal, plain log lines elsewhere."""

import logging
import sys
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from deformable_detr.training.callbacks import Run, Step
from deformable_detr.training.time_left import format_seconds

logger = logging.getLogger(__name__)


class ProgressDisplay:
    """Shows losses, learning rate, images per second and the time left, between `start` and `stop`.

    Args:
        run: that is beginning, or going on.
        show: whether this process shows anything; only one of several should.
    """

    def __init__(self, run: Run, show: bool = True) -> None:
        self._show = show
        self._live = show and sys.stderr.isatty()
        console = Console(stderr=True)
        self._wide = console.width >= 120  # else a line that fits: a short bar, and not the time that has passed
        fixed = Column(no_wrap=True)
        columns: list[ProgressColumn] = [TextColumn("{task.description}", table_column=fixed), BarColumn(24 if self._wide else 8)]
        columns += [MofNCompleteColumn(table_column=fixed), *([TimeElapsedColumn()] if self._wide else [])]
        columns += [TextColumn("{task.fields[left]}", table_column=fixed), TextColumn("{task.fields[text]}")]
        self._bar = Progress(*columns, console=console, disable=not self._live)
        self._task = self._bar.add_task("training", total=run.total_steps, completed=run.position.step, text="", left="")
        self.start, self.stop = self._bar.start, self._bar.stop

    def step(self, run: Run, step: Step) -> None:
        """Move the bar after an optimiser step; where there is none, log the means when it is their turn."""
        seconds_left = run.seconds_left()
        left = "" if seconds_left is None else f"{format_seconds(seconds_left)} left"
        if self._live:
            if self._wide:
                text = f"{_short(step.losses)}  lr {step.lr:.1e}  {step.images_per_second:.0f} images/s"
            else:
                text = f"loss {step.losses['loss']:.2f} lr {step.lr:.1e}"
            epoch = f"epoch {step.epoch}/{run.total_epochs}"
            self._bar.update(self._task, total=run.total_steps, completed=step.step, description=epoch, text=text, left=left)
        elif self._show and step.means is not None:
            logger.info(
                "step %d/%d  epoch %d/%d  %s  lr %.2g  %.1f images/s  %s",
                *(step.step, run.total_steps, step.epoch, run.total_epochs),
                *(_short(step.means), step.lr, step.images_per_second, left),
            )

    def evaluating(self, done: int, total: int) -> None:
        """Show how far an evaluation has come, in images of this process."""
        self._bar.update(self._task, text=f"evaluating {done}/{total}")

    def message(self, text: str) -> None:
        """Print a line that stays on the screen, such as the result of an evaluation."""
        if self._live:
            self._bar.console.print(text, highlight=False, markup=False)
        elif self._show:
            logger.info("%s", text)


def _short(losses: Mapping[str, float]) -> str:
    """The total and the last layer's terms; those of the other layers are in the log."""
    terms = {"loss": "loss", "loss_class": "class", "loss_bbox": "bbox", "loss_giou": "giou"}
    return "  ".join(f"{label} {losses[name]:.3f}" for name, label in terms.items() if name in losses)
