"""`deformable-detr demo`: images, training, evaluation, drawings: the whole product in a few minutes, from nothing."""

from dataclasses import dataclass
from pathlib import Path

from deformable_detr.cli.command import Command
from deformable_detr.cli.demo_detector import TRAIN_IMAGES, VAL_IMAGES, demo_folders, train_demo
from deformable_detr.cli.screen import show

EXAMPLES = """\
  deformable-detr demo                       some minutes on two CPU cores
  deformable-detr demo --steps 400           a quick look
  deformable-detr predict demo/run demo/data/val --output demo/more
"""

EXPECTED_AP50 = 0.90


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Draw images of coloured shapes as a COCO dataset, train a small Deformable DETR on them from random weights, evaluate
    it on images that it has not seen, and draw what it finds. This is the code path of a real run, only smaller: two-stage
    with box refinement, denoising and suppressor, on 128 pixels. Needs no network and no GPU.
    """

    output: str = "demo"
    """Gets data/ (the images) and run/ (weights, curves, drawings); both are replaced."""

    steps: int = 900
    """Optimiser steps, each on 4 images."""

    seed: int = 0
    """Of the images, the weights and the order."""

    device: str = "auto"
    """`auto` takes a GPU where there is one; else `cpu`, `cuda` or `mps`."""


def run(options: DemoOptions) -> int:
    """Train the demo's detector; the exit status is 1 if one of full length stays below the AP50 that it should reach."""
    data, run_folder = demo_folders(options.output)
    show(f"drawing {TRAIN_IMAGES} images to train on and {VAL_IMAGES} to evaluate on")
    result = train_demo(options.output, steps=options.steps, seed=options.seed, device=options.device)
    ap50 = result.metrics["ap50"] or 0.0
    show(
        f"On {VAL_IMAGES} images that it has not seen (AP over IoU .50 to .95: {result.metrics['ap'] or 0:.3f}):",
        f"AP50: {ap50:.3f}",
        "",
        f"images     {run_folder / 'samples' / 'overview.png'}   (detections beside ground truth)",
        f"curves     {run_folder / 'loss.png'}, {run_folder / 'ap.png'}",
        f"weights    {result.best_weights}",
        f"next       deformable-detr predict {run_folder} {data / 'val'} --output {Path(options.output) / 'predictions'}",
    )
    if ap50 < EXPECTED_AP50 and options.steps >= DemoOptions.steps:
        show(f"AP50 should reach {EXPECTED_AP50:.2f} or more: something is wrong")
        return 1
    return 0


COMMAND = Command("demo", DemoOptions, run, EXAMPLES)
