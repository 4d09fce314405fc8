"""The model with all that changes its weights: optimiser, schedule, guarded step, EMA."""

from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from torch.nn.modules.batchnorm import _BatchNorm

from deformable_detr.config import RunConfig
from deformable_detr.criterion import SetCriterion
from deformable_detr.model import DeformableDETR
from deformable_detr.model.adapters import merged
from deformable_detr.training.ema import ExponentialMovingAverage
from deformable_detr.training.guarded_step import GuardedStep
from deformable_detr.training.optimizer import build_optimizer, build_schedule, freeze, set_learning_rates
from deformable_detr.training.pace import Plan
from deformable_detr.training.run_folder import RunFolder
from deformable_detr.training.train_step import Batch


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
        settings, self.base_lr = config.optimizer, config.optimizer.lr
        self.network, self.accelerator = network, accelerator
        # not only left out of the optimiser, which would not clear its gradients: they would pile up, and count in the norm
        freeze(network, settings.freeze if settings.backbone_lr_scale else (*settings.freeze, "backbone"))
        self.ema = ExponentialMovingAverage(network, config.train.ema_decay) if config.train.ema_decay else None
        criterion = SetCriterion.from_config(network.metadata.model, config.loss, network.metadata.categories)
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
        self.guarded_step = GuardedStep(network, criterion, optimizer, accelerator, config, folder)
        self.optimizer = self.guarded_step.optimizer

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
        self.guarded_step.model.train()
        for module in self.network.modules():
            if isinstance(module, _BatchNorm) and not any(parameter.requires_grad for parameter in module.parameters()):
                module.eval()

    def lr(self, step: int) -> float:
        """The learning rate of the first parameter group after this number of steps."""
        return self.base_lr * self.schedule(step)

    def step(self, batches: Sequence[Batch], step: int) -> dict[str, float] | None:
        """One optimiser step, and the average moved after it; arguments and result as in :class:`GuardedStep`."""
        self.train()  # a callback may have predicted with it, or set all of it to training mode
        set_learning_rates(self.optimizer, self.schedule(step))
        losses = self.guarded_step(batches, step)
        if losses is not None and self.ema is not None:
            self.ema.update(self.network)
        return losses

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
