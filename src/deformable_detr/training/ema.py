"""An exponential moving average of a model's weights: less noisy than the current ones; they are evaluated and saved."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


class ExponentialMovingAverage(Generic[Model]):
    """A copy of a model whose weights follow those in training slowly.

    After each optimiser step `average = decay_t * average + (1 - decay_t) * weights`, with the decay warmed up as
    `decay_t = min(decay, (1 + t) / (10 + t))` over the number t of updates so far, so that the random first weights are
    soon forgotten. Floating buffers (the statistics of batch norm) are averaged too, all others are copied.
    """

    def __init__(self, model: Model, decay: float) -> None:
        """Start from the model's present weights.

        Args:
            model: the model in training, not wrapped; it is copied.
            decay: share of the average that is kept per step, in (0, 1); such as 0.9997.

        Raises:
            ValueError: a decay outside (0, 1).
        """
        if not 0 < decay < 1:
            raise ValueError(f"train.ema_decay must be in (0, 1), or 0 for no average; not {decay}")
        self.decay = decay
        self.updates = 0
        self.module = copy.deepcopy(model).eval().requires_grad_(False)

    def decay_at(self, updates: int) -> float:
        """The decay of the update that follows `updates` earlier ones."""
        return min(self.decay, (1 + updates) / (10 + updates))

    @torch.no_grad()
    def update(self, model: Model) -> None:
        """Update the average with the weights of `model`, which was given at the start."""
        decay = self.decay_at(self.updates)
        # parameters() and buffers() name a shared tensor once, state_dict() would name it twice
        pairs = list(zip(*([*one.parameters(), *one.buffers()] for one in (self.module, model)), strict=True))
        floating = [average for average, _ in pairs if average.is_floating_point()]
        weights = [value.detach().to(average.dtype) for average, value in pairs if average.is_floating_point()]
        torch._foreach_lerp_(floating, weights, 1 - decay)  # on a GPU one launch instead of hundreds
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)
        self.updates += 1

    def state_dict(self) -> dict:
        """Weights and number of updates, for resuming."""
        return {"weights": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        """The inverse of :meth:`state_dict`."""
        self.module.load_state_dict(state["weights"])
        self.updates = state["updates"]
