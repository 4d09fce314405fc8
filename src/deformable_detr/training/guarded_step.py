"""The training step, guarded: non-finite values are explained, running out of memory raises an error with advice."""

import logging
from collections.abc import Sequence
from typing import cast

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from deformable_detr.config import RunConfig
from deformable_detr.criterion.criterion import SetCriterion
from deformable_detr.model import DeformableDETR
from deformable_detr.training.memory import is_out_of_memory, out_of_memory
from deformable_detr.training.non_finite import diagnose, save_step
from deformable_detr.training.run_folder import RunFolder
from deformable_detr.training.train_step import Batch, NonFiniteLossError, statistics_kept, train_step

logger = logging.getLogger(__name__)

MOST_SKIPPED = 20
"""Largest number of steps in a row that may be left out; beyond it training has diverged, and skipping does not help."""


class GuardedStep:
    """Does optimiser steps; explains those that fail, and leaves them out where the run wants that.

    Args:
        network: the detector, on its device.
        criterion: the losses.
        optimizer: over the model's parameters.
        accelerator: wraps model and optimiser.
        config: the run.
        folder: where steps with non-finite values are kept.
    """

    def __init__(
        self,
        network: DeformableDETR,
        criterion: SetCriterion,
        optimizer: Optimizer,
        accelerator: Accelerator,
        config: RunConfig,
        folder: RunFolder,
    ) -> None:
        self.network, self.criterion, self.accelerator = network, criterion, accelerator
        self.config, self.folder = config, folder
        self.optimizer = cast(Optimizer, accelerator.prepare_optimizer(optimizer))
        self.model = self._prepared()
        self._skipped_in_a_row = 0

    def _prepared(self) -> nn.Module:
        """The network as the processes train it together, without the autocast that accelerate puts into its `forward`.

        A network with such a `forward` would be evaluated as it is, in place of its inference form; `train_step` has the autocast.
        """
        model = self.accelerator.prepare_model(self.network)
        for name in ("forward", "_original_forward"):
            vars(self.network).pop(name, None)
        return model

    def __call__(self, batches: Sequence[Batch], step: int) -> dict[str, float] | None:
        """One optimiser step.

        Args:
            batches: of the step.
            step: finished steps, for messages.

        Returns:
            Its losses; None where it was left out.

        Raises:
            NonFiniteLossError: a loss or gradient is NaN or infinite, and the run is to stop there.
            OutOfMemoryError: the step does not fit.
        """
        clip = self.config.optimizer.clip_grad_norm
        try:
            with statistics_kept(self.network, if_raised=True):
                losses = train_step(self.model, self.criterion, self.optimizer, batches, self.accelerator, clip)
        except NonFiniteLossError as error:
            self._explain_or_skip(error, batches, step)
            return None
        except Exception as error:
            if is_out_of_memory(error):
                raise out_of_memory(self.config, batches[0][0], error) from error
            raise
        self._skipped_in_a_row = 0
        return losses

    def _explain_or_skip(self, error: NonFiniteLossError, batches: Sequence[Batch], step: int) -> None:
        self.optimizer.zero_grad()
        if isinstance(self.model, DistributedDataParallel):  # it waits for gradients that never came, and would take the next ones
            self.model._remove_autograd_hooks()
        with torch.random.fork_rng(devices=[self.accelerator.device] if self.accelerator.device.type == "cuda" else []):
            diagnosis = diagnose(self.network, self.criterion, batches, self.accelerator.device, self.config.train.precision)
        message = f"step {step + 1}: {error} {diagnosis}"
        if self.accelerator.is_main_process:
            path = save_step(self.folder.non_finite, step, message, batches, self.network, self.config.loss)
            message += f" The step is kept: deformable-detr replay {path}" if path is not None else ""
        self._skipped_in_a_row += 1
        if self.config.train.on_non_finite == "stop":
            raise NonFiniteLossError(message) from error
        if self._skipped_in_a_row > MOST_SKIPPED:
            raise NonFiniteLossError(f"{MOST_SKIPPED} steps in a row had to be left out; the last one: {message}") from error
        logger.warning("left out: %s", message)
        if self.accelerator.num_processes > 1:
            self.model = self._prepared()
