"""A checkpoint on its way: tensors under our names, what the file says beside them, and what became of each."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from deformable_detr.checkpoints.keymap import KeyMap
from deformable_detr.checkpoints.report import Report
from deformable_detr.config import Metadata, ModelConfig


@dataclass
class Weights:
    """The content of a checkpoint of any layout, in our terms."""

    tensors: dict[str, Tensor]
    """Our name → tensor."""

    report: Report
    """What became of every tensor so far."""

    origin: dict[str, str] = field(default_factory=dict)
    """Our name → the name in the file, for messages."""

    unknown: list[str] = field(default_factory=list)
    """Names of the file that mean nothing here."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the model (names of `ModelConfig`) that the file states beside its tensors."""

    details: dict[str, Any] = field(default_factory=dict)
    """Other fields of `Metadata` that the file states: categories, image sizes, …"""

    stated: list[tuple[str, str, Any]] = field(default_factory=list)
    """(their entry, our setting, value) of a config beside the tensors, which the model that is built must agree with."""

    refused: list[str] = field(default_factory=list)
    """Features of the file that this model does not have, in sentences: an error, unless `strict=False`."""

    metadata: Metadata | None = None
    """All of it, where the file is one of ours or keeps our header."""

    their_name: Callable[[str], str | None] = lambda name: name
    """Our name → what the file would call it, for messages about what it lacks."""

    def named(self, name: str) -> str:
        """What the file calls one of our tensors."""
        return self.origin.get(name) or self.their_name(name) or name

    def pop(self, name: str) -> Tensor:
        """Take a tensor out, with its entry in `origin`."""
        self.origin.pop(name, None)
        return self.tensors.pop(name)

    def rename(self, name: str, new: str) -> None:
        """Give a tensor another of our names."""
        self.origin[new] = self.origin[name]
        self.tensors[new] = self.pop(name)


UPDATES = ("n_averaged", "steps")
"""What counts the updates of EMA weights among them: in PyTorch's AveragedModel, in mmengine's."""

_IGNORED = re.compile(
    r"(criterion\.|ema_\w+$)|.*(num_batches_tracked|total_ops|total_params|pixel_mean|pixel_std|relative_position_index|"
    rf"{'|'.join(UPDATES)})$"
)
"""Counters, buffers of losses, normalisation and windows, and mmcv's copies of weights: tensors that are no weights."""


def translate(tensors: dict[str, Tensor], keys: KeyMap, report: Report) -> Weights:
    """Give all tensors our names.

    Args:
        tensors: by the names of the file.
        keys: the table of its layout.
        report: is filled.

    Raises:
        ValueError: two names refer to one tensor, but their contents differ.
    """
    weights = Weights({}, report, their_name=keys.to_theirs)
    names = sorted(tensors, key=lambda name: name != keys.to_theirs(keys.to_ours(name) or name))  # copies last
    for name in names:
        ours = keys.to_ours(name)
        if _IGNORED.match(name):
            report.dropped.append(name)
        elif ours is None:
            weights.unknown.append(name)
        elif ours not in weights.tensors:
            weights.tensors[ours], weights.origin[ours] = tensors[name], name
        elif same(weights.tensors[ours], tensors[name]):
            report.dropped.append(name)
        else:
            raise ValueError(
                f"{report.source_format} checkpoint: {weights.origin[ours]} and {name} must be copies of each other, but differ"
            )
    return weights


def leave_out(tensors: dict[str, Tensor], report: Report, *endings: str) -> dict[str, Tensor]:
    """The tensors without those that a layout has no use for, by the ends of their names; the report names them."""
    report.dropped += [name for name in tensors if name.endswith(endings)]
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(endings)}


def translate_back(tensors: dict[str, Tensor], keys: KeyMap, config: ModelConfig, layout: str) -> dict[str, Tensor]:
    """Give our tensors the names of another layout, and heads a second one where its code keeps them in the decoder, too.

    Raises:
        ValueError: the layout has no name for a tensor.
    """
    state_dict: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        theirs, copy = keys.to_theirs(name), keys.copy_of(name)
        if theirs is None:
            raise ValueError(f"{layout} has no place for {name}")
        state_dict[theirs] = tensor
        if copy and (config.two_stage or (config.box_refinement and name.startswith("decoder.box_heads."))):
            state_dict[copy] = tensor
    return state_dict


def tensors_crc(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of the values on the CPU, in the order of their names."""
    crc = 0
    for _, tensor in sorted(tensors.items()):
        crc = crc32(tensor.detach().cpu().flatten().view(torch.uint8).numpy(), crc)  # pyright: ignore[reportArgumentType]
    return crc


def same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors hold the same values; shared memory is not read, nor are sparse ones, which are refused by name later."""
    kinds = [(tensor.shape, tensor.dtype, tensor.layout, tensor.device) for tensor in (first, second)]
    if kinds[0] != kinds[1]:
        return False
    if first.layout != torch.strided or first.is_meta:
        return True
    if first.data_ptr() == second.data_ptr() and first.stride() == second.stride():
        return True
    return torch.equal(first, second) or bool(((first == second) | (first.isnan() & second.isnan())).all())
