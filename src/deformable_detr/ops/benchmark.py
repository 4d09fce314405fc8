"""Side-by-side measurements of the operator: every backend here and the classic form, on the same tensors in one run.

Times are medians of interleaved runs; peak memory is measured in a process of its own; errors are against float64.
Implementations of others come in as :class:`Peers`: `benchmarks/operator_peers.py` has them.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from deformable_detr.ops import cpu
from deformable_detr.ops.backends import available_backends
from deformable_detr.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_fused
from deformable_detr.ops.reference import multi_scale_deformable_attn_pytorch, sampling_locations_from_offsets

Operator = Callable[..., Tensor]
CLASSIC = "classic"
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Case:
    """One problem: an image of `height` x `width` at strides 8 to 64, and the tokens themselves or some queries looking at it."""

    name: str
    batch: int = 1
    height: int = 800
    width: int = 1333
    queries: int | None = None
    """None: one query per token, at its own position, as in an encoder."""
    fused: bool = True
    """Softmax and sampling locations belong to what is measured."""
    heads: int = 8
    channels: int = 32
    points: int = 4

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(h, w) of the four levels."""
        return [(-(-self.height // stride), -(-self.width // stride)) for stride in (8, 16, 32, 64)]


CASES = (
    Case("encoder"),
    Case("encoder, batch 2", batch=2),
    Case("encoder, plain", fused=False),
    Case("300 queries", queries=300),
    Case("300 queries, batch 2", batch=2, queries=300),
    Case("300 queries, plain", queries=300, fused=False),
)


@dataclass
class Measurement:
    """One implementation on one case: seconds, bytes above the inputs, errors as a share of the largest value.

    The gradient's error is that of values and weights: the one of locations jumps at pixel edges, where rounding picks a side.
    """

    case: str
    implementation: str
    forward: float
    forward_backward: float
    first_call: float
    error: float
    gradient_error: float
    memory_forward: int | None = None
    memory_forward_backward: int | None = None


def make_inputs(case: Case, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """[value, reference points, offsets, logits], or [value, locations, weights] of the plain form; offsets of about 3 pixels."""
    generator = torch.Generator("cpu").manual_seed(0)

    def random(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float32, device="cpu")

    def centres(size: int) -> Tensor:
        return (torch.arange(size, dtype=torch.float32, device="cpu") + 0.5) / size

    tokens, levels = sum(h * w for h, w in case.shapes), len(case.shapes)
    value = random(case.batch, tokens, case.heads, case.channels)
    if case.queries is None:
        places = [torch.cartesian_prod(centres(h), centres(w)).flip(-1) for h, w in case.shapes]
        reference = torch.cat(places)[None, :, None].expand(case.batch, tokens, levels, 2).contiguous()
    else:
        sizes = (case.batch, case.queries, levels, 2)
        reference = torch.rand(*sizes, generator=generator, dtype=torch.float32, device="cpu")
    geometry = (case.batch, reference.shape[1], case.heads, levels, case.points)
    offsets, logits = 3 * random(*geometry, 2), random(*geometry)
    value = value.to(dtype)
    if case.fused:
        return [tensor.to(device) for tensor in (value, reference, offsets, logits)]
    locations = sampling_locations_from_offsets(reference, offsets, case.shapes)
    return [tensor.to(device) for tensor in (value, locations, logits.flatten(3).softmax(-1).view_as(logits))]


def unfused(operator: Operator, fused: bool) -> Operator:
    """An operator (value, shapes, locations, weights), with softmax and locations in front of it when the case has them."""

    def run(shapes: list[tuple[int, int]], value: Tensor, *geometry: Tensor) -> Tensor:
        places, weights = geometry[-2:]
        if fused:
            places = sampling_locations_from_offsets(geometry[0], places, shapes)
            weights = weights.flatten(3).softmax(-1).view_as(weights)
        return operator(value, shapes, places.to(value.dtype), weights.to(value.dtype))

    return run


def _ours(backend: str, isa: str | None, fused: bool) -> Operator:
    operator = ms_deform_attn_fused if fused else ms_deform_attn

    def run(shapes: list[tuple[int, int]], value: Tensor, *geometry: Tensor) -> Tensor:
        with _instructions(isa):
            return operator(value, shapes, *geometry, backend=backend)

    return run


@contextmanager
def _instructions(isa: str | None) -> Iterator[None]:
    before = os.environ.get(cpu.ISA_VARIABLE)
    if isa is not None:
        os.environ[cpu.ISA_VARIABLE] = isa
    try:
        yield
    finally:
        os.environ.pop(cpu.ISA_VARIABLE, None)
        if before is not None:
            os.environ[cpu.ISA_VARIABLE] = before


@dataclass(frozen=True)
class Peers:
    """Implementations of others: how each is built (ImportError: it is not installed), and what measures its memory.

    Args:
        builders: name → function of `Case.fused` that returns an operator (shapes, *inputs).
        command: a command line that calls :func:`main` with these peers, to which a task is appended.
    """

    builders: Mapping[str, Callable[[bool], Operator]] = field(default_factory=dict)
    command: Sequence[str] = (sys.executable, "-m", "deformable_detr.ops.benchmark")

    def installed(self) -> list[str]:
        """The names of those that can be imported."""
        names = []
        for name, build in self.builders.items():
            with suppress(ImportError):
                build(False)
                names.append(name)
        return names


NO_PEERS = Peers()


def implementations(device: str, peers: Peers = NO_PEERS) -> list[str]:
    """The names of everything that can be measured here: the classic form first, then peers, then this package."""
    names = [CLASSIC, *peers.installed()]
    backends = available_backends()
    if device == "cpu" and "cpu" in backends:
        names += [f"cpu {isa}" for isa in cpu.supported_isas()]
    if device != "cpu" and "triton" in backends:
        names.append("triton")
    return names


def _operator(name: str, fused: bool, peers: Peers) -> Operator:
    if name == CLASSIC:
        return unfused(multi_scale_deformable_attn_pytorch, fused)
    if name in peers.builders:
        return peers.builders[name](fused)
    backend, _, isa = name.partition(" ")
    return _ours(backend, isa or None, fused)


def clock(function: Callable[[], Any], device: str = "cpu") -> tuple[float, Any]:
    """Seconds of a call, on a GPU until it has finished, and what it gives."""
    if device != "cpu":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    found = function()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, found


def median_times(runs: Mapping[Key, Callable[[], Any]], rounds: int, device: str = "cpu") -> dict[Key, float]:
    """The median seconds of each of several functions, which take turns in so many rounds."""
    times: dict[Key, list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            times[key].append(clock(run, device)[0])
    return {key: statistics.median(found) for key, found in times.items()}


def _step(operator: Operator, case: Case, inputs: list[Tensor], grad: Tensor | None) -> Callable[[], list[Tensor]]:
    """One forward pass, or with `grad` one forward and backward pass that returns the output and the gradients."""
    if grad is None:

        def forward() -> list[Tensor]:
            with torch.no_grad():
                return [operator(case.shapes, *inputs)]

        return forward
    wanted = [0, *range(2 if case.fused else 1, len(inputs))]  # not the reference points: in an encoder they are constants

    def both() -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_(i in wanted) for i, tensor in enumerate(inputs)]
        output = operator(case.shapes, *leaves)
        output.backward(grad)
        return [output.detach(), *(g for i in wanted if (g := leaves[i].grad) is not None)]

    return both


def _error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).abs().max() / exact.abs().max()).item()


def measure(
    case: Case,
    names: list[str],
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    rounds: int = 7,
    memory: bool = True,
    peers: Peers = NO_PEERS,
) -> list[Measurement]:
    """All implementations on one case, taking turns.

    Args:
        case: what to compute.
        names: out of `implementations`; the first one is what the others are compared with.
        device: "cpu" or "cuda".
        dtype: of `value`.
        rounds: how often each one runs; the median counts.
        memory: also measure its peak memory; on a CPU in a process of its own.
        peers: implementations of others.
    """
    inputs = make_inputs(case, device, dtype)
    grad = torch.randn(case.batch, inputs[1].shape[1], case.heads * case.channels, dtype=torch.float32, device=device).to(dtype)
    exact = _step(_operator(CLASSIC, case.fused, peers), case, [t.double() for t in inputs], grad.double())()
    results: list[Measurement] = []
    runs: dict[tuple[str, str], Callable[[], list[Tensor]]] = {}
    for name in names:
        operator = _operator(name, case.fused, peers)
        runs[name, "forward"] = _step(operator, case, inputs, None)
        runs[name, "both"] = _step(operator, case, inputs, grad)
        first_call, _ = clock(runs[name, "forward"], device)
        errors = [_error(found, right) for found, right in zip(runs[name, "both"](), exact, strict=True)]
        results.append(Measurement(case.name, name, 0.0, 0.0, first_call, errors[0], max(errors[1], errors[3])))
    del exact
    seconds = median_times(runs, rounds, device)
    for result in results:
        result.forward, result.forward_backward = (seconds[result.implementation, kind] for kind in ("forward", "both"))
        if memory:
            peak = _peaks_in_own_process if device == "cpu" else peaks  # a GPU's memory is counted exactly
            result.memory_forward, result.memory_forward_backward = peak(case, result.implementation, device, dtype, peers)
    return results


def _peaks_in_own_process(case: Case, name: str, device: str, dtype: torch.dtype, peers: Peers = NO_PEERS) -> list[int | None]:
    task = {"case": asdict(case), "name": name, "device": device, "dtype": str(dtype).removeprefix("torch.")}
    # Freed memory goes back at once, so that the second peak does not count what the first one left.
    return measured_elsewhere(peers.command, task, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")


def measured_elsewhere(command: Sequence[str], task: dict[str, Any], **environment: str) -> Any:
    """What a process of its own prints as JSON, with as many threads as this one.

    Args:
        command: to which `task` is appended, as JSON.
        task: its `name` says in errors what failed.
        environment: variables beside those of this process.

    Raises:
        RuntimeError: the process failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), **environment}
    run = subprocess.run([*command, json.dumps(task)], capture_output=True, text=True, env=environment, check=False)
    if run.returncode != 0:
        raise RuntimeError(f"measuring the memory of {task['name']!r} failed: {run.stderr.strip()[-500:]}")
    return json.loads(run.stdout.strip().splitlines()[-1])


def peaks(case: Case, name: str, device: str, dtype: torch.dtype, peers: Peers = NO_PEERS) -> list[int | None]:
    """Peak memory above the inputs of a forward pass and of a forward and backward pass, in this process; None where unknown."""
    operator = _operator(name, case.fused, peers)
    small = replace(case, height=64, width=64, queries=case.queries and 8)
    small_queries = make_inputs(small)[1].shape[1]
    for grad in (None, torch.ones(case.batch, small_queries, case.heads * case.channels, dtype=dtype, device=device)):
        _step(operator, small, make_inputs(small, device, dtype), grad)()  # what loads once is not the problem's memory
    inputs = make_inputs(case, device, dtype)
    grad = torch.ones(case.batch, inputs[1].shape[1], case.heads * case.channels, dtype=dtype, device=device)
    found: list[int | None] = []
    for step in (_step(operator, case, inputs, None), _step(operator, case, inputs, grad)):
        before = reset_peak(device)
        step()
        found.append(None if before is None else _peak(device) - before)
    return found


def reset_peak(device: str) -> int | None:
    """Bytes that are taken now, from where the peak is counted anew; None where that is unknown."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux
        return None
    return process_memory("VmRSS")


def _peak(device: str) -> int:
    return process_memory("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()


def process_memory(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field + ":")).split()[1])


def main(task: str, peers: Peers = NO_PEERS) -> None:
    """Measure the memory of one implementation on one case in this process, and print it as JSON."""
    asked = json.loads(task)
    found = peaks(Case(**asked["case"]), asked["name"], asked["device"], getattr(torch, asked["dtype"]), peers)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
