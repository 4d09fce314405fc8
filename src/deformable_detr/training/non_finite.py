"""Diagnosis of non-finite values: the layer in which they arise first, the images, and the step saved for another look."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deformable_detr.config import LossConfig, Metadata
from deformable_detr.criterion import SetCriterion
from deformable_detr.criterion.criterion import number_of_boxes
from deformable_detr.files import atomic_file
from deformable_detr.model import DeformableDETR, build_model
from deformable_detr.model.adapters import merged
from deformable_detr.precision import Precision, autocast
from deformable_detr.structures import ImageBatch, Target, tensors_in
from deformable_detr.training.train_step import Batch, is_broken, statistics_kept

logger = logging.getLogger(__name__)

MOST_SAVED = 5
"""Largest number of steps of a run that are kept: each holds the weights and the images."""


@dataclass(frozen=True)
class Diagnosis:
    """Where a step broke, in the order of the computation."""

    where: str
    """`weights`, `images`, `forward`, `loss`, `backward`, or `nowhere` when the step is sound this time."""

    layer: str | None
    """The first module or parameter with a NaN or infinity, by its name in the model."""

    text: str
    """What was found, in sentences."""

    def __str__(self) -> str:
        return self.text


def diagnose(
    model: nn.Module, criterion: SetCriterion, batches: Sequence[Batch], device: torch.device, precision: Precision = "fp32"
) -> Diagnosis:
    """Repeat the forward and backward pass of a failed step and find where the first NaN or infinity arises.

    Weights, statistics of batch norms and optimiser stay as they are; gradients are left cleared. The mode of the model (train or
    eval) is kept. Of several processes each does this alone: the step may be broken in one of them only.

    Args:
        model: without a distributed wrapper.
        criterion: the losses.
        batches: of the step.
        device: where the model is.
        precision: arithmetic of the forward pass.
    """
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if is_broken(value):
            return Diagnosis("weights", name, f"The weights themselves are broken: first {name}, {_describe(value)}.")
    for images, targets in batches:
        broken = [t.image_id for image, t in zip(images.images, targets, strict=True) if is_broken(image)]
        if broken:
            return Diagnosis("images", None, f"The pixels of {broken} are non-finite after normalisation: check data.std.")
    for images, targets in batches:
        moved = images.to(device), [target.to(device) for target in targets]
        with statistics_kept(model):
            found = _diagnose_batch(model, criterion, *moved, precision)
        model.zero_grad()
        if found is not None:
            return found
    cause = "chance (dropout) is the cause, or another precision before"
    return Diagnosis("nowhere", None, f"Done again in {precision}, the step is sound: {cause}.")


def _diagnose_batch(
    model: nn.Module, criterion: SetCriterion, images: ImageBatch, targets: list[Target], precision: Precision
) -> Diagnosis | None:
    outputs: list[tuple[str, str]] = []  # modules with non-finite outputs, in the order of the computation
    gradients: list[tuple[str, str]] = []  # the same on the way back
    with _watched(model, outputs, gradients):
        with autocast(precision, images.images.device):
            predictions = model(images, targets)
        if outputs:
            name, text = outputs[0]
            more = f" {len(outputs) - 1} modules after it are broken, too." if len(outputs) > 1 else ""
            return Diagnosis("forward", name, f"The first broken output is that of {name}: {text}.{more}")
        try:
            losses = criterion(predictions, targets, num_boxes=number_of_boxes(targets, images.images.device))
        except FloatingPointError as error:
            return Diagnosis("loss", None, f"All layers are finite, but {error}.")
        broken = {name: value.item() for name, value in losses.items() if is_broken(value)}
        if broken:
            sizes = f"The boxes predicted range over [{predictions.boxes.min():.3g}, {predictions.boxes.max():.3g}]."
            return Diagnosis("loss", None, f"All layers are finite, but the losses {broken} are not. {sizes}")
        criterion.weighted_sum(losses).backward()
    parameters = [name for name, value in model.named_parameters() if is_broken(value.grad)]
    if not gradients and not parameters:
        return None
    name, text = gradients[0] if gradients else (parameters[0], "its own gradient")
    more = f"{', '.join(parameters[:4])}{' …' if len(parameters) > 4 else ''}"
    text = f"Layers and losses are finite; on the way back the first broken gradient is that of {name}: {text}."
    return Diagnosis("backward", name, f"{text} It reaches {len(parameters)} parameters: {more}.")


@contextmanager
def _watched(model: nn.Module, outputs: list[tuple[str, str]], gradients: list[tuple[str, str]]) -> Iterator[None]:
    """Note every module with non-finite outputs, and every output or parameter with a non-finite gradient, in order."""

    def hook(name: str, kind: str) -> Any:
        def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            for value in _tensors(output):
                if is_broken(value):
                    outputs.append((name, f"{kind}, {_describe(value)}; its input: {_ranges(inputs)}"))
                    return
                if value.requires_grad:
                    value.register_hook(note(f"the output of {name} ({kind})"))

        return look

    def note(name: str) -> Any:
        def look(gradient: Tensor) -> None:
            if is_broken(gradient):
                gradients.append((name, _describe(gradient)))

        return look

    handles: list[Any] = [
        module.register_forward_hook(hook(name, type(module).__name__)) for name, module in model.named_modules() if name
    ]
    handles += [value.register_hook(note(name)) for name, value in model.named_parameters() if value.requires_grad]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors of a module's output, however they are packed."""
    return [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]


def _describe(value: Tensor) -> str:
    nans, total = int(value.isnan().sum()), value.numel()
    return f"{nans} NaN and {int(value.isinf().sum())} infinite of {total} values"


def _ranges(inputs: Any) -> str:
    """How large the inputs of a module were."""
    texts = [f"[{value.min():.3g}, {value.max():.3g}]" for value in _tensors(inputs) if value.numel()]
    return ", ".join(texts) or "none"


@dataclass(frozen=True)
class KeptStep:
    """A failed step as it was kept, without its weights."""

    message: str
    """What went wrong."""

    metadata: Metadata
    """Of the model: its classes, and how images were normalised."""

    batches: list[Batch]
    """Images as the model got them, and their ground truth."""


def save_step(
    folder: Path, step: int, message: str, batches: Sequence[Batch], model: DeformableDETR, loss: LossConfig
) -> Path | None:
    """Keep a failed step for :func:`replay`: images, targets and weights, tensors and plain values only.

    Args:
        folder: made when missing; at most :data:`MOST_SAVED` steps are kept there.
        step: finished optimiser steps.
        message: what went wrong.
        batches: of the step.
        model: its weights and metadata are kept.
        loss: of the criterion.

    Returns:
        The file, or None when there are enough already or the disk is full.
    """
    path = folder / f"step-{step:08d}.pt"
    if folder.is_dir() and len(list(folder.glob("step-*.pt"))) >= MOST_SAVED:
        return None
    record = {
        "message": message,
        "metadata": model.metadata.to_dict(),
        "loss": asdict(loss),
        "training": model.training,
        "network": {name: value.cpu() for name, value in merged(model).state_dict().items()},
        "batches": [_batch_record(*batch) for batch in batches],
    }
    try:
        with atomic_file(path) as partial:
            torch.save(record, partial)
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as a RuntimeError
        logger.warning("the broken step could not be kept in %s: %s", path, error)
        return None
    return path


def _batch_record(images: ImageBatch, targets: Sequence[Target]) -> dict[str, Any]:
    return {
        "images": images.images.cpu(),
        "padding_mask": images.padding_mask.cpu(),
        "image_sizes": images.image_sizes,
        "targets": [(target.boxes.cpu(), target.labels.cpu(), target.image_id, target.image_size) for target in targets],
    }


def replay(path: str | Path, device: torch.device | str = "cpu") -> tuple[KeptStep, Diagnosis]:
    """Do a step that was kept by :func:`save_step` again, in fp32, and look where it breaks.

    Args:
        path: a file of a run's `non_finite` folder.
        device: where to compute.

    Returns:
        The step, and what is found this time.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or none of ours.
    """
    path, device = Path(path), torch.device(device)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; broken steps lie in the folder non_finite of a run")
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
        metadata, loss = Metadata.from_dict(record["metadata"]), LossConfig(**record["loss"])
        step = KeptStep(record["message"], metadata, [_read_batch(batch) for batch in record["batches"]])
        model = build_model(replace(metadata.model, pretrained_backbone=False))
        model.load_state_dict(record["network"])
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a saved training step ({type(error).__name__}: {error})") from error
    model.to(device).train(record["training"])
    return step, diagnose(model, SetCriterion.from_config(metadata.model, loss, metadata.categories), step.batches, device)


def _read_batch(record: dict[str, Any]) -> Batch:
    targets = [Target(*values) for values in record["targets"]]
    names = tuple(target.image_id for target in targets)
    sizes = record["image_sizes"]
    return ImageBatch(record["images"], record["padding_mask"], names, sizes and tuple(map(tuple, sizes))), targets
