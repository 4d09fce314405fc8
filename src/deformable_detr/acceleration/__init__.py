"""A detector made fast for inference: the same model, put together from other parts."""

from deformable_detr.acceleration.model import InferenceModel
from deformable_detr.acceleration.options import InferenceOptions, fastest_precision

__all__ = ["InferenceModel", "InferenceOptions", "fastest_precision"]
