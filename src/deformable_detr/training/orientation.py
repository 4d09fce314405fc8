"""Whether the images of a run have an up, found out by the model that is being trained: the setting `vertical_flip: auto`.

A model that has only seen upright images, and finds about as much in those of the validation split turned upside down, has
learned nothing that depends on which way is up, labels included: then upside-down images are as good to train on as any, and a
long run has twice as many of them before it knows them by heart.
"""

import logging
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from deformable_detr.evaluation.metrics import Metrics
from deformable_detr.model import DeformableDETR
from deformable_detr.structures import ImageBatch, Predictions
from deformable_detr.training.validation import Validation

logger = logging.getLogger(__name__)

AS_WELL = 0.9
"""The share of its AP that a model must keep on images upside down."""

KNOWS_ENOUGH = 0.5
"""AP50 from which on a model is asked: one that finds little has not learned yet what may depend on the orientation."""

LEAST_PASSES = 12
"""Runs with fewer passes over their images are left alone: in them flips gain nothing (docs/recipes.md)."""


class Orientation:
    """Decides once, at an evaluation in the first half of a run.

    Args:
        validation: the evaluations of the run.
        undecided: whether it is to be found out; else nothing is ever flipped by this.
    """

    def __init__(self, validation: Validation, *, undecided: bool) -> None:
        self.validation, self.undecided = validation, undecided
        self.free = False
        """Whether images may be turned upside down."""

    def due(self, metrics: Metrics, share: float, passes: int) -> bool:
        """Whether to decide now.

        Args:
            metrics: of the evaluation that was just made.
            share: of the run that is done.
            passes: of the whole run over its images.
        """
        return self.undecided and passes >= LEAST_PASSES and share <= 0.5 and metrics.ap50 >= KNOWS_ENOUGH

    def decide(self, network: DeformableDETR, metrics: Metrics, step: int) -> None:
        """Evaluate on the images upside down, and compare; every process must call this, and all decide the same.

        Args:
            network: the model.
            metrics: of its evaluation on the images as they are.
            step: finished steps, for the log.
        """
        turned = self.validation.measure(network, lambda done, total: None, UpsideDown).ap
        self.undecided, self.free = False, turned >= AS_WELL * metrics.ap
        what = "as well, so training goes on with such images, too" if self.free else "worse, so images stay as they are"
        logger.info("step %d: upside down the model detects %s (AP %.3f, upright %.3f)", step, what, turned, metrics.ap)

    def state_dict(self) -> dict[str, Any]:
        """What was decided, for resuming."""
        return {"undecided": self.undecided, "free": self.free}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; a run of before this was there has decided nothing."""
        self.undecided, self.free = state.get("undecided", self.undecided), state.get("free", self.free)


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
        found: Predictions = self.model(replace(images, images=_flipped(images)))
        x, y, width, height = found.boxes.unbind(-1)
        return Predictions(found.logits, torch.stack([x, 1 - y, width, height], dim=-1))


def _flipped(images: ImageBatch) -> Tensor:
    """Each image within its own size: the padding stays below it."""
    flipped = images.images.clone()
    for image, (height, width) in zip(flipped, images.image_sizes or (), strict=True):
        image[:, :height, :width] = image[:, :height, :width].flip(-2)
    return flipped
