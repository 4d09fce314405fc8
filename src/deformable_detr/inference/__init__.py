"""Prediction for people with images: from files to `supervision.Detections`."""

from deformable_detr.inference.optimize import InferenceModel
from deformable_detr.inference.options import InferenceOptions
from deformable_detr.inference.predictor import Predictor, Result

__all__ = ["InferenceModel", "InferenceOptions", "Predictor", "Result"]
