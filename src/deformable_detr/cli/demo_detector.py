"""The detector for a first look without weights of one's own: the demo's, trained on first use and kept in the user's cache."""

import logging
import os
import shutil
from pathlib import Path

from deformable_detr.cli.demo import demo_folders, train_demo
from deformable_detr.data.cache import user_cache
from deformable_detr.inference.sources import list_images

logger = logging.getLogger(__name__)

FIRST_STEPS = 1200
"""Of the training on first use: enough to find most of the shapes."""

MOST_IMAGES = 24


def demo_detector(device: str = "auto") -> tuple[Path, list[Path]]:
    """A run folder and some images: of `demo/` here, else of the cache; where there is none, it is trained first.

    Args:
        device: to train on.

    Returns:
        The run folder, and images that the detector has not been trained on.
    """
    for folder in (Path("demo"), cache_folder()):
        data, run = demo_folders(folder)
        if (run / "weights" / "best.safetensors").is_file():
            return run, list_images(data / "val")[:MOST_IMAGES] if (data / "val").is_dir() else []
    from deformable_detr.training import TrainingInterrupted  # brings torch, which the help does without

    folder = cache_folder()
    logger.info("first use: training the demo's small detector for %d steps, a few minutes, kept in %s", FIRST_STEPS, folder)
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    try:
        try:
            train_demo(partial, steps=FIRST_STEPS, device=device)
        except TrainingInterrupted:
            raise TrainingInterrupted("training the small detector; nothing of it is kept, the next call begins anew") from None
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return demo_detector(device)


def cache_folder() -> Path:
    """Where it is kept in this user's cache."""
    return user_cache() / "explorer"
