"""`deformable-detr doctor`: what is wrong with a dataset, on the screen, as a page, as JSON; and a repaired copy."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from deformable_detr.cli.options import log_to_screen, parse_options

if TYPE_CHECKING:
    from deformable_detr.data.doctor.examine import Examination

DESCRIPTION = """\
Examine a dataset before it is trained on: COCO, YOLO or Pascal VOC. Reads all annotations and all images, and tells what
is wrong, where, and what to do; what the dataset holds; and which settings suit it. Nothing is changed.

Exit status: 0 no errors, 1 errors were found (with --strict: or warnings), 2 the examination itself failed."""

EXAMPLES = """\
examples:
  deformable-detr doctor my_data
  deformable-detr doctor my_data --html doctor.html              with images of the worst cases
  deformable-detr doctor my_data/data.yaml --json doctor.json --strict
  deformable-detr doctor my_data --fix my_data_repaired          a repaired copy, in COCO format
"""

STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
CLASSES_SHOWN = 12


@dataclass(frozen=True)
class DoctorOptions:
    """Options of the command."""

    dataset: str = ""
    """The dataset."""

    split: str | None = None
    """Only this split; by default all that the dataset has."""

    html: str | None = None
    """Write a page with images of the worst cases to this file."""

    json: str | None = None
    """Write everything to this JSON file."""

    fix: str | None = None
    """Write a repaired copy to this folder, which must be empty or new. The original stays as it is."""

    num_queries: int = 300
    """Queries of the network that is to be trained: images with more objects are reported."""

    examples: int = 3
    """Cases that are shown per finding."""

    strict: bool = False
    """Warnings, too, make the exit status 1."""


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: what follows `deformable-detr doctor`.

    Returns:
        The exit status.
    """
    options = parse_options(
        DoctorOptions,
        argv,
        command="doctor",
        usage="DATASET [--html FILE] [--json FILE] [--fix OUT] [--strict] [options]",
        description=DESCRIPTION,
        examples=EXAMPLES,
        arguments={
            "dataset": {"help": "Folder of the dataset, a YOLO data.yaml, or one COCO .json."},
            "--strict": {"action": "store_true", "help": "Warnings, too, make the exit status 1."},
        },
    )

    from deformable_detr.data.cache import write_whole
    from deformable_detr.data.doctor.examine import examine
    from deformable_detr.data.doctor.repair import check_output, repair

    log_to_screen()
    if options.fix:
        check_output(Path(options.fix), Path(options.dataset))
    console = Console(highlight=False)
    bar = Progress(
        TextColumn("reading images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True),
        transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task("reading images", total=None)
        examination = examine(
            options.dataset,
            [options.split] if options.split else [],
            num_queries=options.num_queries,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    _show(examination, options.examples, console)
    if options.html:
        from deformable_detr.visualize.pages.doctor import write_doctor_page

        write_doctor_page(examination, options.html)
    if options.json:
        Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(options.json), json.dumps(examination.to_dict(), indent=1, ensure_ascii=False).encode())
    for path in (options.html, options.json):
        if path:
            console.print(f"written: {path}", soft_wrap=True, markup=False)
    if options.fix:
        changes = repair(examination, options.fix)
        console.print(f"repaired copy: {options.fix} (changes.json there names every change)", soft_wrap=True, markup=False)
        for line in changes or ["nothing had to be changed"]:
            console.print(f"  {line}", soft_wrap=True, markup=False)
    failed = examination.count("error") or (options.strict and examination.count("warning"))
    return 1 if failed else 0


def _show(examination: "Examination", examples: int, console: Console) -> None:
    """The whole report."""
    console.print(_overview(examination))
    console.print(_class_line(examination), soft_wrap=True, markup=False)
    if examination.undivided:
        console.print("no validation split: training makes train, val and test of it (docs/data.md)", soft_wrap=True, markup=False)
    console.print()
    for finding in examination.findings:
        console.print(f"[{STYLES[finding.severity]}]{finding.severity:<8}[/]", end="")
        console.print(f"{finding.split}: {finding.heading}", soft_wrap=True, markup=False)
        for item in finding.items[:examples]:
            console.print(f"          {item.text}", soft_wrap=True, markup=False, style="dim")
        if finding.count > examples:
            console.print(f"          … and {finding.count - examples} more", style="dim")
        if finding.severity != "note":
            console.print(f"          → {finding.kind.advice}", soft_wrap=True, markup=False)
    if examination.findings:
        console.print()
    for found in examination.suggestions:
        console.print(f"suggested {found.setting} {found.value}: {found.reason}", soft_wrap=True, markup=False)
    numbers = ", ".join(f"{examination.count(name)} {name}s" for name in STYLES)
    console.print(f"\n{numbers}" if examination.findings else "\nnothing found", markup=False)


def _overview(examination: "Examination") -> Table:
    table = Table(title=f"{examination.dataset} ({examination.format})", title_justify="left")
    table.add_column("split")
    for name in ("images", "empty", "boxes", "most in one", "S/M/L %", "usual size"):
        table.add_column(name, justify="right")
    for name, found in examination.statistics.items():
        table.add_row(
            *(name, str(found.images), str(found.empty_images), str(found.boxes), str(found.most_objects)),
            "/".join(f"{100 * found.shares[size]:.0f}" for size in ("small", "medium", "large")),
            f"{found.median_size[0]} x {found.median_size[1]}",
        )
    return table


def _class_line(examination: "Examination") -> str:
    """Boxes per class of the first split, the most frequent first."""
    name, found = next(iter(examination.statistics.items()))
    shown = list(found.classes.items())[:CLASSES_SHOWN]
    more = len(found.classes) - len(shown)
    listed = ", ".join(f"{class_name} {number}" for class_name, number in shown)
    return f"{len(found.classes)} classes, boxes in {name}: {listed}" + (f" and {more} more" if more else "")
