"""`deformable-detr doctor`: what is wrong with a dataset, on the screen, as a page, as JSON; and a repaired copy."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deformable_detr.cli.command import Command
from deformable_detr.cli.screen import Finish, progress, show
from deformable_detr.schema import check_range

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from deformable_detr.data.doctor.examine import Examination

EXAMPLES = """\
  deformable-detr doctor my_data
  deformable-detr doctor my_data --html doctor.html              with images of the worst cases
  deformable-detr doctor my_data/data.yaml --json doctor.json --strict
  deformable-detr doctor my_data --fix my_data_repaired          a repaired copy, in COCO format
  deformable-detr doctor labelme_data --convert my_data          a COCO dataset of LabelMe, VIA, KITTI, … annotations
"""

STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
CLASSES_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Examine a dataset before it is trained on: COCO, YOLO or Pascal VOC. Reads all annotations and all images, and tells what
    is wrong, where, and what to do; what the dataset holds; and which settings suit it. Nothing is changed.

    Exit status: 0 no errors, 1 errors were found (with --strict: or warnings), 2 the examination itself failed.
    """

    dataset: str
    """Folder of the dataset, a YOLO data.yaml, or one COCO .json."""

    split: str | None = None
    """Only this split; by default all that the dataset has."""

    html: str | None = None
    """Write a page with images of the worst cases to this file."""

    json: str | None = None
    """Write everything to this JSON file."""

    fix: str | None = None
    """Write a repaired copy to this folder, which must be empty or new. The original stays as it is."""

    convert: str | None = None
    """Only write a COCO dataset to this folder (empty or new), made of another format that is known."""

    num_queries: int = 300
    """Queries of the network that is to be trained: images with more objects are reported."""

    examples: int = 3
    """Cases that are shown per finding."""

    strict: bool = False
    """Warnings, too, make the exit status 1."""


def run(options: DoctorOptions) -> int:
    """Examine, write what was asked for, and show all of it."""
    from deformable_detr.data.doctor.examine import examine
    from deformable_detr.data.doctor.repair import check_output, repair
    from deformable_detr.data.importing import convert_dataset
    from deformable_detr.files import write_json
    from deformable_detr.visualize.pages.doctor import write_doctor_page

    check_range(options, "num_queries", 1)
    check_range(options, "examples")
    if options.convert:
        show(*convert_dataset(options.dataset, options.convert), f"written: {options.convert}")
        return 0
    if options.fix:
        check_output(Path(options.fix), Path(options.dataset))
    with progress("reading images") as bar:
        task = bar.add_task("", total=None)
        examination = examine(
            options.dataset,
            [options.split] if options.split else [],
            num_queries=options.num_queries,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    with Finish() as finish:
        finish.show(*_report(examination, options.examples))
        finish.write(options.html, lambda path: write_doctor_page(examination, path))
        finish.write(options.json, lambda path: write_json(path, examination.to_dict(), indent=1))
    if options.fix:
        changes = repair(examination, options.fix)
        show(f"repaired copy: {options.fix} (changes.json there names every change)")
        show(*(f"  {line}" for line in changes or ["nothing had to be changed"]))
    failed = examination.count("error") or (options.strict and examination.count("warning"))
    return 1 if failed else 0


def _report(examination: "Examination", examples: int) -> "Iterator[RenderableType]":
    """The whole report, line by line."""
    from rich.text import Text

    yield _overview(examination)
    yield _class_line(examination)
    if examination.undivided:
        yield "no validation split: training makes train, val and test of it (docs/data.md)"
    yield ""
    for finding in examination.findings:
        yield Text.assemble((f"{finding.severity:<8}", STYLES[finding.severity]), f"{finding.split}: {finding.heading}")
        yield from (Text(f"          {item.text}", "dim") for item in finding.items[:examples])
        if finding.count > examples:
            yield Text(f"          … and {finding.count - examples} more", "dim")
        if finding.severity != "note":
            yield f"          → {finding.kind.advice}"
    if examination.findings:
        yield ""
    for found in examination.suggestions:
        yield f"suggested {found.setting} {found.value}: {found.reason}"
    numbers = ", ".join(f"{examination.count(name)} {name}s" for name in STYLES)
    yield f"\n{numbers}" if examination.findings else "\nnothing found"


def _overview(examination: "Examination") -> "Table":
    from rich.table import Table

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


COMMAND = Command("doctor", DoctorOptions, run, EXAMPLES)
