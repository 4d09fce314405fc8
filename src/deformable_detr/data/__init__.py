"""From files to batches: images, COCO annotations, augmentation, collation, loading, and generated scenes.

The public names are imported when they are first used, since some modules of this room are needed where torch is not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deformable_detr.data.coco import CocoDataset
    from deformable_detr.data.dataset import open_dataset
    from deformable_detr.data.images import read_image
    from deformable_detr.data.loader import build_dataset, build_loader
    from deformable_detr.data.scenes import generate_scenes

_HOME = {
    "CocoDataset": "coco",
    "build_dataset": "loader",
    "build_loader": "loader",
    "generate_scenes": "scenes",
    "open_dataset": "dataset",
    "read_image": "images",
}

__all__ = ["CocoDataset", "build_dataset", "build_loader", "generate_scenes", "open_dataset", "read_image"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'deformable_detr.data' has no attribute {name!r}")
    return getattr(import_module(f"deformable_detr.data.{_HOME[name]}"), name)
