"""Networks without numbers: their modules, and the names and sizes of their tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_INITIALISERS = {nn.init.normal_, nn.init.kaiming_normal_}


class _Unfilled(TorchFunctionMode):
    """Without numbers nothing is drawn: for `normal_`, PyTorch would load its compiler and symbolic mathematics (1.5 s, 100 MB)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func in _INITIALISERS or func is torch.Tensor.normal_:
            return args[0] if args else named["tensor"]
        return (torch.empty if func is torch.randn else func)(*args, **named)


@contextmanager
def skeletons() -> Iterator[None]:
    """What is built meanwhile is on PyTorch's meta device, and initial values are not computed."""
    with torch.device("meta"), _Unfilled():
        yield
