"""Which implementation of the operator runs: `cpu` (native code), `triton` (GPU) or `reference` (plain PyTorch), and why."""

import functools
import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from deformable_detr.ops import cpu
from deformable_detr.ops.plain import PLAIN

logger = logging.getLogger(__name__)

BACKENDS = ("cpu", "triton", "reference")
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_forced: str | None = None  # what use_backend says


def available_backends() -> tuple[str, ...]:
    """The backends that can run here, `reference` (always there) last."""
    return tuple(name for name in BACKENDS if _missing(name) is None)


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Within this context every call without a `backend=` argument uses this one (in the whole process, not only this thread).

    Raises:
        ValueError: an unknown name.
        RuntimeError: the backend cannot run here; the message says why.
    """
    global _forced
    _require(backend)
    before, _forced = _forced, backend
    try:
        yield
    finally:
        _forced = before


def choose_backend(value: Tensor, backend: str | None) -> str:
    """The backend for this tensor: the argument, else `use_backend`, else the fastest one that fits.

    Raises:
        ValueError: an unknown name, or a backend that cannot take this device or dtype.
        RuntimeError: the backend asked for cannot run here.
    """
    wanted = backend if backend is not None else _forced
    if wanted is None:
        return _fastest(value)
    _require(wanted)
    if wanted not in PLAIN and value.dtype not in KERNEL_DTYPES:
        raise ValueError(
            f"backend: {wanted!r} has no kernel for {value.dtype}; use float32, bfloat16, float16 or backend='reference'"
        )
    if wanted == "cpu" and value.device.type != "cpu":
        raise ValueError(f"backend: 'cpu' needs CPU tensors, value is on {value.device}")
    if wanted == "triton" and value.device.type != "cuda" and not _interpreting():
        raise ValueError(f"backend: 'triton' needs tensors on a GPU, value is on {value.device}")
    return wanted


def _fastest(value: Tensor) -> str:
    device = value.device.type
    name = {"cpu": "cpu", "cuda": "triton"}.get(device)
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return "reference"  # an exported program must run where this package is not
    if name is None:
        reason = f"there is no kernel for {device} tensors"
    elif value.dtype not in KERNEL_DTYPES:
        reason = f"there is no kernel for {value.dtype}"
    else:
        reason = _missing(name)
        if reason is None:
            return name
    if not torch.compiler.is_compiling():
        _say_once(reason, logging.WARNING if value.dtype in KERNEL_DTYPES else logging.INFO)
    return "reference"


@functools.cache
def _say_once(reason: str, level: int) -> None:
    logger.log(level, "multi-scale deformable attention runs the slow reference implementation: %s", reason)


def _require(backend: str) -> None:
    if backend not in {*BACKENDS, *PLAIN}:
        raise ValueError(f"backend: {backend!r} is none of {', '.join(map(repr, dict.fromkeys((*BACKENDS, *PLAIN))))}")
    if (reason := _missing(backend)) is not None:
        raise RuntimeError(f"backend: {backend!r} cannot run here: {reason}")


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _missing(backend: str) -> str | None:
    """Why a backend cannot run here; None when it can."""
    return _probe(backend)


# A compiled program asks once. This is what torch.compiler.assume_constant_result does after loading the compiler, a second's work.
_missing._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


@functools.cache
def _probe(backend: str) -> str | None:
    if backend == "cpu":
        return cpu.missing_reason()
    if backend == "triton":
        if importlib.util.find_spec("triton") is None:
            return "the package triton is not installed"
        if not torch.cuda.is_available() and not _interpreting():
            return "there is no CUDA or ROCm device"
    return None
