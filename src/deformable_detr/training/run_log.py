"""What a run records as it goes: log.jsonl, metrics.csv, progress.json, the curves, and the lines on the screen."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from deformable_detr.evaluation.metrics import Metrics
from deformable_detr.files import write_json
from deformable_detr.training.advice import Advisor
from deformable_detr.training.callbacks import Callback, Run, Step
from deformable_detr.training.curves import draw_loss_curve, draw_metrics_curve
from deformable_detr.training.preparation import describe_data
from deformable_detr.training.progress import ProgressDisplay
from deformable_detr.training.run_folder import files_are_a_bonus
from deformable_detr.version import __version__

logger = logging.getLogger(__name__)

SHOWN = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}
"""The metrics that are shown while and after training."""


def metrics_line(metrics: Mapping[str, float | None]) -> str:
    """`AP 0.523  AP50 0.714  AP75 –`."""
    shown = {label: metrics[name] for name, label in SHOWN.items()}
    return "  ".join(f"{label} {'–' if value is None else f'{value:.3f}'}" for label, value in shown.items())


class Averages:
    """Running means of the losses."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, losses: Mapping[str, float]) -> None:
        """Count one step."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def take(self) -> dict[str, float]:
        """The means since the last call."""
        means = {name: total / self.count for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


class RunLog(Callback):
    """Writes into the run folder, shows the progress and gives advice; only the first of several processes has one.

    Args:
        show: a live bar on a terminal, log lines elsewhere; False: neither.
    """

    def __init__(self, show: bool) -> None:
        self.show = show
        self._told = ""

    def on_train_start(self, run: Run) -> None:
        """Open the log, and record the start."""
        folder, step = run.folder, run.position.step
        self.display = ProgressDisplay(run, show=self.show)
        self.advisor = Advisor(run.total_steps)
        folder.write_config(run.config)
        (folder.root / "weights").mkdir(exist_ok=True)
        if step:
            folder.rewind_log(step, evaluated=not run.position.epoch_done)
        parameters = sum(parameter.numel() for parameter in run.network.parameters() if parameter.requires_grad)
        if self.show:
            logger.info(
                "%s %s (%.1f M parameters) on %d images of %s, %d classes; %d steps on %s; everything goes to %s",
                f"going on after step {step} with" if step else "training",
                *(run.config.preset, parameters / 1e6, len(run.data.train), run.config.dataset),
                *(len(run.data.train.categories), run.total_steps, run.accelerator.device, folder.root),
            )
        start = {
            "step": step,
            "version": __version__,
            "torch": torch.__version__,
            "device": str(run.accelerator.device),
            "processes": run.accelerator.num_processes,
            "trainable_parameters": parameters,
            "total_steps": run.total_steps,
            **describe_data(run.data),
        }
        folder.append_log({"kind": "start", **start})
        self.display.start()

    def on_step(self, run: Run, step: Step) -> None:
        """Move the bar; record the means, when it is their turn."""
        if step.means is not None:
            self.advisor.losses(step.step, step.means)
            record = {"step": step.step, "epoch": step.epoch, "lr": step.lr, **step.means}
            with files_are_a_bonus():
                run.folder.append_log({"kind": "train", **record, "images_per_second": round(step.images_per_second, 2)})
            self._tell(run)
        self.display.step(run, step)

    def on_evaluation_step(self, run: Run, done: int, total: int) -> None:
        """Show how far the evaluation has come."""
        self.display.evaluating(done, total)
        if self._told != run.state:
            self._tell(run)

    def on_evaluation(self, run: Run, metrics: Metrics) -> None:
        """Record the last row of the history, and draw the curves anew."""
        row, per_class, folder = run.history[-1], metrics.to_dict()["per_class"], run.folder
        with files_are_a_bonus():
            folder.append_log({"kind": "evaluation", **row, "per_class": per_class})
            folder.write_metrics(run.history)
            draw_metrics_curve(folder.metrics_curve, run.history)
            draw_loss_curve(folder.loss_curve, folder.read_log())
        text = metrics_line(row)
        self.display.message(f"epoch {row['epoch']}, step {row['step']}: {text}")
        self.advisor.evaluation(run.history, per_class)

    def on_checkpoint(self, run: Run, paths: Sequence[Path]) -> None:
        """Without evaluations, the losses are drawn here."""
        if run.data.val is None:
            with files_are_a_bonus():
                draw_loss_curve(run.folder.loss_curve, run.folder.read_log())

    def on_train_end(self, run: Run) -> None:
        """Say how it ended."""
        self.display.stop()
        self._tell(run)
        if run.state == "finished" and run.stop_reason:
            logger.info("stopped early: %s", run.stop_reason)

    def _tell(self, run: Run) -> None:
        """Say in progress.json how far the run has come, for whoever watches it from outside (`deformable-detr dashboard`)."""
        self._told = run.state
        left = run.seconds_left() if run.state in ("training", "evaluating") else 0.0
        record = {
            "time": round(time.time(), 1),
            "state": run.state,
            "step": run.position.step,
            "total_steps": run.total_steps,
            "epoch": min(run.position.epoch + 1, run.total_epochs),
            "total_epochs": run.total_epochs,
            "seconds_left": None if left is None else round(left, 1),
            "advice": self.advisor.said,
        }
        with files_are_a_bonus():
            write_json(run.folder.progress, record)
