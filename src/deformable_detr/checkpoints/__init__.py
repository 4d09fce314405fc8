"""Weights, in and out."""

from deformable_detr.checkpoints.load import LoadedCheckpoint, load_checkpoint, load_pretrained
from deformable_detr.checkpoints.native import save_weights

__all__ = ["LoadedCheckpoint", "load_checkpoint", "load_pretrained", "save_weights"]
