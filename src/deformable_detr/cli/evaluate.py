"""`deformable-detr evaluate`: how good a detector is, on the screen, as JSON and as a report."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deformable_detr.cli.command import FOLDER, Command, needs
from deformable_detr.cli.detector_options import DetectorOptions
from deformable_detr.cli.screen import Finish, progress

if TYPE_CHECKING:
    from deformable_detr.evaluation import Metrics
    from deformable_detr.visualize.pages.report import Report

EXAMPLES = """\
  deformable-detr evaluate runs/first my_data                              the split `val`, best weights of the run
  deformable-detr evaluate runs/first my_data --report report               report/report.html, to open in any browser
  deformable-detr evaluate runs/first my_data --save-thresholds             predict then uses the best threshold of each class
  deformable-detr evaluate runs/first my_data --split test --json test.json
  deformable-detr evaluate r50_deformable_detr.pth coco --batch-size 8 --precision bf16
  deformable-detr evaluate runs/first my_data --results boxes.json --curves pr.png
  torchrun --nproc-per-node 4 -m deformable_detr evaluate runs/first coco     the images shared out over 4 GPUs
"""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(DetectorOptions):
    """Measure how good a detector is: average precision (AP) and recall (AR) as COCO defines them, over all classes and for
    each of them, and the score threshold with the best F1. The classes of the detector and of the dataset are matched by their
    names. --report writes a page that shows the errors: curves, confusion matrix, error types, the worst images.
    """

    dataset: str
    """The dataset, as for training."""

    split: str | None = None
    """Part of the dataset. By default `val`; of a dataset without splits that no training has divided `all` images."""

    match_by: Literal["name", "id"] = "name"
    """What makes a class of the detector and one of the dataset the same."""

    num_workers: int = 2
    """Processes that read images. 0 reads in the main process."""

    json: str | None = None
    """Write the numbers to this JSON file."""

    results: str | None = None
    """Write all detections to this JSON file, in COCO's result format."""

    curves: str | None = None
    """Draw precision over recall to this PNG file."""

    report: str | None = field(default=None, metadata=FOLDER)
    """Write report.html (complete in itself), report.json, the figures and the worst images to this folder."""

    worst: int = field(default=12, metadata=needs("report"))
    """How many of the worst images the report shows."""

    save_thresholds: bool = False
    """Store the best threshold of each class in the weights file (one of our own), from which `predict` reads them."""

    per_class: bool = True
    """Show the table of the classes."""


def run(options: EvaluateOptions) -> None:
    """Evaluate in all processes; the first one writes and shows what came out."""
    from deformable_detr.checkpoints.load import find_weights
    from deformable_detr.checkpoints.native import read_own
    from deformable_detr.detector import join_processes
    from deformable_detr.evaluation.evaluate import check_no_annotations
    from deformable_detr.inference.predictor import choose_device
    from deformable_detr.visualize.figures import check_format

    check_no_annotations(options.json)
    if options.curves:
        check_format(options.curves)
    if options.save_thresholds:
        read_own(find_weights(options.weights))  # a file that cannot take them is refused before the work, not after
    state = join_processes(choose_device(options.device))
    first = state is None or state.is_main_process
    detector = options.open()
    with progress("evaluating", hidden=not first) as bar:
        task = bar.add_task("", total=None)
        settings: dict[str, Any] = {
            "batch_size": options.batch_size,
            "num_workers": options.num_workers,
            "top_k": options.top_k,
            "match_by": options.match_by,
            "results_file": options.results,
            "progress": lambda done, total: bar.update(task, completed=done, total=total),
        }
        report = detector.analyze(options.dataset, options.split, worst=options.worst, **settings) if options.report else None
        metrics = report.analysis.metrics if report else detector.evaluate(options.dataset, options.split, **settings)
    if first:
        _finish(options, metrics, report)


def _finish(options: EvaluateOptions, metrics: "Metrics", report: "Report | None") -> None:
    """Write what was asked for, and show the numbers."""
    from deformable_detr.checkpoints.load import find_weights
    from deformable_detr.checkpoints.native import save_thresholds
    from deformable_detr.visualize.figures import save_figure
    from deformable_detr.visualize.pages.report_figures import draw_pr_curves

    def store(weights: Path) -> Path:
        if metrics.thresholds is None:
            raise ValueError(f"there is no true positive, so there are no thresholds to store; {weights} stays as it is")
        return save_thresholds(find_weights(weights), metrics.thresholds)

    with Finish() as finish:
        finish.show(metrics.table(per_class=options.per_class))
        finish.write(options.json, metrics.save_json)
        finish.write(options.results, lambda path: path)
        finish.write(options.curves, lambda path: save_figure(draw_pr_curves(metrics), path))
        if report is not None:
            title = f"{Path(options.weights).name} on {report.title}"
            finish.write(options.report, replace(report, title=title).save)
        if options.save_thresholds:
            finish.write(options.weights, store, note=f"the thresholds of {len(metrics.thresholds or ())} classes")


COMMAND = Command("evaluate", EvaluateOptions, run, EXAMPLES)
