"""The network as a program with plain tensors for inputs and outputs: wrappers around the model, the way it is exported."""

import copy

import torch
from torch import Tensor, nn

from deformable_detr.boxes import cxcywh_to_xyxy
from deformable_detr.inference.network import run_to_last_layer
from deformable_detr.model import DeformableDETR
from deformable_detr.model.decoder import DeformableDecoder
from deformable_detr.model.position_encoding import SCALE, sine_embedding
from deformable_detr.model.pyramid import padded_pyramid
from deformable_detr.model.queries import NO_PROPOSAL_LOGIT, EncoderProposals, Queries, proposal_logits
from deformable_detr.structures import FlatFeatures, ImageBatch


class PlainNetwork(nn.Module):
    """The model as it is, for comparison: the last decoder layer's answer for a padded canvas.

    Args:
        model: the detector. It is copied, to the CPU and in evaluation mode.
    """

    def __init__(self, model: DeformableDETR) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)

    def forward(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`ExportableNetwork`."""
        predictions = self.model(ImageBatch(images, padding_mask))
        return predictions.logits[-1], predictions.boxes[-1]


class ExportableNetwork(nn.Module):
    """The same answer from what it needs alone: no heads of other layers, no logits of proposals but the one that ranks them.

    A decoder or query source of a type of your own runs as it is.

    Args:
        model: in evaluation mode; its parts are shared.
    """

    def __init__(self, model: DeformableDETR) -> None:
        super().__init__()
        self.backbone, self.neck, self.flatten, self.encoder = model.backbone, model.neck, model.flatten, model.encoder
        source, decoder = model.query_source, model.decoder
        self.query_source = BestProposals(source) if type(source) is EncoderProposals else source
        self.decoder = LastLayer(decoder) if type(decoder) is DeformableDecoder else decoder
        self.class_head = model.class_heads[-1]
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.num_batches_tracked = None  # counts in training alone

    def forward(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Find the objects.

        Args:
            images: `[B, 3, H, W]` float, normalised; zero in the padding.
            padding_mask: `[B, H, W]` bool, True where there is padding.

        Returns:
            `logits` `[B, Q, K]` before the sigmoid, and `boxes` `[B, Q, 4]` cxcywh in [0, 1] of each image without padding.
        """
        levels, masks = padded_pyramid(lambda images: self.neck(self.backbone(images)), ImageBatch(images, padding_mask))
        flat = self.flatten(levels, masks)
        memory = self.encoder(flat)
        hidden, boxes = self.decoder(self.query_source(memory, flat), memory, flat)
        return self.class_head(hidden[-1]), boxes[-1]


class LastLayer(nn.Module):
    """A decoder that gives the answer of its last layer; boxes of the others only where the next one looks around them.

    Args:
        decoder: whose layers and heads are shared.
    """

    def __init__(self, decoder: DeformableDecoder) -> None:
        super().__init__()
        self.layers, self.box_heads, self.box_refinement = decoder.layers, decoder.box_heads, decoder.box_refinement

    def forward(self, queries: Queries, memory: Tensor, flat: FlatFeatures) -> tuple[list[Tensor], list[Tensor]]:
        """The queries `[B, Q, C]` and their boxes `[B, Q, 4]`, cxcywh in [0, 1] of each image; of one layer."""
        query, boxes = run_to_last_layer(self, queries, memory, flat)
        return [query], [boxes]


class BestProposals(nn.Module):
    """Two-stage queries: of the proposals' class logits the first channel alone, and boxes of the best proposals alone.

    Args:
        source: whose weights are shared.
    """

    def __init__(self, source: EncoderProposals) -> None:
        super().__init__()
        self.num_queries, self.hidden_dim = source.num_queries, source.hidden_dim
        self.memory_proj, self.memory_norm = source.memory_proj, source.memory_norm
        self.query_proj, self.query_norm = source.query_proj, source.query_norm
        self.class_head, self.box_head = _first_channel(source.class_head), source.box_head

    def forward(self, memory: Tensor, flat: FlatFeatures) -> Queries:
        """The best Q proposals of each image, see `EncoderProposals`."""
        proposals, can_propose = proposal_logits(flat)
        features = self.memory_norm(self.memory_proj(memory.masked_fill(~can_propose, 0.0)))  # [B, S, C]
        objectness = self.class_head(features)[..., 0].masked_fill(flat.padding_mask, float("-inf"))
        best = objectness.topk(min(self.num_queries, memory.shape[1]), dim=1).indices[..., None]  # [B, Q, 1]
        proposals = proposals.masked_fill(~can_propose, NO_PROPOSAL_LOGIT).gather(1, best.expand(-1, -1, 4))
        corrections = self.box_head(features.gather(1, best.expand(-1, -1, self.hidden_dim)))  # [B, Q, 4]
        references = (corrections.masked_fill(~can_propose.gather(1, best), 0.0) + proposals).sigmoid()
        embedding = sine_embedding(references * SCALE, self.hidden_dim // 2)
        query_pos, query = self.query_norm(self.query_proj(embedding)).chunk(2, dim=-1)
        return Queries(query, query_pos, references)


def _first_channel(head: nn.Module) -> nn.Module:
    if type(head) is not nn.Linear:
        return head
    first = nn.Linear(head.in_features, 1).requires_grad_(False)
    first.load_state_dict({name: tensor[:1] for name, tensor in head.state_dict().items()})
    return first


class MaskFree(nn.Module):
    """The same for images that fill the canvas: no second input.

    Args:
        network: an :class:`ExportableNetwork`.
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
        """Inputs of the network → `scores` `[B, k]`, best first, `labels` `[B, k]`, `boxes` `[B, k, 4]` xyxy in [0, 1]."""
        logits, boxes = self.network(images) if padding_mask is None else self.network(images, padding_mask)
        queries, classes = logits.shape[1:]
        scores, places = logits.flatten(1).sigmoid().topk(min(self.top_k, queries * classes))
        chosen = boxes.gather(1, (places // classes)[..., None].expand(-1, -1, 4))
        return scores, places % classes, cxcywh_to_xyxy(chosen)
