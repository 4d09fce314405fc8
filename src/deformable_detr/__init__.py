"""Deformable DETR: the public names; each is imported when it is first used, so that `import deformable_detr` is quick."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deformable_detr.lean_imports import watch_imports
from deformable_detr.version import __version__

if TYPE_CHECKING:
    from deformable_detr import data, ops, presets, visualize
    from deformable_detr.categories import Categories
    from deformable_detr.checkpoints import load_pretrained, save_weights
    from deformable_detr.config import (
        DataConfig,
        LossConfig,
        Metadata,
        ModelConfig,
        OptimizerConfig,
        RunConfig,
        TrainConfig,
    )
    from deformable_detr.criterion import SetCriterion
    from deformable_detr.detector import Detector
    from deformable_detr.model import DeformableDETR, DenoisingNoise, MultiScaleDeformableAttention, build_model
    from deformable_detr.postprocessing import postprocess
    from deformable_detr.structures import ImageBatch, Predictions, Target
    from deformable_detr.training import build_optimizer

_OFFERS = {
    "categories": ("Categories",),
    "checkpoints": ("load_pretrained", "save_weights"),
    "config": ("DataConfig", "LossConfig", "Metadata", "ModelConfig", "OptimizerConfig", "RunConfig", "TrainConfig"),
    "criterion": ("SetCriterion",),
    "detector": ("Detector",),
    "model": ("DeformableDETR", "DenoisingNoise", "MultiScaleDeformableAttention", "build_model"),
    "postprocessing": ("postprocess",),
    "structures": ("ImageBatch", "Predictions", "Target"),
    "training": ("build_optimizer",),
}
_HOME = {name: module for module, names in _OFFERS.items() for name in names}
_ROOMS = {"data", "ops", "presets", "visualize"}
"""Packages and modules that are reached through this one."""

__all__ = [
    "Categories",
    "DataConfig",
    "DeformableDETR",
    "DenoisingNoise",
    "Detector",
    "ImageBatch",
    "LossConfig",
    "Metadata",
    "ModelConfig",
    "MultiScaleDeformableAttention",
    "OptimizerConfig",
    "Predictions",
    "RunConfig",
    "SetCriterion",
    "Target",
    "TrainConfig",
    "__version__",
    "build_model",
    "build_optimizer",
    "data",
    "load_pretrained",
    "ops",
    "postprocess",
    "presets",
    "save_weights",
    "visualize",
]

watch_imports()


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"deformable_detr.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'deformable_detr' has no attribute {name!r}")
    return getattr(import_module(f"deformable_detr.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
