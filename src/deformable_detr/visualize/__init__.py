"""Pictures with boxes, and everything that happens inside the network on the way to them."""

from deformable_detr.visualize.inside import Detection, Inside, LayerSampling, Proposals, look_inside

__all__ = ["Detection", "Inside", "LayerSampling", "Proposals", "look_inside"]
