"""What a run records as it goes: log.jsonl, metrics.csv, TensorBoard, the curves, and the lines on the screen."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from deformable_detr.files import write_json
from deformable_detr.training.curves import draw_loss_curve, draw_metrics_curve
from deformable_detr.training.progress import ProgressDisplay
from deformable_detr.training.run_folder import RunFolder, files_are_a_bonus

POSITION = ("step", "epoch", "lr", "train_loss")
"""What a row of the history has beside the metrics."""

SHOWN = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}


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


class RunLog:
    """Writes into the run folder; only one of several processes has one."""

    def __init__(self, folder: RunFolder, display: ProgressDisplay, start: Mapping[str, Any]) -> None:
        """Open the log and record the start.

        Args:
            folder: of the run; exists.
            display: the screen.
            start: what to record; its `step` is where the run goes on, later TensorBoard events are dropped.
        """
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.folder, self.display = folder, display
        self._tensorboard = SummaryWriter(str(folder.tensorboard), purge_step=start["step"] + 1)
        folder.append_log({"kind": "start", **start})

    def progress(self, **state: Any) -> None:
        """Say in progress.json how far the run has come, for whoever watches it from outside (`deformable-detr dashboard`)."""
        with files_are_a_bonus():
            write_json(self.folder.progress, {"time": round(time.time(), 1), **state})

    def losses(self, record: Mapping[str, Any], seconds_left: float | None) -> None:
        """Record the mean losses of the last steps.

        Args:
            record: `step`, `epoch` (from 1), `lr`, `images_per_second` and the losses.
            seconds_left: of the whole run; None: not known yet.
        """
        with files_are_a_bonus():
            self.folder.append_log({"kind": "train", **record})
            self._scalars("train", record)
        self.display.line(record["step"], record["epoch"], record, record["lr"], record["images_per_second"], seconds_left)

    def evaluation(self, history: Sequence[Mapping[str, Any]], per_class: Sequence[Mapping[str, Any]]) -> None:
        """Record the last row of the history, and draw the curves anew.

        Args:
            history: one row per evaluation: step, epoch, lr, train_loss and the metrics.
            per_class: the metrics of each class at the last one.
        """
        row = history[-1]
        with files_are_a_bonus():
            self.folder.append_log({"kind": "evaluation", **row, "per_class": list(per_class)})
            self.folder.write_metrics(history)
            self._scalars("validation", {name: value for name, value in row.items() if name not in POSITION or name == "step"})
            draw_metrics_curve(self.folder.metrics_curve, history)
            self.draw_losses()
        text = "  ".join(f"{label} {'–' if row[name] is None else f'{row[name]:.3f}'}" for name, label in SHOWN.items())
        self.display.message(f"epoch {row['epoch']}, step {row['step']}: {text}")

    def draw_losses(self) -> None:
        """Draw the loss curve of everything logged so far."""
        draw_loss_curve(self.folder.loss_curve, self.folder.read_log())

    def close(self) -> None:
        """Write what is still in memory."""
        with files_are_a_bonus():
            self._tensorboard.close()

    def _scalars(self, group: str, record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            if name != "step" and value is not None:
                self._tensorboard.add_scalar(f"{group}/{name}", value, record["step"])
        self._tensorboard.flush()
