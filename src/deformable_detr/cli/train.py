"""`deformable-detr train`: settings from a preset, a YAML file and the command line, then a training run."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deformable_detr.cli.command import Command, PlannedRun
from deformable_detr.cli.screen import show
from deformable_detr.presets import MODEL_PRESETS
from deformable_detr.process import is_first_process

if TYPE_CHECKING:
    from deformable_detr.training import TrainResult

EXAMPLES = f"""\
  deformable-detr train my_data --preset r50-two-stage --epochs 50 --output runs/first
  deformable-detr train my_data --weights r50_deformable_detr.pth --epochs 12 --lr 1e-4      from official weights
  deformable-detr train my_data                              a few hundred images, ImageNet backbone: recipe small-data
  deformable-detr train my_data --budget 30m                                 the same, for half an hour on this machine
  deformable-detr train my_data --recipe finetune --weights r50_two_stage.pth     the same, from a trained detector
  deformable-detr train my_data --batch-size auto                            as many images at once as fit
  deformable-detr train my_data --batch-size 1 --accumulate 8 --precision bf16               little GPU memory
  deformable-detr train my_data --config configs/own-data.yaml --num-queries 100             a recipe, one value changed
  deformable-detr train my_data --budget 10m --seeds 0 1 2 --output runs/three        mean and spread of three runs
  deformable-detr train --resume --output runs/first                                         after Ctrl-C or a crash
  deformable-detr train my_data --recipe small-data --print-config           all settings as they would be used, as YAML
  accelerate launch --num_processes 8 -m deformable_detr train coco --config configs/r50-refine.yaml

forms:
  --optimizer.lr 1e-4 is --lr 1e-4, with the group as in YAML files.
  Lists: --train-short-sides 480 512 544, or "[480, 512, 544]"; an empty one: "[]". Nothing: --steps null.

presets:
  {", ".join(MODEL_PRESETS)}
"""


@dataclass(frozen=True)
class TrainOptions:
    """Train Deformable DETR on a dataset of your own: COCO, YOLO or Pascal VOC, recognised by itself.

    In COCO's form DATASET is a folder with annotations/instances_train.json and annotations/instances_val.json, and the images in
    train/ and val/. COCO itself (with years in the names) and exports of Roboflow work as they are.

    Everything goes to --output: weights/best.safetensors and weights/last.safetensors, config.yaml, log.jsonl,
    metrics.csv, TensorBoard events, curves and sample images, and the state to resume from.

    Settings are taken, each overriding the one before, from the defaults below, --preset (settings of the network), --recipe
    (settings chosen by the data), --config (a YAML file; the config.yaml of a run folder repeats that run), and the options.
    """

    run: PlannedRun
    """The whole run."""

    dashboard: bool = False
    """Show the training in the browser, too, at an address of this machine alone: curves, newest predictions, advice."""

    seeds: list[int] | None = None
    """Train with each of these seeds, one after the other, in OUTPUT/seed-N; the end is a table of means and spreads. The same
    command goes on with runs that were interrupted. A budget is that of one run."""


def run(options: TrainOptions) -> int:
    """Train, and say where everything is."""
    from torch import distributed

    from deformable_detr.training import Samples, train, train_seeds
    from deformable_detr.visualize.drawing.samples import draw_samples
    from deformable_detr.visualize.pages.dashboard import Dashboard

    first = is_first_process()
    if options.seeds is not None and options.dashboard:
        raise ValueError("the dashboard is that of one run: with --seeds open `deformable-detr dashboard OUTPUT/seed-N` beside it")
    config, dataset = options.run.config, options.run.dataset
    if options.seeds is None:
        with ExitStack() as served:
            if options.dashboard and first:
                dashboard = served.enter_context(Dashboard(config.output_dir))
                show(f"The dashboard is at {dashboard.address}")
            parts = _result_lines(train(config, dataset, callbacks=[Samples(draw_samples)]))
    else:
        results = train_seeds(config, options.seeds, dataset, callbacks=lambda: [Samples(draw_samples)])
        parts = [results.table(), f"Runs and seeds.json: {results.output_dir}"]
    if distributed.is_initialized():
        distributed.destroy_process_group()
    if first:
        show(*parts)
    return 0


def _result_lines(result: "TrainResult") -> list[str]:
    """Where everything is, and how good it is."""
    from deformable_detr.training.run_log import metrics_line

    lines = [f"Finished after {result.steps} steps."]
    if result.best_metrics:
        lines.append(f"Best: {metrics_line(result.best_metrics)}")
    return [*lines, f"Weights: {result.best_weights}", f"Log, curves and samples: {result.output_dir}"]


COMMAND = Command("train", TrainOptions, run, EXAMPLES)
