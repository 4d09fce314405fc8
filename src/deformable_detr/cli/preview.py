"""`deformable-detr preview`: what the network sees in training, augmentation and boxes included."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from deformable_detr.cli.options import parse_options
from deformable_detr.cli.train import canonical, parse_config
from deformable_detr.config import DataConfig, RunConfig

DESCRIPTION = """\
Draw what the network sees in training: augmented, resized and padded images with their boxes and class names.

The images are the first ones of the training that `deformable-detr train` would do with the same options (it takes all of
them, also --config, --seed and --batch_size). What is striped is padding of the batch."""

EXAMPLES = """\
examples:
  deformable-detr preview my_data                                            the official augmentation
  deformable-detr preview my_data --mosaic 0.5 --color_jitter 0.4            with more
  deformable-detr preview my_data --config configs/own-data.yaml --num 32    as that file sets it
  deformable-detr preview my_data --each                                     one row per augmentation, to compare
  deformable-detr preview my_data --split val                                as in evaluation: resized only
"""

COLUMNS = 4
CELL_WIDTH = 420


@dataclass(frozen=True)
class PreviewOptions:
    """Options of the command."""

    dataset: str = ""
    """The dataset."""

    split: str | None = None
    """Which part of the dataset. All but that of --train_split (the default) are shown as in evaluation: not augmented."""

    output: str = "runs/preview"
    """Folder for the drawings; what stands there under the same names is replaced."""

    num: int = 16
    """How many images; with --each, how many per row (4 unless given)."""

    each: bool = False
    """Show every augmentation for itself, one row each, and the settings as a whole in the last row."""

    data: DataConfig = field(default_factory=DataConfig)
    """Images and augmentation, as for `train`"""


OWN = tuple(item.name for item in fields(PreviewOptions) if item.name not in ("dataset", "data"))


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: what follows `deformable-detr preview`.

    Returns:
        The exit status.
    """
    options, config = parse_preview_options(argv)
    drawn = _draw_each(options, config) if options.each else _draw_first(options, config)
    Console().print(f"{drawn} images, and {Path(options.output) / 'overview.png'} with all of them", soft_wrap=True, markup=False)
    return 0


def parse_preview_options(argv: Sequence[str]) -> tuple[PreviewOptions, RunConfig]:
    """The command's own options, and the configuration that `train` would make of all others.

    Raises:
        SystemExit: after the help, with status 0.
        ValueError: an unknown option or a value of the wrong type; the message names it.
    """
    own, rest = _divided([canonical(argument) for argument in argv])
    parsed = parse_options(
        PreviewOptions,
        own,
        command="preview",
        usage="DATASET [--each] [--config FILE] [--split NAME] [--output FOLDER] [--num N] [options of train]",
        description=DESCRIPTION,
        examples=EXAMPLES,
        arguments={
            "dataset": {"nargs": "?", "help": "The folder of the dataset."},
            "--each": {"action": "store_true", "help": "Show every augmentation for itself, one row each; in the last row all."},
        },
    )
    if parsed.num < 1:
        raise ValueError(f"num must be at least 1 image, not {parsed.num}")
    config = parse_config(rest)
    num = COLUMNS if parsed.each and not any(argument.startswith("--num") for argument in own) else parsed.num
    return replace(parsed, dataset=config.dataset, num=num, data=config.data), config


def _divided(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments of this command, and those that are for `train`."""
    own, rest = [], []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, equals, _ = argument.removeprefix("--").partition("=")
        if argument in ("-h", "--help") or (argument.startswith("--") and name in OWN):
            own.append(argument)
            if waiting and not equals and name in OWN and name != "each":
                own.append(waiting.pop(0))
        else:
            rest.append(argument)
    return own, rest


def _draw_first(options: PreviewOptions, config: RunConfig) -> int:
    """Draw the first images of the training; returns how many."""
    from deformable_detr.visualize.drawing.detections import draw_grid, save_drawing

    drawings = _images(options, config, options.data)
    for number, (name, image) in enumerate(drawings):
        save_drawing(Path(options.output) / f"{number:03d}-{Path(name).stem}.png", image)
    images = [image for _, image in drawings]
    titles = [name for name, _ in drawings]
    save_drawing(Path(options.output) / "overview.png", draw_grid(images, COLUMNS, titles=titles, cell_width=CELL_WIDTH))
    return len(images)


def _draw_each(options: PreviewOptions, config: RunConfig) -> int:
    """Draw the same images with one augmentation after the other; returns how many."""
    from deformable_detr.visualize.drawing.detections import draw_grid, save_drawing
    from deformable_detr.visualize.drawing.training_images import choices

    cells, titles = [], []
    for number, (title, data) in enumerate(choices(options.data).items()):
        row = [image for _, image in _images(options, config, data)]
        name = "-".join(re.findall(r"[a-z_]+", title))
        save_drawing(Path(options.output) / f"{number:02d}-{name}.png", draw_grid(row, len(row), cell_width=CELL_WIDTH))
        cells += row
        titles += [title] + [" "] * (len(row) - 1)
    save_drawing(Path(options.output) / "overview.png", draw_grid(cells, options.num, titles=titles, cell_width=CELL_WIDTH))
    return len(cells)


def _images(options: PreviewOptions, config: RunConfig, data: DataConfig) -> list[tuple[str, np.ndarray]]:
    from deformable_detr.data.loader import build_dataset
    from deformable_detr.visualize.drawing.training_images import draw_training_images

    split = options.split or data.train_split
    training = split == data.train_split
    dataset = build_dataset(options.dataset, split, data, training=training)
    return list(
        draw_training_images(
            dataset,
            data,
            batch_size=options.num if config.train.batch_size == "auto" else config.train.batch_size,
            seed=config.train.seed,
            count=options.num,
            training=training,
        )
    )
