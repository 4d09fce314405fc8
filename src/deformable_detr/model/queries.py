"""Where the decoder's queries come from: learned ones, or the encoder's best proposals (paper, section 4.2 and app. A.4)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from deformable_detr.model.position_encoding import SCALE, sine_embedding
from deformable_detr.structures import FlatFeatures

NO_PROPOSAL_LOGIT = 20.0
"""Box logit of a position that cannot propose: its sigmoid is 1 and its gradient 0, as for the original's infinity."""


@dataclass(frozen=True)
class Ranking:
    """How the proposals of all positions were ranked."""

    scores: Tensor
    """`[B, S]` logits that they are ranked by; the lowest finite number where padding comes last."""

    box_logits: Tensor
    """`[B, S, 4]` logits of their boxes, without gradient."""

    best: Tensor
    """`[B, Q]` int64: the position in the sequence that each query comes from, best first."""


@dataclass(frozen=True)
class Queries:
    """What the decoder starts from."""

    query: Tensor
    """`[B, Q, C]` content."""

    query_pos: Tensor
    """`[B, Q, C]` position, added before each attention."""

    reference_points: Tensor
    """`[B, Q, 2]` (x, y) or `[B, Q, 4]` (cx, cy, w, h), in [0, 1] of each image; float32."""

    attn_mask: Tensor | None = None
    """`[Q, Q]` float, added to the logits of the self-attention: minus infinity where row i may not see column j. None: all see
    all."""

    encoder_logits: Tensor | None = None
    """`[B, S, K]`, see `Predictions`."""

    encoder_boxes: Tensor | None = None
    """`[B, S, 4]`, see `Predictions`."""

    ranking: Ranking | None = None
    """Of a two-stage model, where all proposals were computed; for people who look inside."""

    one_to_many: "Queries | None" = None
    """A second set, in training only (H-DETR)."""

    first_layer: int = 0
    """The decoder layer that these queries enter at; there are no predictions of the layers before it."""


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


def objectness(logits: Tensor) -> Tensor:
    """`[..., K]` → `[...]`: class channel 0.

    It is no class: for the loss of the proposals all labels are set to 0, which makes that channel the probability that there
    is an object at all.
    """
    return logits[..., 0]


def best_class(logits: Tensor) -> Tensor:
    """`[..., K]` → `[...]`: the largest class logit, for proposals that learn the classes (DINO)."""
    return logits.amax(-1)


def all_positions(proposals: Tensor, best: Tensor) -> Tensor:
    """Of the proposals `[B, S, A]` those that are trained: all."""
    del best
    return proposals


def take(tensor: Tensor, positions: Tensor) -> Tensor:
    """Of `[B, S, A]` the positions `[B, Q]`: `[B, Q, A]`."""
    return tensor.gather(1, positions[..., None].expand(-1, -1, tensor.shape[-1]))


class Proposals(nn.Module):
    """Every position of the memory proposes a box; the best become the queries. What they know of it, a subclass decides.

    Args:
        num_queries: Q, the number of proposals kept.
        hidden_dim: C.
        class_head: `[..., C]` → `[..., K]`.
        box_head: `[..., C]` → `[..., 4]`.
        score: `[..., K]` → `[...]`, what the proposals are ranked by: `objectness` or `best_class`.
        trained: which of the proposals have a loss: `all_positions`, or `take` for the best alone (DINO).
        padding_last: rank padded positions behind all others. False: let them compete, as the original does.
        one_to_many_queries: number of further proposals that are a second set of queries in training (H-DETR).
    """

    def __init__(
        self,
        num_queries: int,
        hidden_dim: int,
        class_head: nn.Module,
        box_head: nn.Module,
        *,
        score: Callable[[Tensor], Tensor] = objectness,
        trained: Callable[[Tensor, Tensor], Tensor] = all_positions,
        padding_last: bool = True,
        one_to_many_queries: int = 0,
    ) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.hidden_dim = hidden_dim
        self.score, self.trained = score, trained
        self.padding_last = padding_last
        self.one_to_many_queries = one_to_many_queries
        self.memory_proj = nn.Linear(hidden_dim, hidden_dim)
        self.memory_norm = nn.LayerNorm(hidden_dim)
        self.class_head = class_head
        self.box_head = box_head

    def forward(self, memory: Tensor, flat: FlatFeatures) -> Queries:
        """The best Q proposals of each image (all of them where an image has fewer positions)."""
        proposal_logits, can_propose = flat.proposals
        features = self.features(memory, can_propose)
        logits = self.class_head(features)
        box_logits = self.box_logits(features, proposal_logits, can_propose)
        scores = self.padding_behind(self.score(logits).detach(), flat)
        best = self.best(scores)
        first, further = best[:, : self.num_queries], best[:, self.num_queries :]
        chosen = box_logits.detach()
        second = self.queries(take(chosen, further), features.dtype, self.num_queries) if further.numel() else None
        return replace(
            self.queries(take(chosen, first), features.dtype),
            encoder_logits=self.trained(logits, first),
            encoder_boxes=self.trained(box_logits, first).sigmoid(),
            ranking=Ranking(scores, chosen, first),
            one_to_many=second,
        )

    def features(self, memory: Tensor, can_propose: Tensor) -> Tensor:
        """`[B, S, C]` → what the heads read, `[B, S, C]`; the same for all positions that cannot propose."""
        return self.memory_norm(self.memory_proj(memory.masked_fill(~can_propose, 0.0)))

    def box_logits(self, features: Tensor, proposal_logits: Tensor, can_propose: Tensor) -> Tensor:
        """The proposals after their correction, `[B, S, 4]` logits of cxcywh; float32."""
        return (self.box_head(features).float() + proposal_logits).masked_fill(~can_propose, NO_PROPOSAL_LOGIT)

    def padding_behind(self, scores: Tensor, flat: FlatFeatures) -> Tensor:
        """Scores `[B, S]` in float32, the lowest finite number in the padding, unless padded positions compete."""
        scores = scores.float()
        if self.padding_last and flat.padding_mask is not None:
            scores = scores.masked_fill(flat.padding_mask, torch.finfo(scores.dtype).min)
        return scores

    def best(self, scores: Tensor) -> Tensor:
        """`[B, S]` → the positions of the best proposals, best first: `[B, Q]`, in training with those of the second set."""
        kept = self.num_queries + (self.one_to_many_queries if self.training else 0)
        return scores.topk(min(kept, scores.shape[1]), dim=1).indices

    def queries(self, box_logits: Tensor, dtype: torch.dtype, first_rank: int = 0) -> Queries:
        """Boxes, `[B, Q, 4]` logits of cxcywh, as queries.

        Args:
            box_logits: best first.
            dtype: of content and position.
            first_rank: of the first box among all proposals.
        """
        raise NotImplementedError


class EncoderProposals(Proposals):
    """The content and the position of a query both come from its proposal's box (paper, app. A.4)."""

    def __init__(self, num_queries: int, hidden_dim: int, class_head: nn.Module, box_head: nn.Module, **settings: Any) -> None:
        super().__init__(num_queries, hidden_dim, class_head, box_head, **settings)
        self.query_proj = nn.Linear(2 * hidden_dim, 2 * hidden_dim)
        self.query_norm = nn.LayerNorm(2 * hidden_dim)
        for layer in (self.memory_proj, self.query_proj):
            nn.init.xavier_uniform_(layer.weight)

    def queries(self, box_logits: Tensor, dtype: torch.dtype, first_rank: int = 0) -> Queries:
        """See `Proposals.queries`."""
        del first_rank
        references = box_logits.sigmoid()
        embedding = sine_embedding(references * SCALE, self.hidden_dim // 2).to(dtype)  # [B, Q, 2C]
        query_pos, query = self.query_norm(self.query_proj(embedding)).chunk(2, dim=-1)
        return Queries(query, query_pos, references)


class MixedProposals(EncoderProposals):
    """The position of a query comes from its proposal, the content is learned for each rank (mixed selection; H-DETR)."""

    def __init__(self, num_queries: int, hidden_dim: int, class_head: nn.Module, box_head: nn.Module, **settings: Any) -> None:
        super().__init__(num_queries, hidden_dim, class_head, box_head, **settings)
        self.content_embed = nn.Embedding(num_queries + self.one_to_many_queries, hidden_dim)

    def queries(self, box_logits: Tensor, dtype: torch.dtype, first_rank: int = 0) -> Queries:
        """See `Proposals.queries`."""
        queries = super().queries(box_logits, dtype, first_rank)
        return replace(queries, query=_rows(self.content_embed, first_rank, queries.query))


class AnchoredProposals(Proposals):
    """The content of a query is learned for each rank; its position is left to the decoder, which has its box (DINO)."""

    def __init__(self, num_queries: int, hidden_dim: int, class_head: nn.Module, box_head: nn.Module, **settings: Any) -> None:
        super().__init__(num_queries, hidden_dim, class_head, box_head, **settings)
        self.content_embed = nn.Embedding(num_queries + self.one_to_many_queries, hidden_dim)
        for layer in (self.memory_proj, self.content_embed):
            nn.init.xavier_uniform_(layer.weight)

    def queries(self, box_logits: Tensor, dtype: torch.dtype, first_rank: int = 0) -> Queries:
        """See `Proposals.queries`."""
        position = box_logits.new_zeros(*box_logits.shape[:2], self.hidden_dim, dtype=dtype)
        return Queries(_rows(self.content_embed, first_rank, position), position, box_logits.sigmoid())


def _rows(table: nn.Embedding, first: int, like: Tensor) -> Tensor:
    """As many rows of a table as `like`, `[B, Q, C]`, has queries, for each image; in its dtype."""
    return table.weight[first : first + like.shape[1]].to(like.dtype)[None].expand(like.shape[0], -1, -1)


class BestProposals(nn.Module):
    """The queries of `Proposals` without what only their loss needs: boxes of the best proposals alone.

    Args:
        source: whose weights are used; they must not change afterwards.
        chunk: number of positions that are scored at a time. None: all at once.
    """

    def __init__(self, source: Proposals, chunk: int | None = None) -> None:
        super().__init__()
        self.source, self.chunk = source, chunk
        self.class_head = _scoring_channel(source)

    def forward(self, memory: Tensor, flat: FlatFeatures) -> Queries:
        """The best Q proposals of each image, see `Proposals`."""
        source = self.source
        proposal_logits, can_propose = flat.proposals
        best = source.best(source.padding_behind(self._scores(memory, can_propose), flat))
        features = source.features(take(memory, best), take(can_propose, best))
        box_logits = source.box_logits(features, take(proposal_logits, best), take(can_propose, best))
        return source.queries(box_logits, features.dtype)

    def _scores(self, memory: Tensor, can_propose: Tensor) -> Tensor:
        """`[B, S]` how good each position is as a proposal."""
        if self.chunk is not None and memory.shape[1] > self.chunk:  # in one piece there is nothing to cut, also in exported files
            pieces = zip(memory.split(self.chunk, 1), can_propose.split(self.chunk, 1), strict=True)
            return torch.cat([self._scores(*piece) for piece in pieces], dim=1)
        return self.source.score(self.class_head(self.source.features(memory, can_propose)))


def _scoring_channel(source: Proposals) -> nn.Module:
    """The class head, of a plain linear one only the channel that `objectness` reads."""
    head = source.class_head
    if source.score is not objectness or type(head) is not nn.Linear:
        return head
    channel = nn.Linear(head.in_features, 1, device="meta")
    channel.weight, channel.bias = (nn.Parameter(tensor[:1].clone(), requires_grad=False) for tensor in (head.weight, head.bias))
    return channel
