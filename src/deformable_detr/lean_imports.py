"""Large libraries are imported without what they do not need: commands start in two thirds of the time, with 140 MB less.

**Without PyTorch's compiler**: timm and torchvision load it while they are imported, only to mark a few of their functions. Here
such a mark waits until the compiler is there. Whatever else they ask of the compiler loads it, and where it is loaded already
nothing changes. **Without a search for garbage**: none of the 300,000 objects that these imports make is garbage, and Python would
look through them again and again.
"""

import functools
import gc
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

MARKING = {"timm": (), "torchvision": ("torchvision.transforms.v2",)}
"""What asks for the compiler, and which of its other modules are imported at once because they ask, too."""

LARGE = {"torch", "supervision", "accelerate", *MARKING}
"""What is imported without a search for garbage."""

COMPILER, UTILS = "torch._dynamo", "torch._dynamo.utils"


def watch_imports() -> None:
    """From now on the first import of one of these libraries is a lean one."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _StandIn(ModuleType):
    """In the compiler's place in `sys.modules`; gives way to it as soon as it is asked for anything that it does not have."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system's questions
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


def _real(name: str) -> ModuleType:
    _remove_stand_ins()
    return import_module(name)


def _remove_stand_ins() -> None:
    for name in (COMPILER, UTILS):
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        stand_in = sys.modules.get(COMPILER)
        if name.startswith(f"{COMPILER}.") and isinstance(stand_in, _StandIn):  # another part of the compiler
            return PathFinder.find_spec(name, _real(COMPILER).__path__)
        if name not in LARGE:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _LeanLoader(spec.loader)
        return spec


class _LeanLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "loader"), name)  # of a spec without import: sources, data files

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        with _without_search_for_garbage(), _without_compiler() if module.__name__ in MARKING else nullcontext():
            self.loader.exec_module(module)
            for name in MARKING.get(module.__name__, ()):
                import_module(name)


@contextmanager
def _without_search_for_garbage() -> Iterator[None]:
    searches = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searches:
            gc.enable()


@contextmanager
def _without_compiler() -> Iterator[None]:
    import torch

    if COMPILER in sys.modules:  # the compiler, or the stand-ins of a library that imports another one
        yield
        return
    package, utils, disable = _StandIn(COMPILER), _StandIn(UTILS), torch.compiler.disable
    package.__path__ = []
    vars(utils)["is_compile_supported"] = lambda *arguments: _real(UTILS).is_compile_supported(*arguments)
    sys.modules |= {COMPILER: package, UTILS: utils}
    torch.compiler.disable = _lazy(disable)
    try:
        yield
    finally:
        torch.compiler.disable = disable
        _remove_stand_ins()


def _lazy(disable: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compiler.disable` for functions that nothing can compile before the compiler is loaded."""

    @functools.wraps(disable)
    def disable_later(fn: Any = None, *args: Any, **kwargs: Any) -> Any:
        if fn is None:
            return lambda marked: disable_later(marked, *args, **kwargs)
        if not inspect.isfunction(fn):
            return disable(fn, *args, **kwargs)
        disabled = None

        @functools.wraps(fn)
        def run(*inputs: Any, **named: Any) -> Any:
            nonlocal disabled
            if COMPILER not in sys.modules:
                return fn(*inputs, **named)
            if disabled is None:
                disabled = disable(fn, *args, **kwargs)
            return disabled(*inputs, **named)

        return run

    return disable_later
