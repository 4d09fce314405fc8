"""`deformable-detr demo`: images, training, evaluation, drawings: the whole product in a few minutes, from nothing."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from deformable_detr.cli.options import log_to_screen, parse_options

if TYPE_CHECKING:
    from deformable_detr.training import TrainResult

DESCRIPTION = """\
Draw images of coloured shapes as a COCO dataset, train a small Deformable DETR on them from random weights, evaluate
it on images that it has not seen, and draw what it finds. This is the code path of a real run, only smaller: two-stage
with box refinement, on 128 pixels. Needs no network and no GPU."""

EXAMPLES = """\
examples:
  deformable-detr demo                       about six minutes on two CPU cores
  deformable-detr demo --steps 600           a quick look
  deformable-detr predict demo/run demo/data/val --output demo/more
"""

TRAIN_IMAGES, VAL_IMAGES = 2000, 250
EXPECTED_AP50 = 0.80


@dataclass(frozen=True)
class DemoOptions:
    """Options of the command."""

    output_dir: str = "demo"
    """Gets data/ (the images) and run/ (weights, curves, drawings); both are replaced."""

    steps: int = 2150
    """Optimiser steps, each on 4 images."""

    seed: int = 0
    """Of the images, the weights and the order."""

    device: str = "auto"
    """`auto` takes a GPU where there is one; else `cpu`, `cuda` or `mps`."""


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: what follows `deformable-detr demo`.

    Returns:
        The exit status: 1 if a demo of full length stays below the AP50 that it should reach.
    """
    options = parse_options(
        DemoOptions, argv, command="demo", usage="[options]", description=DESCRIPTION, examples=EXAMPLES, arguments={}
    )

    log_to_screen()
    console = Console(highlight=False)
    data, run = demo_folders(options.output_dir)
    console.print(f"drawing {TRAIN_IMAGES} images to train on and {VAL_IMAGES} to evaluate on", markup=False)
    result = train_demo(options.output_dir, steps=options.steps, seed=options.seed, device=options.device)
    ap50 = result.metrics["ap50"] or 0.0
    lines = [
        f"On {VAL_IMAGES} images that it has not seen (AP over IoU .50 to .95: {result.metrics['ap'] or 0:.3f}):",
        f"AP50: {ap50:.3f}",
        "",
        f"images   {run / 'samples' / 'overview.png'}   (found beside truth)",
        f"curves     {run / 'loss.png'}, {run / 'ap.png'}",
        f"weights    {result.best_weights}",
        "next       deformable-detr predict " + f"{run} {data / 'val'} --output {Path(options.output_dir) / 'predictions'}",
    ]
    console.print("\n".join(lines), soft_wrap=True, markup=False)
    if ap50 < EXPECTED_AP50 and options.steps >= DemoOptions.steps:
        console.print(f"AP50 should reach {EXPECTED_AP50:.2f} or more: something is wrong", style="bold red")
        return 1
    return 0


def demo_folders(output_dir: str | Path) -> tuple[Path, Path]:
    """Where the demo keeps its images and its run."""
    return Path(output_dir) / "data", Path(output_dir) / "run"


def train_demo(output_dir: str | Path, *, steps: int, seed: int = 0, device: str = "auto") -> "TrainResult":
    """Draw the images and train the small detector on them; both folders of :func:`demo_folders` are replaced.

    Args:
        output_dir: gets the two folders.
        steps: optimiser steps.
        seed: of the images, the weights and the order.
        device: `auto`, `cpu`, `cuda` or `mps`.
    """
    from deformable_detr.data.scenes import generate_scenes
    from deformable_detr.presets import demo_run
    from deformable_detr.training import train
    from deformable_detr.visualize.drawing.samples import draw_samples

    data, run = demo_folders(output_dir)
    for folder in (data, run):
        shutil.rmtree(folder, ignore_errors=True)
    generate_scenes(data, train=TRAIN_IMAGES, val=VAL_IMAGES, seed=seed)
    config = demo_run(str(data), str(run))
    config = replace(config, train=replace(config.train, steps=steps, seed=seed, device=device))
    return train(config, draw_samples=draw_samples)
