"""The model with all that changes its weights: optimiser, schedule, EMA, and the step, whose failures are explained."""

import logging
from collections.abc import Sequence
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from deformable_detr.config import RunConfig
from deformable_detr.criterion import SetCriterion
from deformable_detr.model import DeformableDETR
from deformable_detr.model.adapters import merged
from deformable_detr.training.ema import ExponentialMovingAverage
from deformable_detr.training.memory import is_out_of_memory, out_of_memory
from deformable_detr.training.non_finite import diagnose, save_step
from deformable_detr.training.optimizer import build_optimizer, build_schedule, freeze, set_learning_rates
from deformable_detr.training.pace import Plan
from deformable_detr.training.run_folder import RunFolder
from deformable_detr.training.train_step import Batch, NonFiniteLossError, statistics_kept, train_step

logger = logging.getLogger(__name__)

MOST_SKIPPED = 20
"""Largest number of steps in a row that may be left out; beyond it training has diverged, and skipping does not help."""


class Learner:
    """What a run trains, and how.

    Args:
        network: the detector, on its device.
        config: the run.
        accelerator: wraps model and optimiser.
        folder: where steps with non-finite values are kept.
        plan: where each step is on the course of the schedule.
    """

    def __init__(self, network: DeformableDETR, config: RunConfig, accelerator: Accelerator, folder: RunFolder, plan: Plan) -> None:
        settings = config.optimizer
        self.network, self.config, self.accelerator, self.folder = network, config, accelerator, folder
        # not only left out of the optimiser, which would not clear its gradients: they would pile up, and count in the norm
        freeze(network, settings.freeze if settings.backbone_lr_scale else (*settings.freeze, "backbone"))
        self.ema = ExponentialMovingAverage(network, config.train.ema_decay) if config.train.ema_decay else None
        self.criterion = SetCriterion.from_config(network.metadata.model, config.loss, network.metadata.categories)
        optimizer = build_optimizer(
            network,
            lr=settings.lr,
            backbone_lr_scale=settings.backbone_lr_scale,
            sampling_lr_scale=settings.sampling_lr_scale,
            backbone_layer_decay=settings.backbone_layer_decay,
            weight_decay=settings.weight_decay,
        )
        schedule = build_schedule(
            plan.course,
            schedule=settings.schedule,
            drop_at=settings.drop_at,
            drop_factor=settings.drop_factor,
            warmup_steps=settings.warmup_steps,
        )
        self.schedule = lambda step: schedule(plan.place(step))
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

    @property
    def averaged(self) -> DeformableDETR:
        """The network, with the EMA weights where there are any."""
        return self.ema.module if self.ema is not None else self.network

    @property
    def result(self) -> DeformableDETR:
        """What is evaluated and saved: the same with merged adapters."""
        return merged(self.averaged)

    def train(self) -> None:
        """Set the model to training mode; batch norms whose weights are fixed keep their statistics, too."""
        self.model.train()
        for module in self.network.modules():
            if isinstance(module, _BatchNorm) and not any(parameter.requires_grad for parameter in module.parameters()):
                module.eval()

    def lr(self, step: int) -> float:
        """The learning rate of the first parameter group after this number of steps."""
        return self.config.optimizer.lr * self.schedule(step)

    def step(self, batches: Sequence[Batch], step: int) -> dict[str, float] | None:
        """One optimiser step, and the average moved after it.

        Args:
            batches: of the step.
            step: finished steps.

        Returns:
            Its losses; None where it was left out.

        Raises:
            NonFiniteLossError: a loss or gradient is NaN or infinite, and the run is to stop there.
            OutOfMemoryError: the step does not fit.
        """
        self.train()  # a callback may have predicted with it, or set all of it to training mode
        set_learning_rates(self.optimizer, self.schedule(step))
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
        if self.ema is not None:
            self.ema.update(self.network)
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

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser, average and loss scale, for resuming."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; further keys are left alone."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
