"""A tree of modules with some of them in another form."""

import copy
from collections.abc import Callable
from typing import TypeVar, cast

from torch import nn

Module = TypeVar("Module", bound=nn.Module)
Form = Callable[[str, nn.Module], nn.Module | None]
"""(name, module) → what stands in its place; None: the module with its children replaced."""


def rebuilt(module: Module, form: Form, name: str = "") -> Module:
    """A copy of a tree of modules with some of them replaced; the others are shared, with their weights."""
    new = form(name, module)
    if new is not None:
        return cast(Module, new)
    children = {key: child if child is None else rebuilt(child, form, f"{name}.{key}") for key, child in module._modules.items()}
    if all(children[key] is child for key, child in module._modules.items()):
        return module
    twin = copy.copy(module)
    twin._modules = children
    return twin
