"""Multi-scale deformable attention as a stand-alone operator; depends on torch alone."""

from deformable_detr.ops.backends import available_backends, use_backend
from deformable_detr.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_fused
from deformable_detr.ops.reference import multi_scale_deformable_attn_pytorch

__all__ = [
    "available_backends",
    "ms_deform_attn",
    "ms_deform_attn_fused",
    "multi_scale_deformable_attn_pytorch",
    "use_backend",
]
