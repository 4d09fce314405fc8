"""Wrappers around the model in the form that is exported: plain tensors for inputs and outputs."""

import copy

import torch
from torch import Tensor, nn

from deformable_detr.acceleration.network import answering_parts
from deformable_detr.boxes import cxcywh_to_xyxy
from deformable_detr.model import DeformableDETR
from deformable_detr.model.plain import as_built
from deformable_detr.structures import ImageBatch


class TensorNetwork(nn.Module):
    """The last decoder layer's predictions for a padded canvas.

    Args:
        model: the detector.
    """

    def __init__(self, model: DeformableDETR) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Find the objects.

        Args:
            images: `[B, 3, H, W]` float, normalised; zero in the padding.
            padding_mask: `[B, H, W]` bool, True where there is padding.

        Returns:
            `logits` `[B, Q, K]` before the sigmoid, and `boxes` `[B, Q, 4]` cxcywh in [0, 1] of each image without padding.
        """
        predictions = self.model(ImageBatch(images, padding_mask))
        return predictions.logits[-1], predictions.boxes[-1]


def plain_network(model: nn.Module) -> TensorNetwork:
    """A copy of the model as it is, on the CPU, in float32 and evaluation mode: what an export is compared with."""
    return TensorNetwork(copy.deepcopy(as_built(model)).cpu().float().eval().requires_grad_(False))


def exportable_network(plain: TensorNetwork) -> TensorNetwork:
    """The same predictions from the parts that they need alone, with the weights of `plain`."""
    for module in plain.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.num_batches_tracked = None  # counts in training alone
    parts = dict(plain.model.named_children()) | answering_parts(plain.model)
    return TensorNetwork(DeformableDETR(**parts, metadata=plain.model.metadata).eval())


class MaskFree(nn.Module):
    """The same for images that fill the canvas: no second input.

    Args:
        network: a :class:`TensorNetwork`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, 3, H, W]` → logits and boxes."""
        return self.network(images, torch.zeros_like(images[:, 0], dtype=torch.bool))


class TopDetections(nn.Module):
    """With the choice of the best (query, class) pairs inside.

    Args:
        network: gives logits and boxes.
        top_k: how many detections are given per image; all Q * K where there are fewer.
    """

    def __init__(self, network: nn.Module, top_k: int) -> None:
        super().__init__()
        self.network = network
        self.top_k = top_k

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs of the model → `scores` `[B, k]`, best first, `labels` `[B, k]`, `boxes` `[B, k, 4]` xyxy in [0, 1]."""
        logits, boxes = self.network(images) if padding_mask is None else self.network(images, padding_mask)
        queries, classes = logits.shape[1:]
        scores, places = logits.flatten(1).sigmoid().topk(min(self.top_k, queries * classes))
        chosen = boxes.gather(1, (places // classes)[..., None].expand(-1, -1, 4))
        return scores, places % classes, cxcywh_to_xyxy(chosen)
