"""Our own weights files: safetensors with the model's metadata as JSON in the header."""

import json
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from deformable_detr.checkpoints.prediction_heads import TWO_STAGE_MARK, count
from deformable_detr.checkpoints.report import Report
from deformable_detr.checkpoints.tensor_files import TensorFile, read_tensors
from deformable_detr.checkpoints.weights import UPDATES, Weights
from deformable_detr.config import Metadata
from deformable_detr.files import atomic_file
from deformable_detr.model.plain import as_built, network_of

FORMAT = "deformable-detr"


def save_weights(
    path: str | Path, model: nn.Module, *, metadata: Metadata | None = None, state_dict: dict[str, Tensor] | None = None
) -> Path:
    """Write the weights and everything that is needed to use them; the file appears whole or not at all.

    Args:
        path: the `.safetensors` file.
        model: the detector. Adapters, parametrisations and pruning are put into the weights, wrappers of PyTorch taken off.
        metadata: to be stored instead of `model.metadata`.
        state_dict: to be stored instead of the model's own weights, such as their moving average.

    Raises:
        TypeError: a model without weights to write, such as that of an exported file or a quantised one.
    """
    return _write(Path(path), state_dict or as_built(model).state_dict(), metadata or network_of(model).metadata)


def write(path: Path, model: nn.Module, report: Report) -> None:
    """As :func:`save_weights`, with a report."""
    save_weights(path, model)
    report.mapped = len(model.state_dict())


def _write(path: Path, state_dict: dict[str, Tensor], metadata: Metadata) -> Path:
    with atomic_file(path) as partial:
        write_tensors(partial, state_dict, {"format": FORMAT, "metadata": json.dumps(metadata.to_dict())})
    return path


def write_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: it cannot be written.
    """
    try:
        save_file(separate_memory(tensors), path, header)
    except SafetensorError as error:
        raise OSError(f"{path.parent} cannot be written to: {error}") from error


def save_thresholds(path: str | Path, thresholds: tuple[float, ...]) -> Path:
    """Write the score thresholds of the classes into a weights file of ours, which is replaced in one go.

    Args:
        path: the `.safetensors` file.
        thresholds: one per class, in [0, 1].

    Raises:
        ValueError: the file is of another layout, or has another number of classes.
    """
    tensors, metadata = read_own(path)
    return _write(Path(path), tensors, replace(metadata, thresholds=thresholds))


def read_own(path: str | Path) -> tuple[dict[str, Tensor], Metadata]:
    """Tensors and metadata of a weights file of ours.

    Raises:
        ValueError: the file is of another layout; the message says what to do.
    """
    file = read_tensors(path)
    metadata = read(file).metadata if file.header.get("format") == FORMAT else None
    if metadata is None:
        raise ValueError(
            f"{path} is not a weights file of our own, so it has no place for thresholds: convert it first "
            "(deformable-detr convert FILE NEW.safetensors)"
        )
    return file.tensors, metadata


def separate_memory(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and each with memory of its own, as safetensors wants it; copies only where that is not so."""
    tensors: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in state_dict.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.numel() and tensor.data_ptr() in taken:
            tensor = tensor.clone()
        taken.add(tensor.data_ptr())
        tensors[name] = tensor
    return tensors


def read(file: TensorFile) -> Weights:
    """A file of ours, or a plain state dict of ours.

    Raises:
        ValueError: the header is not what we write.
    """
    tensors = {name: tensor for name, tensor in file.tensors.items() if name not in UPDATES}
    weights = Weights(tensors, Report("native"), {name: name for name in tensors})
    if file.header.get("format") == FORMAT:
        try:
            weights.metadata = Metadata.from_dict(json.loads(file.header["metadata"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file.path} has our format, but its header cannot be read ({type(error).__name__}: {error})"
            ) from error
    else:
        two_stage, several = TWO_STAGE_MARK in tensors, count(tensors, r"class_heads\.(\d+)\.") > 1
        weights.settings = {
            "two_stage": two_stage,
            "box_refinement": several or two_stage,
            "shared_heads": two_stage and not several,
            "freeze_batch_norm": not any(name.endswith("num_batches_tracked") for name in file.tensors),
        }
    return weights
