"""Listening in on one forward pass: hooks note what modules are called with, for as long as a block lasts.

The fused operator keeps offsets, weights and places to itself; :func:`sampling_of_call` computes them anew from the arguments
of the attention module (paper, section 4.1, equation 3).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from deformable_detr.model import MultiScaleDeformableAttention
from deformable_detr.ops.reference import sampling_locations_from_offsets


@dataclass(frozen=True)
class Call:
    """The arguments and the result of one module's forward pass."""

    args: tuple
    output: Any


class Sampling(NamedTuple):
    """What an attention module does inside, for every query."""

    reference_points: Tensor
    """`[B, Q, L, 2 | 4]` in [0, 1] of each padded level, as the module was given it."""

    offsets: Tensor
    """`[B, Q, M, L, P, 2]` (x, y): pixels of the level, or shares of half a box times P where references are boxes."""

    locations: Tensor
    """`[B, Q, M, L, P, 2]` (x, y) with the corners of each padded level at 0 and 1."""

    weights: Tensor
    """`[B, Q, M, L, P]`, sum to 1 over L · P."""


@contextmanager
def capture_calls(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Call]]:
    """Keep the last call of every module; the hooks go when the block ends, whatever happens in it."""
    calls: dict[nn.Module, Call] = {}

    def keep(module: nn.Module, args: tuple, output: Any) -> None:
        calls[module] = Call(args, output)

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and the mode from before afterwards."""
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in was_training.items():
            module.training = training


def sampling_of_call(attention: MultiScaleDeformableAttention, call: Call) -> Sampling:
    """Offsets, weights and places of one attention module, from what it was called with.

    Run it in the same autocast context as the call, so that the linear maps round alike.
    """
    query, reference_points, _, spatial_shapes, _ = call.args
    offsets, logits = (value.to(reference_points.dtype) for value in attention.offsets_and_logits(query))
    weights = logits.flatten(-2).softmax(-1).unflatten(-1, logits.shape[-2:])
    return Sampling(reference_points, offsets, sampling_locations_from_offsets(reference_points, offsets, spatial_shapes), weights)


def on_cpu(value: Any) -> Any:
    """The same nest of tuples, lists and dataclasses with its tensors on the CPU, detached."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, (list, tuple)):
        moved = [on_cpu(item) for item in value]
        return type(value)(*moved) if hasattr(value, "_fields") else type(value)(moved)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{item.name: on_cpu(getattr(value, item.name)) for item in fields(value)})
    return value
