"""The network itself, where other tools have wrapped it or put something on its parts."""

import copy

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from deformable_detr.model.adapters import merged
from deformable_detr.model.deformable_detr import DeformableDETR
from deformable_detr.model.rebuild import rebuilt


def network_of(model: nn.Module) -> DeformableDETR:
    """The network without the wrappers of PyTorch and peft around it and its parts, sharing its weights.

    Raises:
        TypeError: another kind of module, such as that of an exported file.
    """
    inner = unwrapped(model)
    if hasattr(inner, "get_base_model"):  # peft's
        inner = unwrapped(inner.get_base_model())  # pyright: ignore[reportCallIssue]
    if not isinstance(inner, DeformableDETR):
        name = type(model).__name__
        raise TypeError(f"there are no layers to look into and no weights in a {name}: take the detector that it was made from")
    return rebuilt(inner, _unwrapped)


def unwrapped(module: nn.Module) -> nn.Module:
    """What is inside the wrappers of PyTorch that change nothing: `DataParallel` and its like, and `torch.compile`."""
    while True:
        if isinstance(module, (nn.DataParallel, DistributedDataParallel, AveragedModel)):
            module = module.module
        elif isinstance(inner := module._modules.get("_orig_mod"), nn.Module):
            module = inner
        else:
            return module


def as_built(model: nn.Module) -> DeformableDETR:
    """The same network as it was built: without wrappers, and what adapters, parametrisations and pruning do is in the weights.

    Args:
        model: stays as it is; the other weights are shared with it.

    Raises:
        TypeError: another kind of module, or one with quantised parts.
    """
    network = rebuilt(merged(network_of(model)), _plain)
    for name, value in network.state_dict().items():
        if type(value) is not Tensor or value.is_quantized:
            part = name.partition("._packed_params")[0]
            raise TypeError(f"{part} of the model is quantised: take the detector that it was made from")
    return network


def _unwrapped(name: str, module: nn.Module) -> nn.Module | None:
    inner = unwrapped(module)
    return None if inner is module else rebuilt(inner, _unwrapped, name)


def _plain(name: str, module: nn.Module) -> nn.Module | None:
    """What stands for a module that `torch.nn.utils` parametrises, prunes or norms."""
    if parametrize.is_parametrized(module):
        return rebuilt(_without_parametrizations(module), _plain, name)
    hooks = [key for key, hook in module._forward_pre_hooks.items() if hasattr(hook, "remove")]
    if not hooks:
        return None
    own = _own_tensors(module)
    for key in hooks:
        own._forward_pre_hooks.pop(key).remove(own)  # pyright: ignore[reportFunctionMemberAccess]
    return rebuilt(own, _plain, name)


def _without_parametrizations(module: nn.Module) -> nn.Module:
    """By hand: PyTorch's own removal changes the class that copies of a parametrised module share."""
    twin = object.__new__(type(module).__bases__[0])
    vars(twin).update(vars(module))
    tensors = {name: getattr(module, name).detach() for name in module._modules["parametrizations"]}  # type: ignore[union-attr]
    twin._modules = {name: child for name, child in module._modules.items() if name != "parametrizations"}
    twin._parameters = module._parameters | {name: nn.Parameter(tensor) for name, tensor in tensors.items()}
    return twin


def _own_tensors(module: nn.Module) -> nn.Module:
    """A copy with tensors and hooks of its own; `copy.deepcopy` refuses weights that a hook has computed."""
    twin = copy.copy(module)
    twin._parameters = {
        name: value if value is None else nn.Parameter(value.detach().clone(), value.requires_grad)
        for name, value in module._parameters.items()
    }
    twin._buffers = {name: value if value is None else value.clone() for name, value in module._buffers.items()}
    twin._forward_pre_hooks = module._forward_pre_hooks.copy()
    return twin
