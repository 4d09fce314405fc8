"""Large libraries are imported without what they do not need: commands start in three fifths of the time, with 140 MB less.

**Without PyTorch's compiler**: timm and torchvision load it while they are imported, only to mark a few of their functions. Here
such a mark waits until the compiler is there. Whatever else they ask of the compiler loads it, and where it is loaded already
nothing changes. **Without parts of SciPy**: supervision loads four of them for three functions, which are imported here when they
are called. **Without a search for garbage**: none of the 300,000 objects that these imports make is garbage, and Python would look
through them again and again.
"""

import functools
import gc
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

MARKING = {"timm": (), "torchvision": ("torchvision.transforms.v2",)}
"""What asks for the compiler, and which of its other modules are imported at once because they ask, too."""

LATER = {"supervision": {"scipy.interpolate": ("splev", "splprep"), "scipy.spatial": ("cKDTree",)}}
"""What a library imports and only calls: functions of modules that are imported at the first call."""

LARGE = {"torch", "accelerate", *LATER, *MARKING}
"""What is imported without a search for garbage."""

COMPILER, UTILS = "torch._dynamo", "torch._dynamo.utils"


def watch_imports() -> None:
    """From now on the first import of one of these libraries is a lean one."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


_keep = False


def keep_what_is_imported() -> None:
    """Never look for garbage among the objects of these libraries, nor among those that are there by then: for commands."""
    global _keep
    _keep = True


class _StandIn(ModuleType):
    """In a module's place in `sys.modules`; gives way to it as soon as it is asked for anything that it does not have."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system's questions
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


def _real(name: str) -> ModuleType:
    package = name.partition(".")[0]
    _remove([other for other in sys.modules if other.startswith(f"{package}.")])
    return import_module(name)


def _remove(names: Iterable[str]) -> None:
    for name in names:
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        parent = name.rpartition(".")[0]
        if isinstance(sys.modules.get(parent), _StandIn):  # a part that it does not have
            return PathFinder.find_spec(name, _real(parent).__path__)
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
        name = module.__name__
        compiler = _without_compiler() if name in MARKING else nullcontext()
        with _without_search_for_garbage(), compiler, _called_later(LATER.get(name, {})):
            self.loader.exec_module(module)
            for other in MARKING.get(name, ()):
                import_module(other)


@contextmanager
def _without_search_for_garbage() -> Iterator[None]:
    searches = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if _keep:
            gc.freeze()
        if searches:
            gc.enable()


@contextmanager
def _called_later(functions: Mapping[str, Sequence[str]]) -> Iterator[None]:
    """Stand-ins for modules that are not imported yet, with these of their functions."""
    missing = [module for module in functions if module not in sys.modules]
    for module in missing:
        sys.modules[module] = stand_in = _StandIn(module)
        vars(stand_in).update((name, _imported_when_called(module, name)) for name in functions[module])
    try:
        yield
    finally:
        _remove(missing)


def _imported_when_called(module: str, name: str) -> Callable[..., Any]:
    real = functools.cache(lambda: getattr(_real(module), name))

    def run(*inputs: Any, **named: Any) -> Any:
        return real()(*inputs, **named)

    run.__name__ = run.__qualname__ = name
    return run


@contextmanager
def _without_compiler() -> Iterator[None]:
    import torch

    if COMPILER in sys.modules:  # the compiler, or the stand-ins of a library that imports another one
        yield
        return
    disable = torch.compiler.disable
    torch.compiler.disable = _lazy(disable)
    try:
        with _called_later({COMPILER: (), UTILS: ("is_compile_supported",)}):
            yield
    finally:
        torch.compiler.disable = disable


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
