"""Prediction on images: from files to `supervision.Detections`."""

from deformable_detr.inference.predictor import Predictor, Result

__all__ = ["Predictor", "Result"]
