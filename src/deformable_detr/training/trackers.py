"""Experiment loggers (TensorBoard, W&B, MLflow and others) behind one callback, through accelerate's trackers."""

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image

from deformable_detr.evaluation.metrics import Metrics
from deformable_detr.settings import flatten, to_record
from deformable_detr.training.callbacks import Callback, Run, Step
from deformable_detr.training.result import POSITION

logger = logging.getLogger(__name__)

PROJECT = "deformable-detr"
"""Under this name the loggers that have projects or experiments file the runs."""

KEYWORDS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "tensorboard": lambda run: {
        "run_name": "tensorboard",
        "logging_dir": str(run.folder.root),
        "purge_step": run.position.step + 1,  # of a run that goes on, what was logged after its state is dropped
    },
    "wandb": lambda run: {"run_name": PROJECT, "name": run.folder.root.name, "dir": str(run.folder.root)},
    "mlflow": lambda run: {"experiment_name": PROJECT, "run_name": run.folder.root.name},
    "aim": lambda run: {"run_name": PROJECT, "logging_dir": str(run.folder.root)},
}
"""What a tracker is made with; the others take the project's name alone. The rest is said by each logger's own variables."""


def check_loggers(names: Sequence[str]) -> None:
    """See that the loggers are installed, before anything slow happens.

    Raises:
        ImportError: one is missing; the message says what to install.
    """
    for name in names:
        if find_spec(name) is None:
            raise ImportError(f"the logger {name} is not installed: pip install {name.replace('_', '-')}")


class TrackerLog(Callback):
    """Hands curves, sample images and the best metrics to experiment loggers, in the first process.

    Args:
        names: of accelerate's trackers, such as `tensorboard`, `wandb`, `mlflow`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.trackers: list[GeneralTracker] = []

    def on_train_start(self, run: Run) -> None:
        """Open the loggers, and give them the settings."""
        settings = {
            name: value if isinstance(value, int | float) else str(value) for name, value in flatten(to_record(run.config)).items()
        }
        for name in self.names if run.accelerator.is_main_process else ():
            tracker = LOGGER_TYPE_TO_CLASS[name](**KEYWORDS.get(name, lambda run: {"run_name": PROJECT})(run))
            tracker.start()
            if name != "tensorboard":  # its table of settings would be a second run; config.yaml lies beside it
                tracker.store_init_configuration(settings)
            self.trackers.append(tracker)

    def on_step(self, run: Run, step: Step) -> None:
        """Log the means, when it is their turn."""
        if step.means is not None:
            speed = {"epoch": step.epoch, "lr": step.lr, "images_per_second": step.images_per_second}
            self._log("train", {**speed, **step.means}, step.step)

    def on_evaluation(self, run: Run, metrics: Metrics) -> None:
        """Log the metrics, and the newest drawing of samples where there is one."""
        self._log("validation", run.history[-1], run.position.step)
        overview = run.folder.samples / "overview.png"
        if overview.is_file():
            pixels = np.asarray(Image.open(overview).convert("RGB"))
            for tracker in self.trackers:
                _log_drawing(tracker, pixels, str(overview), run.position.step)

    def on_train_end(self, run: Run) -> None:
        """Log the metrics of the best weights once more, and close."""
        if run.state == "finished" and run.best is not None:
            self._log("best", run.best, run.position.step)
        for tracker in self.trackers:
            tracker.finish()

    def _log(self, group: str, values: Mapping[str, Any], step: int) -> None:
        left_out = () if group == "train" else POSITION
        numbers = {f"{group}/{name}": value for name, value in values.items() if value is not None and name not in left_out}
        for tracker in self.trackers:
            tracker.log(numbers, step=step)


def _log_drawing(tracker: Any, pixels: np.ndarray, path: str, step: int) -> None:
    """By the tracker's own way, as arrays or as a file; those that have neither go without."""
    if tracker.name == "tensorboard":
        tracker.log_images({"samples": pixels[None]}, step=step, dataformats="NHWC")
    elif hasattr(tracker, "log_images"):
        tracker.log_images({"samples": [pixels]}, step=step)
    elif hasattr(tracker, "log_artifact"):
        tracker.log_artifact(path, artifact_path=f"samples/step-{step:08d}")
