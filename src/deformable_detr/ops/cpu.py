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

LIBRARY_VARIABLE = "DEFORMABLE_DETR_CPU_LIBRARY"
LIBRARY = Path(os.environ.get(LIBRARY_VARIABLE) or Path(__file__).with_name("_cpu_kernels.so"))
"""The compiled kernels; the environment variable names another build of them (`make test-asan`)."""

ISA_VARIABLE = "DEFORMABLE_DETR_CPU_ISA"
ISAS = ("portable", "avx2", "avx512")  # in the order of msda_supports
_OUT_OF_MEMORY = 1  # MSDA_OUT_OF_MEMORY
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

INTERFACE = 3
"""`MSDA_INTERFACE` of csrc/problem.h: raised with every change of the structs."""

MANY_PAGES = 4 << 20
"""Bytes of an output from which huge pages are asked for. Above 32 MB, glibc takes memory afresh at each call, page by page."""

LAYOUT = 0
"""0: the kernel chooses; 1: value is read in place; 2: each head is copied first (for tests)."""


def _fields(sizes: str, buffers: str) -> list[tuple[str, type]]:
    """Sizes, and each buffer as an address and its size in bytes."""
    fields: list[tuple[str, type]] = [(name, ctypes.c_int64) for name in sizes.split()]
    for name in buffers.split():
        fields += [(name, ctypes.c_void_p), (f"{name}_bytes", ctypes.c_int64)]
    return fields


class Problem(ctypes.Structure):
    """`msda_problem` of csrc/problem.h."""

    _fields_ = _fields(
        "batch tokens heads channels queries levels points reference_size dtype geometry_dtype threads layout",
        "shapes value reference offsets weights grad_output output grad_value grad_reference grad_offsets grad_weights",
    )


class WinogradProblem(ctypes.Structure):
    """`winograd_problem` of csrc/problem.h; see `ops.winograd`."""

    _fields_ = _fields(
        "batch height width channels out_channels tiles relu threads",
        "input weights bias added transformed products output",
    )


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
    expected = INTERFACE << 32 | ctypes.sizeof(Problem) << 16 | ctypes.sizeof(WinogradProblem)
    loaded.msda_interface.argtypes, loaded.msda_interface.restype = [], ctypes.c_int64
    if loaded.msda_interface() != expected:
        raise KernelsMissing(f"{LIBRARY.name} was built from other sources: install the package again")
    for isa in ISAS:
        for function, problem in (("msda_forward", Problem), ("msda_backward", Problem), ("winograd_convolution", WinogradProblem)):
            if (entry := getattr(loaded, f"{function}_{isa}", None)) is not None:
                entry.argtypes, entry.restype = [ctypes.POINTER(problem)], ctypes.c_int
    loaded.msda_message.argtypes, loaded.msda_message.restype = [ctypes.c_int], ctypes.c_char_p
    loaded.msda_use_gomp.argtypes, loaded.msda_use_gomp.restype = [ctypes.c_void_p], None
    loaded.msda_use_huge_pages.argtypes, loaded.msda_use_huge_pages.restype = [ctypes.c_void_p, ctypes.c_int64], None
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

    For threads that work beside the model: with a team of threads each, they would take its cores away in the middle of a step.
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


def run(function: str, problem: Problem | WinogradProblem) -> None:
    """Call a kernel of the current form with a problem whose buffers are attached.

    Raises:
        MemoryError: the kernel could not allocate its buffers.
        RuntimeError: the problem contradicts itself; nothing was written.
    """
    status = getattr(library(), f"{function}_{current_isa()}")(ctypes.byref(problem))
    if status != 0:
        reason = library().msda_message(status).decode()
        raise (MemoryError if status == _OUT_OF_MEMORY else RuntimeError)(f"{function}: {reason}")


def attach(problem: Problem | WinogradProblem, name: str, tensor: Tensor) -> None:
    """Enter a tensor as a buffer; it must stay alive until the kernel has returned.

    Raises:
        TypeError: not a contiguous tensor in the CPU's memory. Size and alignment are checked by the kernel, which knows them.
    """
    if not tensor.is_cpu or not tensor.is_contiguous():
        raise TypeError(f"{name}: the CPU kernels take contiguous CPU tensors, got strides {tensor.stride()} on {tensor.device}")
    setattr(problem, name, tensor.data_ptr())
    setattr(problem, f"{name}_bytes", tensor.nbytes)


def aligned(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in this type, contiguous and at an address that is a multiple of its element's size: itself, where it is that."""
    if tensor.dtype != dtype or not tensor.is_contiguous():
        tensor = tensor.detach().to(dtype).contiguous()
    return tensor if tensor.data_ptr() % tensor.itemsize == 0 else tensor.detach().clone()


def new_tensor(*sizes: int) -> Tensor:
    """An uninitialised float32 tensor in the CPU's memory, whatever the defaults of the process are."""
    return torch.empty(sizes, dtype=torch.float32, device="cpu")


def _num_threads(samples: int) -> int:
    return max(1, min(torch.get_num_threads(), samples // 2048))  # waking a thread costs more than 2048 samples


def _problem(
    value: Tensor, shapes: Sequence[int], reference: Tensor | None, offsets: Tensor, weights: Tensor
) -> tuple[Problem, list[object]]:
    """The struct for these tensors, and what must stay alive while it is used."""
    batch, tokens, heads, channels = value.shape
    _, queries, _, levels, points, _ = offsets.shape
    threads = _num_threads(batch * queries * heads * levels * points)
    geometry = offsets.dtype if offsets.dtype == weights.dtype and offsets.dtype in DTYPES else torch.float32
    buffers = {"value": aligned(value, value.dtype), "offsets": aligned(offsets, geometry), "weights": aligned(weights, geometry)}
    reference_size = 0
    if reference is not None:
        reference_size, buffers["reference"] = reference.shape[-1], aligned(reference, torch.float32)
    sizes = batch, tokens, heads, channels, queries, levels, points, reference_size
    problem = Problem(*sizes, DTYPES[value.dtype], DTYPES[geometry], threads, LAYOUT)
    array = (ctypes.c_int64 * len(shapes))(*shapes)
    problem.shapes, problem.shapes_bytes = ctypes.addressof(array), ctypes.sizeof(array)
    for name, tensor in buffers.items():
        attach(problem, name, tensor)
    return problem, [array, *buffers.values()]


def forward(value: Tensor, shapes: Sequence[int], reference: Tensor | None, offsets: Tensor, weights: Tensor) -> Tensor:
    """Attention output `[B, Q, M * D]` in the type of `value`.

    Args:
        value: `[B, S, M, D]`, float32, bfloat16 or float16.
        shapes: `h_0, w_0, h_1, w_1, …`.
        reference: `[B, Q, L, 2 | 4]` for the fused form; None: `offsets` are locations and `weights` are no logits.
        offsets: `[B, Q, M, L, P, 2]`, of any float type; widened as they are read.
        weights: `[B, Q, M, L, P]`, likewise.
    """
    batch, tokens, heads, channels = value.shape
    output = torch.empty(batch, offsets.shape[1], heads * channels, dtype=value.dtype, device="cpu")
    if output.numel() == 0 or tokens == 0 or weights.numel() == 0:
        return output.zero_()
    problem, _keep = _problem(value, shapes, reference, offsets, weights)
    attach(problem, "output", output)
    if output.nbytes >= MANY_PAGES:
        library().msda_use_huge_pages(output.data_ptr(), output.nbytes)
    run("msda_forward", problem)
    return output


def backward(
    grad_output: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    reference: Tensor | None,
    offsets: Tensor,
    weights: Tensor,
    with_reference: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of (value, reference, offsets, weights), the one of the reference empty unless asked for.

    They belong to `grad_output`, `[B, Q, M * D]`; the arguments between are those of `forward`.
    """
    batch, tokens, heads, _ = value.shape
    grads = {"grad_value": new_tensor(*value.shape)}
    grads |= {"grad_offsets": new_tensor(*offsets.shape), "grad_weights": new_tensor(*weights.shape)}
    shares = new_tensor(0)
    if with_reference and reference is not None:
        shares = grads["grad_reference"] = new_tensor(batch, heads, *reference.shape[1:])  # one per head
    if grad_output.numel() == 0 or tokens == 0 or weights.numel() == 0:
        for grad in grads.values():
            grad.zero_()
    else:
        problem, _keep = _problem(value, shapes, reference, offsets, weights)
        grad_output = aligned(grad_output, torch.float32)
        attach(problem, "grad_output", grad_output)
        for name, grad in grads.items():
            attach(problem, name, grad)
        run("msda_backward", problem)
    grad_reference = shares.sum(1) if "grad_reference" in grads else shares
    found = grads["grad_value"].to(value.dtype), grad_reference, grads["grad_offsets"].to(offsets.dtype)
    return *found, grads["grad_weights"].to(weights.dtype)
