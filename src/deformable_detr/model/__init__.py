"""The network, in the order in which data flows: backbone, neck, flatten, encoder, queries, decoder, heads."""

from deformable_detr.model.build import build_model
from deformable_detr.model.deformable_attention import MultiScaleDeformableAttention
from deformable_detr.model.deformable_detr import DeformableDETR

__all__ = ["DeformableDETR", "MultiScaleDeformableAttention", "build_model"]
