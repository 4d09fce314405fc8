"""Deformable DETR: the public names."""
