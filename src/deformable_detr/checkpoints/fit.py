"""Checks that tensors fit a model, and puts them there."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from deformable_detr.checkpoints.architecture import variant_name
from deformable_detr.checkpoints.report import shorten
from deformable_detr.checkpoints.weights import Weights
from deformable_detr.config import Metadata
from deformable_detr.model import DeformableDETR, build_model
from deformable_detr.model.skeleton import skeletons

logger = logging.getLogger(__name__)

_ADVICE = {
    "NaN or infinite values": ". Did the training diverge? Take weights from before that",
    "negative variances": ". Is the file damaged?",  # batch norms take their square root: NaN, as if there were no objects
}


def build_from(weights: Weights, metadata: Metadata, path: Path, *, strict: bool) -> DeformableDETR:
    """The model that `metadata` describes, with these weights.

    Args:
        weights: under our names.
        metadata: settings and classes.
        path: of the file, for messages.
        strict: every tensor must be there and fit. Otherwise those that do not stay at their initial values.

    Raises:
        ValueError: something does not fit; the message names all of it by the names of the file.
    """
    with skeletons():
        model = build_model(metadata.model, pretrained_backbone=False).float()  # whatever the default dtype
    expected = model.state_dict()
    _add_counters(weights, expected)
    problems = _problems(weights, expected)
    if problems and strict:
        raise ValueError(
            f"{path} ({weights.report.source_format} layout) does not fit the network that it seems to hold "
            f"({variant_name(metadata.model)}, {metadata.model.num_classes} classes):\n  " + "\n  ".join(problems)
        )
    tensors = {name: tensor for name, tensor in weights.tensors.items() if name in expected and _fits(tensor, expected[name])}
    if problems:
        logger.warning("%s: kept at their initial values, since they do not fit:\n  %s", path, "\n  ".join(problems))
        model = build_model(metadata.model, pretrained_backbone=False).float()
        tensors = model.state_dict() | tensors
    model.load_state_dict(
        {name: _in_precision_of(tensor, expected[name], weights, name) for name, tensor in tensors.items()}, assign=True
    )
    _fill_buffers(model, metadata)
    model.metadata = metadata
    return model


def _fill_buffers(model: DeformableDETR, metadata: Metadata) -> None:
    """Buffers that no file keeps (indices of Swin's windows, rotary encodings) are those of a network built anew."""
    stored = model.state_dict().keys()
    if all(name in stored for name, _ in model.named_buffers()):
        return
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        fresh = build_model(metadata.model, pretrained_backbone=False).float()
    for name, buffer in fresh.named_buffers():
        if name not in stored:
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, buffer)


def _add_counters(weights: Weights, expected: dict[str, Tensor]) -> None:
    """Trained batch norms count their batches; other layouts leave the number out, and it changes nothing."""
    for name in expected:
        if name.endswith("num_batches_tracked") and name not in weights.tensors:
            weights.tensors[name] = torch.zeros((), dtype=torch.int64, device="cpu")


def _problems(weights: Weights, expected: dict[str, Tensor]) -> list[str]:
    """Tensors that are missing, unknown, misshapen or broken, each kind as one line."""
    tensors = weights.tensors
    missing = [weights.named(name) for name in expected if name not in tensors]
    unknown = [*weights.unknown, *(weights.named(name) for name in tensors if name not in expected)]
    misshapen = [
        f"{weights.named(name)} is {list(tensors[name].shape)}, expected {list(tensor.shape)}{_hint(tensors[name], tensor)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    mistyped = [
        f"{weights.named(name)} is {_name(tensors[name].dtype)}, expected {_name(tensor.dtype)} (quantised?)"
        for name, tensor in expected.items()
        if name in tensors and tensor.is_floating_point() != tensors[name].is_floating_point()
    ]
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    kinds = {
        "missing": missing,
        "not understood": sorted(unknown),
        "wrong shape": misshapen,
        "wrong type": mistyped,
        "NaN or infinite values": [weights.named(name) for name, tensor in floats.items() if not _is_finite(tensor.float())],
        "negative variances": [
            weights.named(name) for name, tensor in floats.items() if name.endswith("running_var") and (tensor.float() < 0).any()
        ],
    }
    return [f"{kind} ({len(names)}): {shorten(names)}{_ADVICE.get(kind, '')}" for kind, names in kinds.items() if names]


def _is_finite(tensor: Tensor) -> bool:
    """A sum is finite where all is, costs no memory, and is quick."""
    return bool(tensor.sum().isfinite() or tensor.isfinite().all())


def _fits(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and found.is_floating_point() == expected.is_floating_point()


def _hint(found: Tensor, expected: Tensor) -> str:
    return " (transposed?)" if found.ndim > 1 and found.shape == expected.shape[::-1] else ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _in_precision_of(tensor: Tensor, expected: Tensor, weights: Weights, name: str) -> Tensor:
    """A copy: the tensor itself may be a window on the file, which somebody may write over while the network is in use."""
    if tensor.dtype == expected.dtype:
        return tensor.clone()
    weights.report.reshaped.append(f"{weights.named(name)} ({_name(tensor.dtype)} → float32)")
    return tensor.to(expected.dtype)
