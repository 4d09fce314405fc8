"""Capture a forward pass: hooks keep the arguments and results of modules while a block lasts.

The fused operator does not return offsets, weights and locations; :func:`sampling_of_call` computes them again from the arguments
of the attention module (paper, section 4.1, equation 3).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any, NamedTuple

from torch import Tensor, nn

from deformable_detr.model import MultiScaleDeformableAttention
from deformable_detr.ops.reference import sampling_locations_from_offsets
from deformable_detr.structures import map_tensors


@dataclass(frozen=True)
class Call:
    """The arguments and the result of one module's forward pass."""

    args: tuple
    output: Any


class Sampling(NamedTuple):
    """The sampling of an attention module, for every query."""

    reference_points: Tensor
    """`[B, Q, L, 2 | 4]` in [0, 1] of each padded level, the argument of the module."""

    offsets: Tensor
    """`[B, Q, M, L, P, 2]` (x, y): pixels of the level, or shares of half a box times P where references are boxes."""

    locations: Tensor
    """`[B, Q, M, L, P, 2]` (x, y) with the corners of each padded level at 0 and 1."""

    weights: Tensor
    """`[B, Q, M, L, P]`, sum to 1 over L · P."""


@contextmanager
def capture_calls(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Call]]:
    """Keep the last call of every module in this thread; the hooks are removed when the block ends, also by an error.

    Other threads may use the model meanwhile: hooks see their calls, too, which are of other images.
    """
    calls: dict[nn.Module, Call] = {}
    thread = get_ident()

    def keep(module: nn.Module, args: tuple, output: Any) -> None:
        if get_ident() == thread:
            calls[module] = Call(args, output)

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, and those modules that were in training mode back to it afterwards."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


def sampling_of_call(attention: MultiScaleDeformableAttention, call: Call) -> Sampling:
    """Compute offsets, weights and locations of one attention module from its arguments.

    Call it in the same autocast context as the module, so that the linear layers round in the same way.
    """
    query, reference_points, _, spatial_shapes, *_ = call.args
    offsets, logits = (value.to(reference_points.dtype) for value in attention.offsets_and_logits(query))
    weights = logits.flatten(-2).softmax(-1).unflatten(-1, logits.shape[-2:])
    return Sampling(reference_points, offsets, sampling_locations_from_offsets(reference_points, offsets, spatial_shapes), weights)


def on_cpu(value: Any) -> Any:
    """Copy nested tuples, lists and dataclasses with their tensors detached and on the CPU."""
    return map_tensors(lambda tensor: tensor.detach().cpu(), value)
