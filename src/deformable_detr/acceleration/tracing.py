"""The calls of a backbone as a graph, recorded without touching anything that other threads use.

`torch.fx.symbolic_trace` replaces `nn.Module.__call__` of the whole process while it runs: other threads' models fail meanwhile.
Here the forward passes of the containers run on copies of them, whose children are stand-ins that only note their call.
"""

import copy
import logging
from typing import Any, TypeGuard

from timm.layers.norm_act import FrozenBatchNorm2d, FrozenBatchNormAct2d
from torch import fx, nn
from torch.fx.proxy import GraphAppendingTracer

logger = logging.getLogger(__name__)

BATCH_NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d, FrozenBatchNormAct2d)  # BatchNormAct2d is a BatchNorm2d


def trace(body: nn.Module) -> fx.Graph | None:
    """The calls of `body` in evaluation mode as a graph; None where its code cannot be followed without values."""
    graph = fx.Graph()
    tracer = GraphAppendingTracer(graph)
    try:
        images = tracer.create_proxy("placeholder", "images", (), {})
        outputs = _copy_of(body, "", tracer)(images)
        graph.output(tracer.create_arg(outputs))
    except Exception as error:  # whatever a model's own code raises on a proxy
        logger.info("the backbone %s is not optimised: its calls cannot be recorded (%s)", type(body).__name__, error)
        return None
    return graph


def untouched(module: nn.Module) -> bool:
    """Whether a call of `module` runs the forward pass that its class was written with on its own, ordinary parameters, and nothing
    else: who reads the weights alone would leave that out."""
    return runs_class_only(module) and runs_as_written(type(module))


def runs_class_only(module: nn.Module) -> bool:
    """Whether nothing was put into this module beside what its class does.

    Hooks (pruning, adapters), parametrisations, a replaced `forward`, compiled modules and parameters of other tensor types
    (quantised, distributed) are what others put there.
    """
    hooks = module._forward_hooks or module._forward_pre_hooks or getattr(module, "_compiled_call_impl", None)
    return not (
        hooks
        or "forward" in vars(module)
        or "parametrizations" in module._modules
        or any(type(parameter) is not nn.Parameter for parameter in module._parameters.values() if parameter is not None)
    )


def runs_as_written(kind: type[nn.Module]) -> bool:
    """Whether a class's calls and forward pass are those of its source: `nn.Linear.forward = …` changes all linear maps.

    A function that was written elsewhere has another name or module, a wrapped one says so. A class that decorates its own forward
    pass counts as changed, too: it is called as it is.
    """
    if kind.__call__ is not nn.Module._wrapped_call_impl or nn.Module._call_impl.__qualname__ != "Module._call_impl":
        return False
    owner = next(parent for parent in kind.__mro__ if "forward" in vars(parent))
    forward: Any = vars(owner)["forward"]
    name = getattr(forward, "__module__", None), getattr(forward, "__qualname__", None)
    written_here = name == (owner.__module__, f"{owner.__qualname__}.forward") and not hasattr(forward, "__wrapped__")
    return written_here or owner is nn.Module


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether `module` is nothing but a linear map by its `weight` and `bias`."""
    return type(module) is nn.Linear and untouched(module)


def consists_of(part: nn.Module, kind: type[nn.Module], *kinds: type[nn.Module], parts_below: bool = True) -> bool:
    """Whether a part is exactly of this kind, with nothing hooked into it, so that another form may replace it.

    Args:
        part: of the model.
        kind: its type.
        kinds: the types of all modules below it.
        parts_below: False: these are called as they are, whatever they are.
    """
    below = list(part.modules())[1:] if parts_below else []
    return type(part) is kind and untouched(part) and all(type(module) in kinds and untouched(module) for module in below)


def _copy_of(module: nn.Module, name: str, tracer: GraphAppendingTracer) -> Any:
    """A container whose children are stand-ins, or a stand-in, which notes that the module of this name is called."""

    def call(*args: Any, **kwargs: Any) -> fx.Proxy:
        return tracer.create_proxy("call_module", name, args, kwargs)

    if _is_leaf(module):
        return call
    prefix = f"{name}." if name else ""
    twin = copy.copy(module)
    twin.training = False
    twin._modules = {
        key: None if child is None else _copy_of(child, prefix + key, tracer) for key, child in module._modules.items()
    }
    twin._parameters, twin._buffers = {}, {}
    for key, tensor in [*module._parameters.items(), *module._buffers.items()]:  # read by the container's own code
        vars(twin)[key] = None if tensor is None else tracer.create_proxy("get_attr", prefix + key, (), {})
    return twin


def _is_leaf(module: nn.Module) -> bool:
    """torch's own modules, convolutions, batch norms, and modules with hooks."""
    if not untouched(module):
        return True
    own = type(module).__module__.startswith("torch.nn.") and not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
    return own or isinstance(module, (nn.Conv2d, *BATCH_NORMS))
