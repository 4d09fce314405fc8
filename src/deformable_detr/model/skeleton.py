"""Networks without numbers: their modules, and the names and sizes of their tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_FILLING = {nn.init.normal_, nn.init.kaiming_normal_, torch.Tensor.normal_}


class _Unfilled(TorchFunctionMode):
    """Draws nothing where no numbers are kept: PyTorch would load its compiler and symbolic mathematics for it (1.5 s, 100 MB)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func in _FILLING and (tensor := args[0] if args else named["tensor"]).is_meta:
            return tensor
        if func is torch.randn and not {"device", "generator"} & named.keys():
            func = torch.empty
        return func(*args, **named)


@contextmanager
def skeletons() -> Iterator[None]:
    """What is built meanwhile is on PyTorch's meta device, and initial values are not computed."""
    with torch.device("meta"), _Unfilled():
        yield
