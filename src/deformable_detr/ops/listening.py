"""Whether anything would see a call of an operator on its way through PyTorch's dispatcher."""

import functools
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

_Keys = list[torch._C.DispatchKeySet]


def nothing_listens(*tensors: Tensor) -> bool:
    """True where the dispatcher would go straight to autograd and the device's kernel: plain tensors, and nothing switched on.

    Subclasses, fake and negated tensors, modes, transforms, functionalisation, tracing, autocast and other devices all show in the
    keys that a tensor carries or that this thread includes and excludes; compilers, profilers, `__torch_function__` are asked.
    """
    if torch.compiler.is_compiling() or torch.autograd._profiler_enabled() or torch.overrides.has_torch_function(tensors):
        return False
    included, excluded, carried = _unaltered(tensors[0].device.type)
    if torch._C._dispatch_tls_local_include_set() not in included or torch._C._dispatch_tls_local_exclude_set() not in excluded:
        return False
    return all(torch._C._dispatch_keys(tensor) in carried for tensor in tensors)


@functools.cache
def _unaltered(device: str) -> tuple[_Keys, _Keys, _Keys]:
    """What a new thread, where nothing is switched on, includes, excludes and gives to a tensor: outside and in inference mode."""

    def look() -> _Keys:
        tensor = torch.empty(0, dtype=torch.float32, device=device)
        return [
            torch._C._dispatch_tls_local_include_set(),
            torch._C._dispatch_tls_local_exclude_set(),
            torch._C._dispatch_keys(tensor),
        ]

    def both() -> list[_Keys]:
        usual = look()
        with torch.inference_mode():
            return [usual, look()]

    with ThreadPoolExecutor(1) as thread:
        included, excluded, carried = zip(*thread.submit(both).result(), strict=True)
    return list(included), list(excluded), list(carried)
