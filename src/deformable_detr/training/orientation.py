"""Whether the images of a run have an up, found out by the model that is being trained: `vertical_flip: auto`, `transpose: auto`.

A model that has only seen upright images, and finds about as much in those of the validation split turned upside down, has
learned nothing that depends on which way is up, labels included: then upside-down images are as good to train on as any, and a
long run has twice as many of them before it knows them by heart. Likewise for rows and columns that change places.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deformable_detr.evaluation.metrics import Metrics
from deformable_detr.model import DeformableDETR
from deformable_detr.structures import ImageBatch, Predictions
from deformable_detr.training.validation import Validation

logger = logging.getLogger(__name__)

AS_WELL = 0.9
"""The share of its AP that a model must keep on turned images."""

KNOWS_ENOUGH = 0.5
"""AP50 from which on a model is asked: one that finds little has not learned yet what may depend on the orientation."""

LEAST_PASSES = 12
"""Runs with fewer passes over their images are left alone: in them turned images gain nothing (docs/recipes.md)."""


class Orientation:
    """Decides once, at an evaluation in the first half of a run.

    Args:
        validation: the evaluations of the run.
        undecided: those of `vertical_flip` and `transpose` that are to be found out, see
            :attr:`~deformable_detr.config.DataConfig.undecided_turns`.
    """

    def __init__(self, validation: Validation, undecided: Sequence[str]) -> None:
        self.validation, self.undecided = validation, tuple(undecided)
        self.free: tuple[str, ...] = ()
        """What may be done to the images."""

    def due(self, metrics: Metrics, share: float, passes: int) -> bool:
        """Whether to decide now.

        Args:
            metrics: of the evaluation that was just made.
            share: of the run that is done.
            passes: of the whole run over its images.
        """
        return bool(self.undecided) and passes >= LEAST_PASSES and share <= 0.5 and metrics.ap50 >= KNOWS_ENOUGH

    def decide(self, network: DeformableDETR, metrics: Metrics, step: int) -> None:
        """Evaluate on turned images, and compare; every process must call this, and all decide the same.

        Args:
            network: the model.
            metrics: of its evaluation on the images as they are.
            step: finished steps, for the log.
        """
        for name in self.undecided:
            if name == "vertical_flip":
                how, before, after = "upside down", metrics.ap, self._ap(network, UpsideDown)
            else:
                windows = [self._ap(network, partial(SquareWindow, transposed=transposed)) for transposed in (False, True)]
                how, before, after = "with rows and columns exchanged", *windows
            found = f"step {step}: {how} the model detects %s (AP {after:.3f}, upright {before:.3f})"
            if after < AS_WELL * before:  # nor need the next one be asked: images with an up are not to be transposed
                logger.info(found, "worse, so images stay as they are")
                break
            logger.info(found, "as well, so training goes on with such images, too")
            self.free += (name,)
        self.undecided = ()

    def _ap(self, network: DeformableDETR, form: Callable[[nn.Module], nn.Module]) -> float:
        return self.validation.measure(network, lambda done, total: None, form).ap

    def state_dict(self) -> dict[str, Any]:
        """What was decided, for resuming."""
        return {"undecided": self.undecided, "free": self.free}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; a run of before this was there has decided nothing."""
        self.undecided, self.free = (tuple(state.get(name, getattr(self, name))) for name in ("undecided", "free"))


class UpsideDown(nn.Module):
    """A model that gets its images upside down; its boxes are in the frame of the images as they were given.

    Args:
        model: takes an ImageBatch with image sizes, gives Predictions.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: ImageBatch) -> Predictions:
        """The predictions of the decoder alone."""
        flipped = images.images.clone()
        for image, (height, width) in zip(flipped, images.image_sizes or (), strict=True):
            image[:, :height, :width] = image[:, :height, :width].flip(-2)  # the padding stays below it
        found: Predictions = self.model(replace(images, images=flipped))
        x, y, width, height = found.boxes.unbind(-1)
        return Predictions(found.logits, torch.stack([x, 1 - y, width, height], dim=-1))


class SquareWindow(nn.Module):
    """A model that gets the largest square in the middle of each image; its boxes are in the frame of the images as given.

    Wide images become tall ones by transposing, which a model that was trained on wide ones does worse on whatever they show.
    Squares keep their proportions, so AP on them tells what the transposition itself costs. (It is low: objects outside the
    squares are not found.)

    Args:
        model: takes an ImageBatch with image sizes, gives Predictions.
        transposed: whether rows and columns of the squares are exchanged.
    """

    def __init__(self, model: nn.Module, *, transposed: bool) -> None:
        super().__init__()
        self.model, self.transposed = model, transposed

    def forward(self, images: ImageBatch) -> Predictions:
        """The predictions of the decoder alone."""
        windows: list[Tensor] = []
        frames: list[tuple[float, ...]] = []
        for image, (height, width) in zip(images.images, images.image_sizes or (), strict=True):
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            window = image[:, top : top + side, left : left + side]
            windows.append(window.mT if self.transposed else window)
            frames.append((left / width, top / height, side / width, side / height))
        found: Predictions = self.model(ImageBatch.from_images(windows))
        boxes = found.boxes[..., [1, 0, 3, 2]] if self.transposed else found.boxes
        left, top, width, height = boxes.new_tensor(frames).T[..., None]  # each [B, 1]
        x, y, w, h = boxes.unbind(-1)
        return Predictions(found.logits, torch.stack([left + width * x, top + height * y, width * w, height * h], dim=-1))
