"""`deformable-detr replay`: a training step whose numbers went wrong, done again and explained."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from deformable_detr.cli.options import log_to_screen, parse_options

DESCRIPTION = """\
Do a training step again that broke off with NaN or infinity, and say where the first such number arises: in which
layer, loss or gradient. Training keeps such steps, with weights and pictures, in the folder non_finite of its run.
The step is done in fp32. Exit status: 1 when it breaks again, 0 when it is sound this time."""

EXAMPLES = """\
examples:
  deformable-detr replay runs/first/non_finite/step-00001234.pt
  deformable-detr replay runs/first/non_finite/step-00001234.pt --device cuda
  deformable-detr replay runs/first/non_finite/step-00001234.pt --pictures broken      the pictures as the network saw them
"""


@dataclass(frozen=True)
class ReplayOptions:
    """Options of the command."""

    file: str = ""
    """The step."""

    device: str = "cpu"
    """Where to compute: `cpu`, `cuda`, `mps`."""

    pictures: str | None = None
    """Folder to draw the pictures of the step into, each with its boxes."""


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: what follows `deformable-detr replay`.

    Returns:
        The exit status.
    """
    options = parse_options(
        ReplayOptions,
        argv,
        command="replay",
        usage="FILE [--device NAME] [--pictures FOLDER]",
        description=DESCRIPTION,
        examples=EXAMPLES,
        arguments={"file": {"help": "A file of the folder non_finite of a run."}},
    )

    from deformable_detr.training.non_finite import replay

    log_to_screen()
    record, found = replay(options.file, options.device)
    pictures = [target[2] for batch in record["batches"] for target in batch["targets"]]
    lines = [f"Then: {record['message']}", "", f"Now ({found.where}): {found}", "", f"Pictures: {pictures}"]
    if options.pictures is not None:
        lines.append(f"Drawn to: {draw_pictures(record, Path(options.pictures))}")
    Console().print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)
    return int(found.where != "nowhere")


def draw_pictures(record: dict, folder: Path) -> Path:
    """Draw the pictures of a kept step, stretched to the full range of grey, with the boxes of their targets.

    Args:
        record: as :func:`~deformable_detr.training.non_finite.replay` gives it.
        folder: made when missing.
    """
    from PIL import Image
    from torchvision.utils import draw_bounding_boxes

    from deformable_detr.boxes import cxcywh_to_xyxy

    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for batch in record["batches"]:
        for image, mask, (boxes, *_) in zip(batch["images"], batch["padding_mask"], batch["targets"], strict=True):
            height, width = int((~mask[:, 0]).sum()), int((~mask[0]).sum())
            image = image.nan_to_num(0, 0, 0)[:, :height, :width]
            low, high = image.aminmax()
            grey = ((image - low) / (high - low).clamp(min=1e-6) * 255).byte()
            pixels = cxcywh_to_xyxy(boxes.float()) * boxes.new_tensor([width, height, width, height]).float()
            drawn = draw_bounding_boxes(grey, pixels, colors="red") if len(boxes) else grey
            Image.fromarray(drawn.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
            number += 1
    return folder
