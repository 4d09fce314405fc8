"""`deformable-detr evaluate`: COCO AP and AR of a detector, on the screen and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deformable_detr.cli.options import DetectorOptions, log_to_screen, parse_options

DESCRIPTION = """\
Measure how good a detector is: average precision (AP) and recall (AR) as COCO defines them, over all classes and for
each of them. The classes of the detector and of the data set are matched by their names."""

EXAMPLES = """\
examples:
  deformable-detr evaluate runs/first my_data                              the split `val`, best weights of the run
  deformable-detr evaluate runs/first my_data --split test --json test.json
  deformable-detr evaluate r50_deformable_detr.pth coco --batch_size 8 --precision bf16
  deformable-detr evaluate runs/first my_data --results boxes.json --curves pr.png
  torchrun --nproc-per-node 4 -m deformable_detr evaluate runs/first coco     the pictures shared out over 4 GPUs
"""


@dataclass(frozen=True)
class EvaluateOptions(DetectorOptions):
    """Options of the command."""

    weights: str = ""
    """The detector."""

    dataset: str = ""
    """The data set."""

    split: str = "val"
    """Part of the data set: annotations/instances_<split>.json."""

    num_workers: int = 2
    """Processes that read pictures. 0 reads in the main process."""

    json: str | None = None
    """Write the numbers to this JSON file."""

    results: str | None = None
    """Write all detections to this JSON file, in COCO's result format."""

    curves: str | None = None
    """Draw precision over recall to this PNG file."""

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

    from deformable_detr.detector import Detector, join_processes
    from deformable_detr.evaluation.curves import save_pr_curves
    from deformable_detr.inference.predictor import choose_device

    log_to_screen()
    state = join_processes(choose_device(options.device))
    first = state is None or state.is_main_process
    detector = Detector.load(options.weights, **options.load_settings())
    console = Console()
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, transient=True, disable=not first)
    with bar:
        task = bar.add_task("evaluating", total=None)
        metrics = detector.evaluate(
            options.dataset,
            options.split,
            batch_size=options.batch_size,
            num_workers=options.num_workers,
            top_k=options.top_k,
            results_file=options.results,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if not first:
        return 0
    console.print(metrics.table(per_class=options.per_class))
    if options.json:
        metrics.save_json(options.json)
    if options.curves:
        save_pr_curves(metrics, options.curves)
    for path in (options.json, options.results, options.curves):
        if path:
            console.print(f"written: {path}", highlight=False, soft_wrap=True, markup=False)
    return 0


def parse_evaluate_options(argv: Sequence[str]) -> EvaluateOptions:
    """The options of the command line; see :func:`~deformable_detr.cli.options.parse_options`."""
    return parse_options(
        EvaluateOptions,
        argv,
        command="evaluate",
        usage="WEIGHTS DATASET [--split NAME] [--json FILE] [options]",
        description=DESCRIPTION,
        examples=EXAMPLES,
        arguments={
            "weights": {"help": "A run folder (its best weights), or a weights file of any known format."},
            "dataset": {"help": "Folder in COCO format, as for training."},
        },
    )
