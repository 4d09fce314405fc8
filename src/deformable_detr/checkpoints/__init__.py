"""Weights, in and out."""

from deformable_detr.checkpoints.load import load_pretrained
from deformable_detr.checkpoints.native import save_weights

__all__ = ["load_pretrained", "save_weights"]
