"""The demo's detector: its training, and the one for a first look without weights of one's own, kept in the user's cache."""

import json
import logging
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deformable_detr.data.cache import user_cache
from deformable_detr.files import atomic_folder

if TYPE_CHECKING:
    from deformable_detr.training import TrainResult

logger = logging.getLogger(__name__)

TRAIN_IMAGES, VAL_IMAGES = 2000, 250

FIRST_STEPS = 500
"""Of the training on first use: enough to find most of the shapes."""

MOST_IMAGES = 24


def demo_folders(output: str | Path) -> tuple[Path, Path]:
    """Where the demo keeps its images and its run."""
    return Path(output) / "data", Path(output) / "run"


def train_demo(output: str | Path, *, steps: int, seed: int = 0, device: str = "auto") -> "TrainResult":
    """Draw the images and train the small detector on them; both folders of :func:`demo_folders` are replaced.

    Raises:
        FileExistsError: one of the folders holds something else than an earlier demo.
    """
    from deformable_detr.data.scenes import generate_scenes
    from deformable_detr.presets import demo_run
    from deformable_detr.training import Samples, train
    from deformable_detr.visualize.drawing.samples import draw_samples

    data, run = demo_folders(output)
    check_replaceable(data, run)
    for folder in (data, run):
        shutil.rmtree(folder, ignore_errors=True)
    generate_scenes(data, train=TRAIN_IMAGES, val=VAL_IMAGES, seed=seed)
    config = demo_run(str(data), str(run))
    config = replace(config, train=replace(config.train, steps=steps, seed=seed, device=device))
    return train(config, callbacks=[Samples(draw_samples)])


def check_replaceable(data: Path, run: Path) -> None:
    """See that the folders of :func:`demo_folders` are those of an earlier demo, or empty.

    Raises:
        FileExistsError: one of them is not.
    """
    from deformable_detr.data.scenes import SHAPES
    from deformable_detr.presets import demo_run
    from deformable_detr.settings import read_config

    def is_drawn() -> bool:
        record = json.loads((data / "annotations" / "instances_train.json").read_bytes())
        shapes = [(shape.category_id, shape.name) for shape in SHAPES]
        return [(entry["id"], entry["name"]) for entry in record["categories"]] == shapes

    def is_of_demo() -> bool:
        return read_config(run / "config.yaml").preset == demo_run("", "").preset

    for folder, is_ours in ((data, is_drawn), (run, is_of_demo)):
        with suppress(OSError, ValueError, LookupError, TypeError):
            if not folder.exists() or not any(folder.iterdir()) or is_ours():
                continue
        raise FileExistsError(f"{folder} holds something else than an earlier demo, which would be lost: choose another --output")


def demo_detector(device: str = "auto") -> tuple[Path, list[Path]]:
    """A run folder, and images that its detector has not learned: of `demo/` here, else of the cache, where it is trained first."""
    from deformable_detr.inference.sources import list_images
    from deformable_detr.training import TrainingInterrupted  # brings torch, which the help does without

    for folder in (Path("demo"), cache_folder()):
        data, run = demo_folders(folder)
        if (run / "weights" / "best.safetensors").is_file():
            return run, list_images(data / "val")[:MOST_IMAGES] if (data / "val").is_dir() else []
    folder = cache_folder()
    logger.info("first use: training the demo's small detector for %d steps, a few minutes, kept in %s", FIRST_STEPS, folder)
    shutil.rmtree(folder, ignore_errors=True)  # what is left of an earlier one
    with atomic_folder(folder) as partial:
        try:
            train_demo(partial, steps=FIRST_STEPS, device=device)
        except TrainingInterrupted:
            raise TrainingInterrupted("training the small detector; nothing of it is kept, the next call begins anew") from None
        shutil.rmtree(folder, ignore_errors=True)  # another process was quicker
    return demo_detector(device)


def cache_folder() -> Path:
    """Where it is kept in this user's cache."""
    return user_cache() / "explorer"
