"""The native CPU kernels: how the library is found, which instructions it uses, and how tensors are handed to it."""

import ctypes
import functools
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

LIBRARY = Path(__file__).with_name("_cpu_kernels.so")
ISA_VARIABLE = "DEFORMABLE_DETR_CPU_ISA"
ISAS = ("portable", "avx2", "avx512")  # in the order of msda_supports
VALUE_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

_SIZES = ("batch", "tokens", "heads", "channels", "queries", "levels", "points", "reference_size", "dtype", "threads", "layout")
_POINTERS = ("shapes", "value", "reference", "offsets", "weights", "grad_output")
_RESULTS = ("output", "grad_value", "grad_reference", "grad_offsets", "grad_weights")


class Problem(ctypes.Structure):
    """`msda_problem` of csrc/problem.h."""

    _fields_ = [(name, ctypes.c_int64) for name in _SIZES] + [(name, ctypes.c_void_p) for name in _POINTERS + _RESULTS]


class KernelsMissing(ImportError):
    """The compiled kernels are not there or cannot be loaded; the message says why."""


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled library, with torch's thread pool handed to it.

    Raises:
        KernelsMissing: it was not built (no compiler at installation) or does not load here.
    """
    if not LIBRARY.exists():
        raise KernelsMissing(f"{LIBRARY.name} was not built (no C++ compiler at installation?)")
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        raise KernelsMissing(f"{LIBRARY.name} does not load: {error}") from error
    for isa in ISAS:
        for direction in ("forward", "backward"):
            if (function := getattr(loaded, f"msda_{direction}_{isa}", None)) is not None:
                function.argtypes, function.restype = [ctypes.POINTER(Problem)], ctypes.c_int
    loaded.msda_use_gomp.argtypes, loaded.msda_use_gomp.restype = [ctypes.c_void_p], None
    loaded.msda_use_gomp(_gomp_parallel())
    return loaded


def _gomp_parallel() -> int | None:
    """The address of GOMP_parallel in the OpenMP runtime that torch has loaded; None starts plain threads instead."""
    for path in _loaded_openmp():
        try:
            function = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value
    logger.info("no OpenMP runtime with GOMP_parallel is loaded: the operator starts its own threads for each call")
    return None


def _loaded_openmp() -> list[str]:
    """Loaded OpenMP runtimes, torch's own first."""
    try:
        mapped = Path("/proc/self/maps").read_text().splitlines()
    except OSError:  # not Linux
        return []
    paths = {line.split(maxsplit=5)[5] for line in mapped if re.search(r"/lib(gomp|iomp5|omp)[^/]*\.so[^/]*$", line)}
    return sorted(paths, key=lambda path: (str(Path(torch.__file__).parent) not in path, path))


def use_one_core_here() -> None:
    """Let PyTorch's operations in the calling thread run on one core; other threads keep theirs.

    For threads that work beside the network: with a team of threads each, they would take its cores away in the middle of a step.
    Without an OpenMP runtime nothing changes.
    """
    torch.get_num_threads()  # PyTorch sets up a thread at its first question, and would undo what follows
    for path in _loaded_openmp()[:1]:
        ctypes.CDLL(path).omp_set_num_threads(1)


@functools.cache
def supported_isas() -> tuple[str, ...]:
    """The forms of the kernels that are built in and run on this processor, the fastest last.

    Raises:
        KernelsMissing: see `library`.
    """
    loaded = library()
    built = [isa for isa in ISAS if hasattr(loaded, f"msda_forward_{isa}")]
    return tuple(isa for isa in built if loaded.msda_supports(ISAS.index(isa)))


def current_isa() -> str:
    """The form in use: the fastest one, or what the environment variable DEFORMABLE_DETR_CPU_ISA names.

    Raises:
        KernelsMissing: see `library`.
        ValueError: the variable names a form that is not built in or does not run here.
    """
    supported = supported_isas()
    wanted = os.environ.get(ISA_VARIABLE)
    if not wanted:
        return supported[-1]
    if wanted not in supported:
        raise ValueError(f"{ISA_VARIABLE}={wanted!r}: this processor and build offer {', '.join(supported)}")
    return wanted


def missing_reason() -> str | None:
    """Why the kernels cannot be used, or None when they can."""
    try:
        library()
    except KernelsMissing as error:
        return str(error)
    return None


def _problem(
    value: Tensor, shapes: Sequence[int], reference: Tensor | None, offsets: Tensor, weights: Tensor
) -> tuple[Problem, list[object]]:
    """The struct for these contiguous tensors, and what must stay alive while it is used."""
    batch, tokens, heads, channels = value.shape
    queries, levels, points = offsets.shape[1], offsets.shape[3], offsets.shape[4]
    sizes = (ctypes.c_int64 * len(shapes))(*shapes)
    work = batch * queries * heads * levels * points
    threads = max(1, min(torch.get_num_threads(), work // 2048))  # waking a thread costs more than 2048 samples
    reference_size = 0 if reference is None else reference.shape[-1]
    dtype = VALUE_DTYPES[value.dtype]
    problem = Problem(batch, tokens, heads, channels, queries, levels, points, reference_size, dtype, threads, 0)
    problem.shapes = ctypes.addressof(sizes)
    problem.value, problem.offsets, problem.weights = value.data_ptr(), offsets.data_ptr(), weights.data_ptr()
    if reference is not None:
        problem.reference = reference.data_ptr()
    return problem, [sizes, value, reference, offsets, weights]


def _run(direction: str, problem: Problem) -> None:
    status = getattr(library(), f"msda_{direction}_{current_isa()}")(ctypes.byref(problem))
    if status != 0:
        raise MemoryError("not enough memory for the buffers of multi-scale deformable attention")


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().contiguous()


def forward(value: Tensor, shapes: Sequence[int], reference: Tensor | None, offsets: Tensor, weights: Tensor) -> Tensor:
    """Attention output `[B, Q, M * D]` in the type of `value`.

    Args:
        value: `[B, S, M, D]`, float32, bfloat16 or float16.
        shapes: `h_0, w_0, h_1, w_1, …`.
        reference: `[B, Q, L, 2 | 4]` float32 for the fused form; None: `offsets` are locations and `weights` are no logits.
        offsets: `[B, Q, M, L, P, 2]` float32.
        weights: `[B, Q, M, L, P]` float32.
    """
    batch, _, heads, channels = value.shape
    output = torch.empty(batch, offsets.shape[1], heads * channels)
    if output.numel() == 0 or value.shape[1] == 0 or weights.numel() == 0:
        return output.zero_().to(value.dtype)
    problem, _keep = _problem(*_inputs(value, shapes, reference, offsets, weights))
    problem.output = output.data_ptr()
    _run("forward", problem)
    return output.to(value.dtype)


def _inputs(
    value: Tensor, shapes: Sequence[int], reference: Tensor | None, offsets: Tensor, weights: Tensor
) -> tuple[Tensor, Sequence[int], Tensor | None, Tensor, Tensor]:
    return value.detach().contiguous(), shapes, _contiguous(reference), offsets.detach().contiguous(), weights.detach().contiguous()


def backward(
    grad_output: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    reference: Tensor | None,
    offsets: Tensor,
    weights: Tensor,
    with_reference: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of (value, reference, offsets, weights); the one of the reference is empty unless asked for.

    Args:
        grad_output: `[B, Q, M * D]`.
        value: as in `forward`, like the rest.
        shapes: see `forward`.
        reference: see `forward`.
        offsets: see `forward`.
        weights: see `forward`.
        with_reference: whether the reference's gradient is wanted.
    """
    with_reference = with_reference and reference is not None
    grad_offsets, grad_weights = torch.empty_like(offsets, memory_format=torch.contiguous_format), torch.empty(weights.shape)
    if grad_output.numel() == 0 or value.shape[1] == 0 or weights.numel() == 0:
        grad_reference = torch.zeros(reference.shape) if with_reference and reference is not None else torch.empty(0)
        return torch.zeros(value.shape, dtype=value.dtype), grad_reference, grad_offsets.zero_(), grad_weights.zero_()
    grad_value = torch.empty(value.shape)
    problem, _keep = _problem(*_inputs(value, shapes, reference, offsets, weights))
    grad_output = grad_output.detach().to(torch.float32).contiguous()
    problem.grad_output, problem.grad_value = grad_output.data_ptr(), grad_value.data_ptr()
    problem.grad_offsets, problem.grad_weights = grad_offsets.data_ptr(), grad_weights.data_ptr()
    shares = torch.empty(0)
    if with_reference and reference is not None:
        shares = torch.empty(value.shape[0], value.shape[2], *reference.shape[1:])  # one per head
        problem.grad_reference = shares.data_ptr()
    _run("backward", problem)
    return grad_value.to(value.dtype), shares.sum(1) if with_reference else shares, grad_offsets, grad_weights
