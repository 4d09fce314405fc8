"""`deformable-detr benchmark model|train|data`: the whole detector, plain and optimised, and whether images come fast enough."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from deformable_detr.cli.benchmark import BenchmarkOptions
from deformable_detr.cli.screen import show
from deformable_detr.inference.benchmark import NO_PEERS, Case, Measurement, implementations, measure, measure_data

SIZES = {"model": ["800x1066", "480x640"], "train": ["480x640"], "data": ["480x640"]}
BATCH_SIZES = {"model": 1, "train": 2}
PEERS = NO_PEERS
"""Implementations of others beside ours; `benchmarks/detector_peers.py` puts them here."""


def benchmark_detector(options: BenchmarkOptions) -> dict[str, Any]:
    """Measure what was asked for at every size, and show it; gives all of it, for JSON."""
    threads, rounds = torch.get_num_threads(), options.rounds or 3
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{threads} threads"
    show(f"torch {torch.__version__}, {device}; ratios of speed are to the first line")
    results: list[Measurement] = []
    for size in options.size or SIZES[options.what]:
        height, width = _size(size)
        if options.what == "data":
            preset = options.preset or "demo"
            found = measure_data(images=options.num_images, height=height, width=width, preset=preset, rounds=rounds)
        else:
            batch_size = options.batch_size or BATCH_SIZES[options.what]
            case = Case(options.what, height, width, batch_size, options.preset or "r50", options.device or "cpu")
            names = implementations(options.what, device=case.device, compile=options.compile, peers=PEERS)
            found = measure(case, options.chosen(names), rounds=rounds, memory=options.memory, peers=PEERS)
        results += found
        show(_table(found))
    return {"torch": torch.__version__, "device": device, "threads": threads, "results": [asdict(result) for result in results]}


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise ValueError(f"--size takes HEIGHTxWIDTH, such as 480x640, not {text!r}")
    return int(height), int(width)


def _table(results: list[Measurement]) -> Table:
    table = Table(title=results[0].case, title_justify="left", box=SIMPLE_HEAD)  # narrow: 80 columns must do
    table.add_column("implementation", no_wrap=True)
    columns: dict[str, Callable[[Measurement], str]] = {
        "seconds": lambda result: f"{result.seconds:.3f}",
        "ratio": lambda result: "–" if result.ratio is None else f"{result.ratio:.2f}x",
        "images/s": lambda result: f"{result.images_per_second:.2f}",
        "first, s": lambda result: f"{result.first_call:.2f}",
    }
    if any(result.memory is not None for result in results):
        columns["peak MB"] = lambda result: "–" if result.memory is None else f"{result.memory / 1e6:.0f}"
    if any(result.error is not None for result in results):
        columns["difference"] = lambda result: "–" if result.error is None else f"{result.error:.1e}"
    for header in columns:
        table.add_column(header, justify="right", no_wrap=True)
    for result in results:
        table.add_row(result.implementation, *(cell(result) for cell in columns.values()))
    return table
