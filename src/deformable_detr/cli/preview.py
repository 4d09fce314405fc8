"""`deformable-detr preview`: what the model sees in training, augmentation and boxes included."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deformable_detr.cli.command import FOLDER, Command, PlannedRun
from deformable_detr.cli.screen import show
from deformable_detr.config import DataConfig
from deformable_detr.files import short_stem
from deformable_detr.schema import check_range

if TYPE_CHECKING:
    import numpy as np

EXAMPLES = """\
  deformable-detr preview my_data                                                  the official augmentation
  deformable-detr preview my_data --mosaic 0.5 --color-jitter 0.4                  with more
  deformable-detr preview my_data --config configs/own-data.yaml --num-images 32   as that file sets it
  deformable-detr preview my_data --each                                           one row per augmentation, to compare
  deformable-detr preview my_data --split val                                      as in evaluation: resized only
"""

COLUMNS = 4
CELL_WIDTH = 420


@dataclass(frozen=True, kw_only=True)
class PreviewOptions:
    """Draw what the model sees in training: augmented, resized and padded images with their boxes and class names.

    The images are the first ones of the training that `deformable-detr train` would do with the same options (it takes all of
    them, also --config, --seed and --batch-size). What is striped is padding of the batch.
    """

    run: PlannedRun
    """The training."""

    split: str | None = None
    """Which part of the dataset. All but that of --train-split (the default) are shown as in evaluation: not augmented."""

    output: str = field(default="runs/preview", metadata=FOLDER)
    """Folder for the drawings; files of the same names are replaced."""

    num_images: int | None = None
    """How many images (default: 16); with --each, how many per row (default: 4)."""

    each: bool = False
    """Show every augmentation for itself, one row each, and the settings as a whole in the last row."""


def run(options: PreviewOptions) -> None:
    """Draw the images."""
    from deformable_detr.visualize.drawing.detections import draw_grid, save_drawing
    from deformable_detr.visualize.drawing.training_images import choices

    check_range(options, "num_images", 1)
    data, folder = options.run.config.data, Path(options.output)
    cells: list[np.ndarray] = []
    titles: list[str] = []
    if options.each:
        columns = options.num_images or COLUMNS
        for number, (title, one) in enumerate(choices(data).items()):
            row = [image for _, image in _images(options, one, columns)]
            name = "-".join(re.findall(r"[a-z_]+", title))
            save_drawing(folder / f"{number:02d}-{name}.png", draw_grid(row, len(row), cell_width=CELL_WIDTH))
            cells += row
            titles += [title] + [" "] * (len(row) - 1)
    else:
        columns = COLUMNS
        for number, (name, image) in enumerate(_images(options, data, options.num_images or 16)):
            save_drawing(folder / f"{number:03d}-{short_stem(name)}.png", image)
            cells.append(image)
            titles.append(name)
    save_drawing(folder / "overview.png", draw_grid(cells, columns, titles=titles, cell_width=CELL_WIDTH))
    show(f"{len(cells)} images, and {folder / 'overview.png'} with all of them")


def _images(options: PreviewOptions, data: DataConfig, count: int) -> "list[tuple[str, np.ndarray]]":
    from deformable_detr.data.loader import build_dataset
    from deformable_detr.visualize.drawing.training_images import draw_training_images

    config = options.run.config
    split = options.split or data.train_split
    training = split == data.train_split
    dataset = build_dataset(options.run.dataset or config.dataset, split, data, training=training)
    return list(
        draw_training_images(
            dataset,
            data,
            batch_size=count if config.train.batch_size == "auto" else config.train.batch_size,
            seed=config.train.seed,
            count=count,
            training=training,
        )
    )


COMMAND = Command("preview", PreviewOptions, run, EXAMPLES)
