"""The network, in the order in which data flows: backbone, neck, flatten, encoder, queries, decoder, heads."""

from deformable_detr.model.build import build_model
from deformable_detr.model.deformable_attention import MultiScaleDeformableAttention
from deformable_detr.model.deformable_detr import DeformableDETR
from deformable_detr.model.denoising import DenoisingNoise, draw_noise

__all__ = ["DeformableDETR", "DenoisingNoise", "MultiScaleDeformableAttention", "build_model", "draw_noise"]
