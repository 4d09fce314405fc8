"""`deformable-detr benchmark op`: the operator's backends and its installed peers side by side, as a table and as JSON."""

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from deformable_detr.ops.benchmark import CASES, Measurement, implementations, measure


def main(argv: list[str]) -> int:
    """Run `benchmark op`; returns the exit status.

    Args:
        argv: the arguments after `benchmark`.
    """
    if argv and argv[0] in ("model", "train", "data"):
        from deformable_detr.cli.benchmark_detector import main as run

        return run(argv)
    options = _parser().parse_args(argv)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    console = Console()
    names = implementations(options.device)
    if options.only:
        names = [name for name in names if name == names[0] or any(part in name for part in options.only)]
    machine = _machine(options.device)
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()), highlight=False)
    chosen = [case for case in CASES if not options.case or any(part == case.name for part in options.case)]
    results: list[Measurement] = []
    for case in chosen:
        rounds = options.rounds if case.queries is None else 5 * options.rounds
        dtype = getattr(torch, options.dtype)
        found = measure(case, names, device=options.device, dtype=dtype, rounds=rounds, memory=not options.no_memory)
        results += found
        console.print(_table(f"{case.name}: {case.height}x{case.width}, {options.dtype}", found))
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine, "dtype": options.dtype, "results": [asdict(result) for result in results]}
    output.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"written to {output}", highlight=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="deformable-detr benchmark", description=__doc__)
    parser.add_argument(
        "what",
        choices=["op", "model", "train", "data"],
        help="op: multi-scale deformable attention alone; others: `benchmark WHAT --help`",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="of the values")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved runs per encoder case, five times as many for queries")
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES], help="only this case (repeatable)")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="only implementations with this in their name, and the classic"
    )
    parser.add_argument("--no-memory", action="store_true", help="skip the processes that measure peak memory")
    parser.add_argument("--output", default="runs/benchmark-operator.json", help="where the JSON goes")
    return parser


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
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("\nimplementation", no_wrap=True)
    for header in (
        "first\ncall s",
        "forward\nms",
        "\nratio",
        "f+b\nms",
        "\nratio",
        "peak f\nMB",
        "f+b\nMB",
        "\nerror",
        "gradient\nerror",
    ):
        table.add_column(header, justify="right", no_wrap=True)
    base = results[0]
    for result in results:
        table.add_row(
            result.implementation,
            f"{result.first_call:.2f}",
            _digits(1e3 * result.forward),
            f"{base.forward / result.forward:.1f}x",
            _digits(1e3 * result.forward_backward),
            f"{base.forward_backward / result.forward_backward:.1f}x",
            _megabytes(result.memory_forward),
            _megabytes(result.memory_forward_backward),
            f"{result.error:.1e}",
            f"{result.gradient_error:.1e}",
        )
    return table


def _megabytes(size: int | None) -> str:
    return "–" if size is None else _digits(size / 1e6)


def _digits(number: float) -> str:
    return f"{number:.{0 if number >= 1000 else 1 if number >= 100 else 2}f}"
