"""One optimiser step: forward, losses, backward over one or several batches, clip, step.

With accumulation the losses of every batch are divided by the number of boxes of the whole step, so that the step is that of one
larger batch up to rounding, as far as images do not depend on their batch. In training they do where they are padded to a larger
image, where a batch norm is trained, and in denoising, where the image with the most objects decides how many queries each one has.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from deformable_detr.criterion.criterion import SetCriterion, number_of_boxes
from deformable_detr.model import DeformableDETR
from deformable_detr.structures import ImageBatch, Predictions, Target
from deformable_detr.training.processes import in_any_process

logger = logging.getLogger(__name__)

USUAL_CAUSES = (
    "Usual causes: a learning rate that is too high (lower optimizer.lr, or set optimizer.warmup_steps and "
    "optimizer.clip_grad_norm), fp16 (try train.precision=bf16 or fp32), or broken annotations of these images. "
    "The last saved state is still in the run folder."
)

Batch = tuple[ImageBatch, list[Target]]


class NonFiniteLossError(FloatingPointError):
    """The loss became NaN or infinite; the message names the terms and the images."""


def train_step(
    model: nn.Module,
    criterion: SetCriterion,
    optimizer: Optimizer,
    batches: Sequence[Batch],
    accelerator: Accelerator,
    clip_grad_norm: float = 0.1,
) -> dict[str, float]:
    """Do one optimiser step on `batches` and return its losses.

    Args:
        model: in train mode, as prepared by the accelerator.
        criterion: gives the losses of a batch.
        optimizer: as prepared by the accelerator.
        batches: one or more batches that make one step together.
        accelerator: devices, precision and processes.
        clip_grad_norm: largest norm of the whole gradient; 0 only measures it.

    Returns:
        `loss` (the weighted sum), each unweighted term by its name, and `grad_norm` before clipping.

    Raises:
        NonFiniteLossError: a loss or gradient is NaN or infinite; the weights are as they were before the step.
    """
    num_boxes: Tensor | None = None
    if len(batches) > 1:  # else the criterion sees all of them by itself
        boxes = number_of_boxes([target for _, targets in batches for target in targets], accelerator.device)
        num_boxes = cast(Tensor, accelerator.reduce(boxes, "mean"))
    totals: dict[str, Tensor] = {}
    recomputed = cast(DeformableDETR, accelerator.unwrap_model(model)).encoder.gradient_checkpointing
    optimizer.zero_grad()
    for index, (images, targets) in enumerate(batches):
        last = index == len(batches) - 1
        with nullcontext() if last else accelerator.no_sync(model):
            moved = [target.to(accelerator.device, non_blocking=True) for target in targets]
            with accelerator.autocast():
                predictions = model(images.to(accelerator.device, non_blocking=True), moved)
            losses = _losses(criterion, predictions, moved, accelerator, num_boxes)
            with statistics_kept(model) if recomputed else nullcontext():  # what is computed again would count twice
                accelerator.backward(losses["loss"])
        for name, value in losses.items():
            totals[name] = totals.get(name, 0) + value.detach()
    accelerator.unscale_gradients(optimizer)
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = get_total_norm([cast(Tensor, parameter.grad) for parameter in parameters])
    if accelerator.scaler is None and is_broken(norm):  # the fp16 scaler skips such a step by itself
        raise NonFiniteLossError(_describe_gradient(model, batches))
    if clip_grad_norm > 0:
        clip_grads_with_norm_(parameters, clip_grad_norm, norm)
    totals["grad_norm"] = norm
    optimizer.step()
    names = list(totals)
    return dict(zip(names, torch.stack([totals[name].float() for name in names]).tolist(), strict=True))


@contextmanager
def statistics_kept(model: nn.Module, *, if_raised: bool = False) -> Iterator[None]:
    """Put the statistics of batch norms back as they were before: a forward pass in training mode changes them.

    Args:
        model: whose batch norms are meant.
        if_raised: only where the block ends with an error, in which they may have become NaN.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    before = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    finished = False
    try:
        yield
        finished = True
    finally:
        for buffer, value in () if finished and if_raised else before:
            buffer.copy_(value)


def _losses(
    criterion: SetCriterion,
    predictions: Predictions,
    targets: Sequence[Target],
    accelerator: Accelerator,
    num_boxes: Tensor | None,
) -> dict[str, Tensor]:
    """`loss`, the weighted sum, and each unweighted term by its name; all of them finite, in every process."""
    losses: dict[str, Tensor] = {}
    failure, cause = "", None
    try:
        losses = criterion(predictions, targets, num_boxes)
        losses = {"loss": criterion.weighted_sum(losses), **losses}
        if is_broken(losses["loss"]):
            broken = [f"{name}={value.item()}" for name, value in losses.items() if is_broken(value) and name != "loss"]
            failure = f"non-finite loss: {', '.join(broken) or 'the weighted sum overflows'}"
    except FloatingPointError as error:  # predictions that cannot be matched
        failure, cause = str(error), error
    if failure:
        failure += f"; images of the batch: {[target.image_id for target in targets]}. {USUAL_CAUSES}"
    if in_any_process(bool(failure), accelerator) and not failure:  # all stop together, before gradients are exchanged
        failure = "another process met a non-finite loss"
    if failure:
        raise NonFiniteLossError(failure) from cause
    return losses


def _describe_gradient(model: nn.Module, batches: Sequence[Batch]) -> str:
    """The parameters with a non-finite gradient, after a finite loss."""
    broken = [name for name, parameter in model.named_parameters() if is_broken(parameter.grad)]
    return (
        f"finite loss but non-finite gradient, for {len(broken)} parameters: {', '.join(broken[:8])}"
        f"{' …' if len(broken) > 8 else ''}; images: {[target.image_id for _, targets in batches for target in targets]}. "
        f"{USUAL_CAUSES}"
    )


def is_broken(value: Tensor | None) -> bool:
    """Whether there is a NaN or infinity in a tensor; whole numbers and None have none."""
    return value is not None and value.is_floating_point() and not bool(torch.isfinite(value).all())
