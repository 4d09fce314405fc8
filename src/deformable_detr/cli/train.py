"""`deformable-detr train`: settings from a preset, a YAML file and the command line, then a training run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deformable_detr.cli.command import Command, PlannedRun
from deformable_detr.cli.screen import log_to_screen, show
from deformable_detr.config import RunConfig
from deformable_detr.presets import MODEL_PRESETS
from deformable_detr.process import is_first_process

if TYPE_CHECKING:
    from deformable_detr.training import TrainResult

DESCRIPTION = """\
Train Deformable DETR on a dataset of your own: COCO, YOLO or Pascal VOC, recognised by itself.

In COCO's form DATASET is a folder with annotations/instances_train.json and annotations/instances_val.json, and the images in
train/ and val/. COCO itself (with years in the names) and exports of Roboflow work as they are.

Everything goes to --output: weights/best.safetensors and weights/last.safetensors, config.yaml, log.jsonl,
metrics.csv, TensorBoard events, curves and sample images, and the state to resume from.

Settings are taken, each overriding the one before, from the defaults below, --preset (settings of the network), --recipe
(settings chosen by the data), --config (a YAML file; the config.yaml of a run folder repeats that run), and the options."""

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
    """Options of the command."""

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

    from deformable_detr.cli.served_dashboard import ServedDashboard
    from deformable_detr.training import Samples, train, train_seeds
    from deformable_detr.visualize.drawing.samples import draw_samples

    first = is_first_process()
    if options.seeds is not None and options.dashboard:
        raise ValueError("the dashboard is that of one run: with --seeds open `deformable-detr dashboard OUTPUT/seed-N` beside it")
    log_to_screen()
    watchers = [Samples(draw_samples), *([ServedDashboard()] if options.dashboard and first else [])]
    if options.seeds is None:
        result = train(options.run.config, options.run.dataset, callbacks=watchers)
        parts = _result_lines(result)
    else:
        results = train_seeds(options.run.config, options.seeds, options.run.dataset, callbacks=lambda: [Samples(draw_samples)])
        parts = [results.table(), f"Runs and seeds.json: {results.output_dir}"]
    if distributed.is_initialized():
        distributed.destroy_process_group()
    if first:
        show(*parts)
    return 0


def _result_lines(result: "TrainResult") -> list[str]:
    """Where everything is, and how good it is."""
    lines = [f"Finished after {result.steps} steps."]
    if result.best_metrics:
        numbers = {label: result.best_metrics[name] for name, label in (("ap", "AP"), ("ap50", "AP50"), ("ap75", "AP75"))}
        lines.append(
            "Best: " + "  ".join(f"{label} {'–' if value is None else f'{value:.3f}'}" for label, value in numbers.items())
        )
    return [*lines, f"Weights: {result.best_weights}", f"Log, curves and samples: {result.output_dir}"]


COMMAND = Command("train", TrainOptions, run, DESCRIPTION, EXAMPLES)


def parse_config(argv: Sequence[str]) -> RunConfig:
    """The configuration of a run from its command line; see :meth:`~deformable_detr.cli.command.Command.parse`."""
    return COMMAND.parse(argv).run.config
