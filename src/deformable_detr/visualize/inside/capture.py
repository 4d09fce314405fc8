"""Capture a forward pass: hooks keep the arguments and results of modules while a block lasts."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from deformable_detr.structures import map_tensors


@dataclass(frozen=True)
class Call:
    """One module's forward pass."""

    args: tuple
    output: Any
    operations: int
    """Those counted meanwhile, where a counter runs."""


class OperationCounter(TorchDispatchMode):
    """Counts the operations of this thread by PyTorch's formulas.

    PyTorch's own counter has hooks in the modules of all threads, and fails with gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """See PyTorch."""
        kwargs, formula = kwargs or {}, flop_registry.get(func.overloadpacket)
        if formula is None:
            with self:
                output = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if output is NotImplemented else output
        output = func(*args, **kwargs)
        self.total += formula(*args, **kwargs, out_val=output)
        return output


@contextmanager
def capture_calls(modules: Iterable[nn.Module], counter: OperationCounter | None = None) -> Iterator[dict[nn.Module, Call]]:
    """Keep the last call of every module in this thread; the hooks are removed when the block ends, also by an error.

    Other threads may use the model meanwhile: hooks see their calls, too, which are of other images.
    """
    calls: dict[nn.Module, Call] = {}
    begun: dict[nn.Module, int] = {}
    thread = get_ident()

    def begin(module: nn.Module, args: tuple) -> None:
        if get_ident() == thread:
            begun[module] = counter.total if counter else 0

    def keep(module: nn.Module, args: tuple, output: Any) -> None:
        if get_ident() == thread:
            calls[module] = Call(args, output, counter.total - begun[module] if counter else 0)

    modules = list(modules)
    handles = [module.register_forward_pre_hook(begin) for module in modules]
    handles += [module.register_forward_hook(keep) for module in modules]
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


def on_cpu(value: Any) -> Any:
    """Copy nested tuples, lists and dataclasses with their tensors detached and on the CPU."""
    return map_tensors(lambda tensor: tensor.detach().cpu(), value)
