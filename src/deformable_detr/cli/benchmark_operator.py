"""`deformable-detr benchmark op`: the operator's backends and the classic form side by side, as a table and as JSON."""

import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from deformable_detr.cli.benchmark import BenchmarkOptions
from deformable_detr.cli.screen import show
from deformable_detr.ops.benchmark import CASES, NO_PEERS, Measurement, implementations, measure
from deformable_detr.schema import known

PEERS = NO_PEERS
"""Implementations of others beside ours; `benchmarks/operator_peers.py` puts them here."""


def benchmark_operator(options: BenchmarkOptions) -> dict[str, Any]:
    """Measure every implementation on every case, and show it; gives all of it, for JSON."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    cases = {case.name: case for case in CASES}
    names = options.chosen(implementations(device, PEERS))
    machine = _machine(device)
    show(", ".join(f"{key} {value}" for key, value in machine.items()))
    results: list[Measurement] = []
    for case in [cases[known(name, "case", cases)] for name in options.case or cases]:
        rounds = (options.rounds or 7) * (1 if case.queries is None else 5)
        dtype = getattr(torch, options.dtype)
        found = measure(case, names, device=device, dtype=dtype, rounds=rounds, memory=options.memory, peers=PEERS)
        results += found
        show(_table(f"{case.name}: {case.height}x{case.width}, {options.dtype}", found))
    return {"machine": machine, "dtype": options.dtype, "results": [asdict(result) for result in results]}


def _machine(device: str) -> dict[str, str | int]:
    described: dict[str, str | int] = {"torch": torch.__version__, "python": platform.python_version()}
    if device == "cuda":
        return {"device": torch.cuda.get_device_name(), **described}
    return {"device": _processor(), "threads": torch.get_num_threads(), **described}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _table(title: str, results: list[Measurement]) -> Table:
    """At most 80 columns wide, so that it can be read in a terminal, in a file and in a page."""
    base = results[0]
    columns: list[tuple[str, Callable[[Measurement], str]]] = [
        ("first\ncall s", lambda result: f"{result.first_call:.2f}"),
        ("forward\nms", lambda result: _digits(1e3 * result.forward)),
        ("\nratio", lambda result: f"{base.forward / result.forward:.1f}x"),
        ("f+b\nms", lambda result: _digits(1e3 * result.forward_backward)),
        ("\nratio", lambda result: f"{base.forward_backward / result.forward_backward:.1f}x"),
        ("peak f\nMB", lambda result: _megabytes(result.memory_forward)),
        ("f+b\nMB", lambda result: _megabytes(result.memory_forward_backward)),
        ("\nerror", lambda result: f"{result.error:.1e}"),
        ("gradient\nerror", lambda result: f"{result.gradient_error:.1e}"),
    ]
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("\nimplementation", no_wrap=True)
    for header, _ in columns:
        table.add_column(header, justify="right", no_wrap=True)
    for result in results:
        table.add_row(result.implementation, *(cell(result) for _, cell in columns))
    return table


def _megabytes(size: int | None) -> str:
    return "–" if size is None else _digits(size / 1e6)


def _digits(number: float) -> str:
    return f"{number:.{0 if number >= 1000 else 1 if number >= 100 else 2}f}"
