"""`deformable-detr replay`: a training step whose numbers went wrong, done again and explained."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deformable_detr.cli.command import Command
from deformable_detr.cli.screen import Finish

if TYPE_CHECKING:
    from deformable_detr.training.non_finite import KeptStep

EXAMPLES = """\
  deformable-detr replay runs/first/non_finite/step-00001234.pt
  deformable-detr replay runs/first/non_finite/step-00001234.pt --device cuda
  deformable-detr replay runs/first/non_finite/step-00001234.pt --output broken      the images as the network saw them
"""


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """Do a training step again that broke off with NaN or infinity, and say where the first such number arises: in which
    layer, loss or gradient. Training keeps such steps, with weights and images, in the folder non_finite of its run.
    The step is done in fp32. Exit status: 1 when it breaks again, 0 when it is sound this time.
    """

    file: str
    """A file of the folder non_finite of a run."""

    device: str = "cpu"
    """Where to compute: `cpu`, `cuda`, `mps`."""

    output: str | None = None
    """Folder to draw the images of the step into, each with its boxes and their classes; non-finite pixels are magenta."""


def run(options: ReplayOptions) -> int:
    """Do the step again, and say what is found."""
    from deformable_detr.inference.predictor import choose_device
    from deformable_detr.training.non_finite import replay

    step, found = replay(options.file, choose_device(options.device))
    images = [target.image_id for _, targets in step.batches for target in targets]
    with Finish() as finish:
        finish.show(f"Then: {step.message}", "", f"Now ({found.where}): {found}", "", f"Images: {images}")
        finish.write(options.output, lambda folder: draw_images(step, folder))
    return int(found.where != "nowhere")


def draw_images(step: "KeptStep", folder: Path) -> Path:
    """Draw the images of a kept step as the network got them, with the boxes and classes of their targets: `0.png`, `1.png`, …"""
    from deformable_detr.visualize.drawing.detections import save_drawing
    from deformable_detr.visualize.drawing.training_images import draw_sample

    metadata = step.metadata
    samples = [(batch, index, target) for batch, targets in step.batches for index, target in enumerate(targets)]
    for number, sample in enumerate(samples):
        save_drawing(folder / f"{number}.png", draw_sample(*sample, metadata, metadata.named_categories))
    return folder


COMMAND = Command("replay", ReplayOptions, run, EXAMPLES)
