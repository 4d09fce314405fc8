"""`deformable-detr evaluate`: how good a detector is, on the screen, as JSON and as a report."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deformable_detr.cli.options import DetectorOptions, log_to_screen, parse_options

if TYPE_CHECKING:
    from deformable_detr.evaluation import Metrics
    from deformable_detr.visualize.pages.report import Report

DESCRIPTION = """\
Measure how good a detector is: average precision (AP) and recall (AR) as COCO defines them, over all classes and for
each of them, and the score threshold with the best F1. The classes of the detector and of the dataset are matched by their
names. --report writes a page that explains what is wrong: curves, confusions, kinds of mistakes, the worst images."""

EXAMPLES = """\
examples:
  deformable-detr evaluate runs/first my_data                              the split `val`, best weights of the run
  deformable-detr evaluate runs/first my_data --report report               report/report.html, to open in any browser
  deformable-detr evaluate runs/first my_data --save_thresholds true        predict will use the best threshold of each class
  deformable-detr evaluate runs/first my_data --split test --json test.json
  deformable-detr evaluate r50_deformable_detr.pth coco --batch_size 8 --precision bf16
  deformable-detr evaluate runs/first my_data --results boxes.json --curves pr.png
  torchrun --nproc-per-node 4 -m deformable_detr evaluate runs/first coco     the images shared out over 4 GPUs
"""


@dataclass(frozen=True)
class EvaluateOptions(DetectorOptions):
    """Options of the command."""

    weights: str = ""
    """The detector."""

    dataset: str = ""
    """The dataset."""

    split: str = "val"
    """Part of the dataset: annotations/instances_<split>.json."""

    num_workers: int = 2
    """Processes that read images. 0 reads in the main process."""

    json: str | None = None
    """Write the numbers to this JSON file."""

    results: str | None = None
    """Write all detections to this JSON file, in COCO's result format."""

    curves: str | None = None
    """Draw precision over recall to this PNG file."""

    report: str | None = None
    """Write report.html (complete in itself), report.json, the figures and the worst images to this folder."""

    worst: int = 12
    """How many of the worst images the report shows."""

    save_thresholds: bool = False
    """Store the best threshold of each class in the weights file (one of our own), where `predict` finds them."""

    per_class: bool = True
    """Show the table of the classes."""


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: what follows `deformable-detr evaluate`.

    Returns:
        The exit status.
    """
    options = parse_evaluate_options(argv)

    from deformable_detr.checkpoints.load import find_weights
    from deformable_detr.checkpoints.native import read_own
    from deformable_detr.detector import Detector, join_processes
    from deformable_detr.inference.predictor import choose_device

    log_to_screen()
    if options.save_thresholds:
        read_own(find_weights(options.weights))  # a file that cannot take them is refused before the work, not after
    state = join_processes(choose_device(options.device))
    first = state is None or state.is_main_process
    detector = options.set_up(Detector.load(options.weights, **options.load_settings()))
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, transient=True, disable=not first)
    with bar:
        task = bar.add_task("evaluating", total=None)
        settings: dict[str, Any] = {
            "batch_size": options.batch_size,
            "num_workers": options.num_workers,
            "top_k": options.top_k,
            "results_file": options.results,
            "progress": lambda done, total: bar.update(task, completed=done, total=total),
        }
        report = detector.analyze(options.dataset, options.split, worst=options.worst, **settings) if options.report else None
        metrics = report.analysis.metrics if report else detector.evaluate(options.dataset, options.split, **settings)
    if first:
        _finish(options, metrics, report)
    return 0


def _finish(options: EvaluateOptions, metrics: "Metrics", report: "Report | None") -> None:
    """Show the numbers, write what was asked for, and say where it is."""
    from deformable_detr.evaluation.curves import save_pr_curves

    console = Console()
    console.print(metrics.table(per_class=options.per_class))
    written = [path for path in (options.json, options.results, options.curves) if path]
    if options.json:
        metrics.save_json(options.json)
    if options.curves:
        save_pr_curves(metrics, options.curves)
    if report is not None and options.report:
        title = f"{Path(options.weights).name} on {report.title}"
        written.append(str(replace(report, title=title).save(options.report)))
    if options.save_thresholds:
        written.append(_store_thresholds(options.weights, metrics.thresholds))
    for path in written:
        console.print(f"written: {path}", highlight=False, soft_wrap=True, markup=False)


def _store_thresholds(weights: str, thresholds: tuple[float, ...] | None) -> str:
    """Put them into the weights file.

    Raises:
        ValueError: there are none.
    """
    from deformable_detr.checkpoints.load import find_weights
    from deformable_detr.checkpoints.native import save_thresholds

    if thresholds is None:
        raise ValueError(f"nothing right was detected, so there are no thresholds to store; {weights} stays as it is")
    return f"{save_thresholds(find_weights(weights), thresholds)} (the thresholds of {len(thresholds)} classes)"


def parse_evaluate_options(argv: Sequence[str]) -> EvaluateOptions:
    """The options of the command line; see :func:`~deformable_detr.cli.options.parse_options`."""
    return parse_options(
        EvaluateOptions,
        argv,
        command="evaluate",
        usage="WEIGHTS DATASET [--split NAME] [--report FOLDER] [options]",
        description=DESCRIPTION,
        examples=EXAMPLES,
        arguments={
            "weights": {"help": "A run folder (its best weights), or a weights file of any known format."},
            "dataset": {"help": "Folder of a dataset, as for training."},
        },
    )
