"""Where the decoder's queries come from: learned ones, or the encoder's best proposals (paper, section 4.2 and app. A.4)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deformable_detr.model.encoder import pixel_centres
from deformable_detr.model.position_encoding import SCALE, sine_embedding
from deformable_detr.structures import FlatFeatures

PROPOSAL_SIZE = 0.05
"""Side of a proposal on the finest level, as a share of the image; it doubles with every level."""

NO_PROPOSAL_LOGIT = 20.0
"""Box logit of a position that cannot propose: its sigmoid is 1 and its gradient 0, as for the original's infinity."""


@dataclass(frozen=True)
class Queries:
    """What the decoder starts from."""

    query: Tensor
    """`[B, Q, C]` content."""

    query_pos: Tensor
    """`[B, Q, C]` position, added before each attention."""

    reference_points: Tensor
    """`[B, Q, 2]` (x, y) or `[B, Q, 4]` (cx, cy, w, h), in [0, 1] of each image; float32."""

    encoder_logits: Tensor | None = None
    """`[B, S, K]`, see `Predictions`."""

    encoder_boxes: Tensor | None = None
    """`[B, S, 4]`, see `Predictions`."""


class LearnedQueries(nn.Module):
    """The same queries for every image; a linear map of the position gives the reference point.

    Args:
        num_queries: Q.
        hidden_dim: C.
    """

    def __init__(self, num_queries: int, hidden_dim: int) -> None:
        super().__init__()
        self.query_embed = nn.Embedding(num_queries, 2 * hidden_dim)
        self.reference_points = nn.Linear(hidden_dim, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self, memory: Tensor, flat: FlatFeatures) -> Queries:
        """The queries, once for each image of the batch."""
        del flat
        query_pos, query = self.query_embed.weight[None].expand(memory.shape[0], -1, -1).chunk(2, dim=-1)
        return Queries(query, query_pos, self.reference_points(query_pos).float().sigmoid())


class EncoderProposals(nn.Module):
    """Every position of the memory proposes a box; the best become the queries.

    The ranking reads class channel 0. It is no class: for the loss of the proposals all labels are set to 0, which makes that
    channel the probability that there is an object at all.

    Args:
        num_queries: Q, the number of proposals kept.
        hidden_dim: C.
        class_head: `[..., C]` → `[..., K]`.
        box_head: `[..., C]` → `[..., 4]`.
    """

    def __init__(self, num_queries: int, hidden_dim: int, class_head: nn.Module, box_head: nn.Module) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.hidden_dim = hidden_dim
        self.memory_proj = nn.Linear(hidden_dim, hidden_dim)
        self.memory_norm = nn.LayerNorm(hidden_dim)
        self.class_head = class_head
        self.box_head = box_head
        self.query_proj = nn.Linear(2 * hidden_dim, 2 * hidden_dim)
        self.query_norm = nn.LayerNorm(2 * hidden_dim)
        nn.init.xavier_uniform_(self.memory_proj.weight)
        nn.init.xavier_uniform_(self.query_proj.weight)

    def forward(self, memory: Tensor, flat: FlatFeatures) -> Queries:
        """The best Q proposals of each image (all of them where an image has fewer positions)."""
        proposals, can_propose = proposal_logits(flat)
        features = self.memory_norm(self.memory_proj(memory.masked_fill(~can_propose, 0.0)))  # [B, S, C]
        logits = self.class_head(features)
        box_logits = (self.box_head(features).float() + proposals).masked_fill(~can_propose, NO_PROPOSAL_LOGIT)
        objectness = logits[..., 0].float().masked_fill(flat.padding_mask, float("-inf"))  # padding comes last
        best = objectness.topk(min(self.num_queries, memory.shape[1]), dim=1).indices  # [B, Q]
        references = box_logits.detach().gather(1, best[..., None].expand(-1, -1, 4)).sigmoid()  # [B, Q, 4]
        embedding = sine_embedding(references * SCALE, self.hidden_dim // 2).to(memory.dtype)  # [B, Q, 2C]
        query_pos, query = self.query_norm(self.query_proj(embedding)).chunk(2, dim=-1)
        return Queries(query, query_pos, references, logits, box_logits.sigmoid())


def proposal_logits(flat: FlatFeatures) -> tuple[Tensor, Tensor]:
    """The box that each position stands for, before any correction.

    Returns:
        `[B, S, 4]` logits of cxcywh in the frame of the image (any finite number where there is no proposal), float32, and
        `[B, S, 1]` bool: True for positions inside the image whose box stays between 0.01 and 0.99.
    """
    batch, boxes = flat.padding_mask.shape[0], []
    centres = pixel_centres(flat.spatial_shapes, flat.padding_mask.device)
    for level, ((height, width), points) in enumerate(zip(flat.spatial_shapes, centres, strict=True)):
        ratios = flat.valid_ratios[:, level]
        valid = torch.stack((ratios[:, 0] * width, ratios[:, 1] * height), dim=-1)  # [B, 2]: pixels of the image
        centre = points[None] / valid[:, None]
        boxes.append(torch.cat((centre, torch.full_like(centre, PROPOSAL_SIZE * 2.0**level)), dim=-1).expand(batch, -1, -1))
    proposals = torch.cat(boxes, dim=1)  # [B, S, 4]
    can_propose = ((proposals > 0.01) & (proposals < 0.99)).all(-1, keepdim=True) & ~flat.padding_mask[..., None]
    proposals = proposals.clamp(0.01, 0.99)
    return torch.log(proposals / (1 - proposals)), can_propose
