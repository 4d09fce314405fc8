"""The model in the form that is exported: plain tensors for inputs and outputs."""

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
        top_k: how many (query, class) pairs are chosen per image, the best ones; all Q * K where there are fewer. None: the
            predictions of all queries.
    """

    def __init__(self, model: DeformableDETR, top_k: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.top_k = top_k

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Find the objects.

        Args:
            images: `[B, 3, H, W]` float, normalised; zero in the padding.
            padding_mask: `[B, H, W]` bool, True where there is padding; None: the images fill the canvas.

        Returns:
            `logits` `[B, Q, K]` before the sigmoid, and `boxes` `[B, Q, 4]` cxcywh in [0, 1] of each image without padding; with
            `top_k` `scores` `[B, k]`, best first, `labels` `[B, k]`, `boxes` `[B, k, 4]` xyxy in [0, 1].
        """
        if padding_mask is None:
            padding_mask = torch.zeros_like(images[:, 0], dtype=torch.bool)
        predictions = self.model(ImageBatch(images, padding_mask))
        logits, boxes = predictions.logits[-1], predictions.boxes[-1]
        if self.top_k is None:
            return logits, boxes
        queries, classes = logits.shape[1:]
        scores, places = logits.flatten(1).sigmoid().topk(min(self.top_k, queries * classes))
        chosen = boxes.gather(1, (places // classes)[..., None].expand(-1, -1, 4))
        return scores, places % classes, cxcywh_to_xyxy(chosen)


def plain_network(model: nn.Module) -> TensorNetwork:
    """A copy of the model as it is, on the CPU, in float32 and evaluation mode: what an export is compared with."""
    return TensorNetwork(copy.deepcopy(as_built(model)).cpu().float().eval().requires_grad_(False))


def exportable_network(plain: TensorNetwork, top_k: int | None = None) -> TensorNetwork:
    """The same predictions, or the best of them, from the parts that they need alone, with the weights of `plain`."""
    for module in plain.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.num_batches_tracked = None  # counts in training alone
    parts = dict(plain.model.named_children()) | answering_parts(plain.model)
    return TensorNetwork(DeformableDETR(**parts, metadata=plain.model.metadata).eval(), top_k)
