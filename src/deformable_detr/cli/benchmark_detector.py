"""`deformable-detr benchmark model|train|data`: the whole detector beside its peers, and whether images come fast enough."""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from deformable_detr.inference.benchmark import Case, Measurement, implementations, measure, measure_data

SIZES = {"model": ("800x1066", "480x640"), "train": ("480x640",), "data": ("480x640",)}


def main(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: what follows `deformable-detr benchmark`.

    Returns:
        The exit status.
    """
    options = _parser().parse_args(argv)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    console = Console()
    threads = torch.get_num_threads()
    console.print(f"torch {torch.__version__}, {threads} threads; ratios of speed are to the first line", highlight=False)
    results: list[Measurement] = []
    for size in options.size or SIZES[options.what]:
        height, width = _size(size)
        if options.what == "data":
            found = measure_data(images=options.images, height=height, width=width, preset=options.preset, rounds=options.rounds)
        else:
            case = Case(options.what, height, width, options.batch or {"model": 1, "train": 2}[options.what])
            names = implementations(options.what, compile=options.compile)
            found = measure(case, names, rounds=options.rounds, memory=not options.no_memory)
        results += found
        console.print(_table(found))
    output = Path(options.output or f"runs/benchmark-{options.what}.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    report = {"torch": torch.__version__, "threads": threads, "results": [asdict(result) for result in results]}
    partial = output.with_name(output.name + ".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.replace(output)
    console.print(f"written to {output}", highlight=False, soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="deformable-detr benchmark", description=__doc__)
    parser.add_argument("what", choices=["model", "train", "data"], help="a forward pass, a training step, or reading images")
    parser.add_argument("--size", action="append", metavar="HxW", help="of the images, such as 480x640 (repeatable)")
    parser.add_argument("--batch", type=int, help="images at once (default: 1, for training 2)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved runs; the median counts")
    parser.add_argument("--images", type=int, default=24, help="for data: how many")
    parser.add_argument("--preset", default="demo", help="for data: whose network (default: demo)")
    parser.add_argument("--compile", action="store_true", help="for model: measure the compiled network as well")
    parser.add_argument("--no-memory", action="store_true", help="skip the processes that measure peak memory")
    parser.add_argument("--output", help="where the JSON goes (default: runs/benchmark-WHAT.json)")
    return parser


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
