"""A whole training run: epochs, evaluation, weights, state, log; alone or in several processes.

    for each epoch:   for each group of batches:   train_step → average the weights → maybe save the state
                      (save the state → evaluate) → weights/last, weights/best → save the state

Log, curves, sample images, experiment loggers and early stopping are callbacks (`training/callbacks.py`), as a user's own are.

A run that was stopped at any of these points goes on with exactly the numbers that it would have had.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, set_seed

from deformable_detr.config import ModelConfig, RunConfig
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.loader import Allowed
from deformable_detr.evaluation.metrics import Metrics
from deformable_detr.process import is_first_process
from deformable_detr.settings import to_record
from deformable_detr.training.batches import step_batches
from deformable_detr.training.callbacks import Callback, EarlyStopping, Run, Step
from deformable_detr.training.interruption import StopRequest, TrainingInterrupted
from deformable_detr.training.learner import Learner
from deformable_detr.training.memory import choose_batch_size
from deformable_detr.training.orientation import Orientation
from deformable_detr.training.pace import MOST_PASSES, Pace, Plan
from deformable_detr.training.preparation import (
    build_accelerator,
    build_loaders,
    build_network,
    check_same_run,
    check_train_config,
    contents_of,
    describe_data,
    open_data,
)
from deformable_detr.training.processes import in_any_process, mean_over_processes, refuse_in_starting_process
from deformable_detr.training.result import Position, TrainResult
from deformable_detr.training.run_folder import RunFolder
from deformable_detr.training.run_log import Averages, RunLog
from deformable_detr.training.state import (
    latest_state,
    load_latest_state,
    random_state,
    random_state_kept,
    save_state,
    set_random_state,
)
from deformable_detr.training.time_left import TimeLeft
from deformable_detr.training.trackers import TrackerLog, check_loggers
from deformable_detr.training.train_step import Batch
from deformable_detr.training.validation import Validation
from deformable_detr.version import __version__

logger = logging.getLogger(__name__)


@torch.inference_mode(False)
@torch.enable_grad()  # whatever the caller has switched off
def train(
    config: RunConfig, dataset: DetectionDataset | None = None, *, callbacks: Sequence[Callback] = (), show_progress: bool = True
) -> TrainResult:
    """Train a detector as the config says, and write everything to `config.output_dir`.

    Args:
        config: the whole run.
        dataset: that of the run, where it has been opened already (:func:`~.recipe.plan_run`); its splits are forgotten once read.
        callbacks: told what happens, in this order, after the run's own log.
        show_progress: a live bar on a terminal, log lines elsewhere.

    Raises:
        FileExistsError: `output_dir` holds a run and `resume` is not set, or a run that goes on in another process.
        FileNotFoundError: dataset, weights, or the state to resume from are missing.
        ImportError: an experiment logger is not installed.
        ValueError: settings that make no sense or do not fit the run that is resumed.
        NonFiniteLossError: the loss became NaN or infinite.
        OutOfMemoryError: a step does not fit into memory.
        TrainingInterrupted: stopped by Ctrl-C or SIGTERM, the state is saved.
    """
    folder = RunFolder(config.output_dir)
    first = is_first_process()
    with ExitStack() as stack:
        if first and config.resume and latest_state(folder.state):
            stack.enter_context(folder.claimed())  # before the state is read
        trainer = Trainer(config, dataset, callbacks, show_progress)
        if dataset is not None:
            dataset.forget()
        if first and not config.resume:
            stack.enter_context(folder.claimed())
        return trainer.run()


class Trainer(Run):
    """The parts of one run and their order; use it through `train`."""

    def __init__(
        self, config: RunConfig, dataset: DetectionDataset | None, callbacks: Sequence[Callback], show_progress: bool
    ) -> None:
        """Open the data, build the model, and read the saved state when resuming; arguments as for :func:`train`."""
        refuse_in_starting_process()
        check_train_config(config.train)
        check_loggers(config.train.logger)
        self.folder = RunFolder(config.output_dir)
        if not config.resume:
            self.folder.check_unused()
        saved = load_latest_state(self.folder.state) if config.resume else None
        self.accelerator = build_accelerator(config.train)
        self.data = open_data(config, dataset)
        if saved and config.weights is not None:  # their network, whatever the settings say
            config = replace(config, model=ModelConfig.from_dict(saved["config"]["model"]))
        if saved:
            check_same_run(config, saved, self.data, self.accelerator.num_processes)
        self.contents = contents_of(self.data)
        set_seed(config.train.seed)
        categories, device = self.data.train.categories, self.accelerator.device
        self.network = build_network(config, categories, resumed=saved is not None, device=device)
        config = replace(config, model=self.network.metadata.model)
        self.config = config = choose_batch_size(self.network, config, self.data.train, self.accelerator)
        self.train_loader, val_loader = build_loaders(config, self.data, self.accelerator)
        self.validation = Validation(val_loader, self.data.train.categories, config.train, self.accelerator)
        self.steps_per_epoch = -(-len(self.train_loader) // config.train.accumulate)
        self.plan = Plan(config.train.steps or config.train.epochs * self.steps_per_epoch)
        self.learner = Learner(self.network, config, self.accelerator, self.folder, self.plan)
        per_step = config.train.batch_size * config.train.accumulate * self.accelerator.num_processes
        self.time_left = TimeLeft(per_step, len(self.data.val) if self.data.val is not None else 0)
        most = max(self.plan.steps, MOST_PASSES * self.steps_per_epoch)
        self.pace = Pace(self.plan, config.train.seconds, most, self.time_left, self.accelerator)
        self.orientation = Orientation(self.validation, config.data.undecided_turns)
        self.position = Position()
        self.callbacks = self._callbacks(callbacks, show_progress)
        self.recent, self.over_epoch = Averages(), Averages()
        set_seed(config.train.seed, device_specific=True)  # dropout differs from process to process
        if saved:
            self._restore(saved)

    def run(self) -> TrainResult:
        """Train to the end, evaluating in between."""
        self.accelerator.wait_for_everyone()  # every process has seen the folder before one writes to it
        with ExitStack() as ends, StopRequest() as self.signal:

            def begin(callback: Callback) -> None:
                callback.on_train_start(self)
                ends.callback(callback.on_train_end, self)

            try:
                self._tell(begin)
                self._clock = (time.monotonic(), 0)
                if self.position.epoch_done:
                    self._finish_epoch()
                while not self._finished():
                    self._train_epoch()
                    self._finish_epoch()
                self.state = "finished"
            except BaseException as error:
                self.state = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
                raise
        self.accelerator.wait_for_everyone()
        return TrainResult.of(self.folder, self.position.step, self.validation.history, self.validation.best)

    # ---- before the first step

    def _callbacks(self, given: Sequence[Callback], show_progress: bool) -> list[Callback]:
        """The run's own before and after those that were given: samples are drawn before the loggers take them."""
        log = [RunLog(show_progress)] if self.accelerator.is_main_process else []
        patience = self.config.train.patience
        return [*log, *given, *([EarlyStopping(patience)] if patience else []), TrackerLog(self.config.train.logger)]

    # ---- the steps of an epoch

    def _train_epoch(self) -> None:
        """The steps that are left of the present epoch, or of the whole run."""
        mixing = self.position.epoch < self.config.data.mixing_until * self.total_epochs
        allowed = Allowed(mixing, self.orientation.free)
        for batches in step_batches(self.train_loader, self.position, self.config.train.accumulate, allowed):
            self._step(batches)
            if self._epoch_is_whole() or self._finished():
                return
            if self._interrupted():
                self._save_state()
                self._raise_interrupted()
            every = self.config.train.checkpoint_every
            if every and self.position.step % every == 0:
                self._save_state()

    def _step(self, batches: list[Batch]) -> None:
        """One optimiser step with everything that goes with it."""
        lr = self.learner.lr(self.position.step)
        losses = self.learner.step(batches, self.position.step)
        self.position.step += 1
        self.position.batch += len(batches)
        self.time_left.step()
        self.pace.check(self.position.step, self.evaluations_left)
        if losses is None:
            return
        self.recent.add(losses)
        self.over_epoch.add(losses)
        began, count = self._clock
        count += sum(len(images) for images, _ in batches) * self.accelerator.num_processes
        self._clock = (began, count)
        means = self._means() if self.position.step % self.config.train.log_every == 0 or self._at_end() else None
        speed = count / max(1e-9, time.monotonic() - began)
        if means is not None:
            self._clock = (time.monotonic(), 0)
        done = Step(self.position.step, self.position.epoch + 1, losses, means, lr, speed)
        self._tell(lambda callback: callback.on_step(self, done))

    def _tell(self, hook: Callable[[Callback], object]) -> None:
        """Call a hook of all callbacks. Random numbers go on as without: what they draw would be missing in a resumed run."""
        with random_state_kept():
            for callback in self.callbacks:
                hook(callback)

    def _means(self) -> dict[str, float]:
        """Of the losses since the last call, over all processes."""
        means = mean_over_processes(self.recent.take(), self.accelerator)
        if self.accelerator.device.type == "cuda":
            means["gpu_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        return means

    # ---- the end of an epoch

    def _finish_epoch(self) -> None:
        """Evaluate where it is due, and save."""
        self.position.epoch_done = True
        due = self.validation.due(self.position.epoch, last=self._finished())
        with self.time_left.evaluation() if due else nullcontext():
            metrics = self._evaluate() if due else None
            self.over_epoch.take()
            weights = self._save_weights(metrics)
        if metrics is not None and self.orientation.due(metrics, self.position.step / self.total_steps, self.total_epochs):
            with self.time_left.elsewhere(), random_state_kept():
                self.orientation.decide(self.learner.result, metrics, self.position.step)
        if self._epoch_is_whole():
            self.position = Position(self.position.step, self.position.epoch + 1)
        self.position.epoch_done = False  # a run that has ended within an epoch may be resumed there
        self.pace.check(self.position.step, self.evaluations_left, evaluated=due)
        self._save_state(weights)
        self._clock = (time.monotonic(), 0)
        if not self._finished() and self._interrupted():
            self._raise_interrupted()

    def _evaluate(self) -> Metrics:
        """The state is saved before, so that nothing is lost if this is interrupted; random numbers go on as without it."""
        self._save_state()
        if self._interrupted():
            self._raise_interrupted()
        self.state = "evaluating"
        with random_state_kept():
            metrics = self.validation.measure(self.learner.result, self._evaluation_step)
            at = {"step": self.position.step, "epoch": self.position.epoch + 1, "lr": self.learner.optimizer.param_groups[0]["lr"]}
            train_loss = mean_over_processes(self.over_epoch.take(), self.accelerator).get("loss")
            self.validation.add({**at, "train_loss": train_loss}, metrics)
            for callback in self.callbacks:
                callback.on_evaluation(self, metrics)
        self.state = "training"
        return metrics

    def _evaluation_step(self, done: int, total: int) -> None:
        for callback in self.callbacks:
            callback.on_evaluation_step(self, done, total)

    def _at_end(self) -> bool:
        return self.position.step == self.total_steps

    def _finished(self) -> bool:
        """All steps done, or told to stop by a callback of any process."""
        return self._at_end() or in_any_process(self.stop_reason is not None, self.accelerator)

    def _epoch_is_whole(self) -> bool:
        return self.position.batch == len(self.train_loader)

    def _save_weights(self, metrics: Metrics | None) -> list[Path]:
        """Write the last and, where they are, the best weights; the files that were written."""
        if not self.accelerator.is_main_process:
            return []
        source = {
            "preset": self.config.preset,
            "dataset": Path(self.config.dataset).name,
            "weights": self.config.weights,
            "epoch": self.position.epoch + 1,
            "step": self.position.step,
            "ema": self.learner.ema is not None,
            "metrics": metrics.to_dict() if metrics is not None else None,
            "version": __version__,
        }
        thresholds = metrics.thresholds if metrics is not None else None  # those of other weights would not fit
        metadata = replace(self.network.metadata, training=source, thresholds=thresholds)
        best = metrics is not None and self.validation.best is self.validation.history[-1]
        base = self.config.weights if self.config.optimizer.lora else None
        return self.folder.write_weights(self.learner.averaged, metadata, best=best, base=base, at_end=self._at_end())

    # ---- stopping and going on

    def _interrupted(self) -> bool:
        """Whether any of the processes got a signal, so that all stop after the same step."""
        return in_any_process(self.signal.requested, self.accelerator)

    def _raise_interrupted(self) -> None:
        raise TrainingInterrupted(
            f"stopped after step {self.position.step} of {self.total_steps}; the state is in {latest_state(self.folder.state)}. "
            f"Go on with: deformable-detr train --resume --output {self.folder.root}"
        )

    def _save_state(self, weights: Sequence[Path] = ()) -> None:
        """Save, and tell of it and of the weights that were written before it."""
        randoms = gather_object([random_state()])
        if self.accelerator.is_main_process:
            state = {
                "step": self.position.step,
                "position": vars(self.position),
                "processes": self.accelerator.num_processes,
                "dataset": describe_data(self.data),
                "contents": self.contents,
                "config": to_record(self.config),
                **self.learner.state_dict(),
                "random": randoms,
                "averages": [vars(self.recent), vars(self.over_epoch)],
                "history": self.validation.history,
                "pace": self.pace.state_dict(),
                "orientation": self.orientation.state_dict(),
            }
            weights = [*weights, *save_state(self.folder.state, self.position.step, state)]
        self.accelerator.wait_for_everyone()
        self._tell(lambda callback: callback.on_checkpoint(self, list(weights)))

    def _restore(self, saved: dict[str, Any]) -> None:
        self.learner.load_state_dict(saved)
        self.position = Position(**saved["position"])
        self.pace.load_state_dict(saved.get("pace", {}), self.position.step)
        self.orientation.load_state_dict(saved.get("orientation", {}))
        if self.position.step > self.total_steps:
            done, asked = self.position.step, self.total_steps
            raise ValueError(
                f"the run in {self.folder.root} has made {done} steps already, more than the {asked} that are asked for"
            )
        vars(self.recent).update(saved["averages"][0])
        vars(self.over_epoch).update(saved["averages"][1])
        self.validation.history = list(saved["history"])
        set_random_state(saved["random"][self.accelerator.process_index])
