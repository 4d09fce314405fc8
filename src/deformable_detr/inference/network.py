"""Deformable DETR's forward pass for inference: the same weights and the same answer, without what only training needs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from deformable_detr.inference.constants import Constants, ConstantsCache
from deformable_detr.inference.convolutions import optimized_backbone, trace
from deformable_detr.inference.encoder import ChunkedEncoder
from deformable_detr.inference.fused_convolutions import fused_convolutions_work
from deformable_detr.inference.options import InferenceOptions
from deformable_detr.model.backbone import Backbone
from deformable_detr.model.decoder import DecoderLayer, DeformableDecoder, on_padded_levels
from deformable_detr.model.deformable_attention import MultiScaleDeformableAttention
from deformable_detr.model.deformable_detr import DeformableDETR
from deformable_detr.model.encoder import DeformableEncoder, EncoderLayer, FeedForward
from deformable_detr.model.flatten import FlattenLevels
from deformable_detr.model.heads import apply_box_delta
from deformable_detr.model.position_encoding import SCALE, sine_embedding
from deformable_detr.model.pyramid import padded_pyramid, separate_pyramid
from deformable_detr.model.queries import NO_PROPOSAL_LOGIT, EncoderProposals, Queries
from deformable_detr.structures import FlatFeatures, ImageBatch, Predictions

Compiler = Callable[[Callable], Callable]


class InferenceNetwork:
    """A model's parts in the form that is fastest here. A part of a type of your own runs as it is.

    Args:
        model: whose weights are used: shared, except convolutions with folded batch norms and joined projections.
        options: what is done.
        graph: of the backbone, see `trace_backbone`.
        compiler: for `options.compile`.
    """

    def __init__(
        self, model: DeformableDETR, options: InferenceOptions, graph: fx.Graph | None, compiler: Compiler | None = None
    ) -> None:
        self.model, self.options = model, options
        device = next(model.parameters()).device
        self.backbone = _backbone(model.backbone, options, graph, compiler, device)
        two_stage = type(model.query_source) is EncoderProposals
        self.constants = (
            ConstantsCache(model.flatten, proposals=two_stage and options.answer_only, entries=options.constant_sizes)
            if type(model.flatten) is FlattenLevels and options.constant_sizes
            else None
        )
        self.encoder = None
        if options.chunk_tokens is not None and self.constants is not None and _is_usual(model.encoder):
            chunk = options.chunk_tokens if device.type == "cpu" else None
            self.encoder = ChunkedEncoder(model.encoder.layers, chunk, compiler)  # pyright: ignore[reportArgumentType]

    def __call__(self, batch: ImageBatch) -> Predictions:
        """Find the objects of a batch; one layer of predictions where `answer_only` is on."""
        model = self.model
        levels, masks = self._pyramid(batch)
        flat, constants = self._flatten(batch, levels, masks)
        del levels
        # without padding, no mask need be applied: None
        bare = flat if constants is None or constants.padded else replace(flat, padding_mask=None)  # pyright: ignore
        if self.encoder is not None and constants is not None:
            memory = self.encoder(flat, constants.reference_points, bare.padding_mask)
        else:
            memory = model.encoder(bare)
        if not self.options.answer_only:
            queries = model.query_source(memory, flat)
            hidden, boxes = model.decoder(queries, memory, bare)
            last = len(model.class_heads) - 1
            logits = torch.stack([model.class_heads[min(layer, last)](query) for layer, query in enumerate(hidden)])
            return Predictions(logits, boxes, queries.encoder_logits, queries.encoder_boxes)
        queries = self._queries(memory, flat, constants)
        hidden, boxes = _last_layer(model.decoder, queries, memory, bare)
        return Predictions(model.class_heads[-1](hidden)[None], boxes[None])

    def _pyramid(self, batch: ImageBatch) -> tuple[list[Tensor], list[Tensor] | None]:
        """The levels, and their masks where an image is padded."""
        if self.constants is not None and batch.image_sizes is not None and not _is_padded(batch):
            return self._levels(batch.images), None
        return (separate_pyramid if self.model.separate_images else padded_pyramid)(self._levels, batch)

    def _levels(self, images: Tensor) -> list[Tensor]:
        return self.model.neck(self.backbone(images))

    def _flatten(
        self, batch: ImageBatch, levels: Sequence[Tensor], masks: Sequence[Tensor] | None
    ) -> tuple[FlatFeatures, Constants | None]:
        if self.constants is None:
            return self.model.flatten(levels, masks), None
        constants = self.constants.get(batch, levels, masks)
        features = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)  # [B, S, C]

        def of_all(one: Tensor) -> Tensor:
            return one.expand(len(batch), *one.shape[1:])

        shapes = tuple((level.shape[2], level.shape[3]) for level in levels)
        flat = FlatFeatures(
            features, of_all(constants.positions), of_all(constants.padding_mask), shapes, of_all(constants.valid_ratios)
        )
        return flat, replace(constants, reference_points=of_all(constants.reference_points))

    def _queries(self, memory: Tensor, flat: FlatFeatures, constants: Constants | None) -> Queries:
        source = self.model.query_source
        if type(source) is EncoderProposals and constants is not None and constants.proposals is not None:
            chunk = self.options.chunk_tokens if memory.device.type == "cpu" else None
            return _best_proposals(source, memory, flat, constants.proposals, chunk or memory.shape[1])
        return source(memory, flat)


def _is_padded(batch: ImageBatch) -> bool:
    return set(batch.image_sizes or ()) != {tuple(batch.images.shape[-2:])}


def trace_backbone(model: DeformableDETR) -> fx.Graph | None:
    """The graph of the backbone, or None where it has to run as it is; see `convolutions.trace`."""
    return trace(model.backbone.body) if type(model.backbone) is Backbone else None


def _backbone(
    part: nn.Module, options: InferenceOptions, graph: fx.Graph | None, compiler: Compiler | None, device: torch.device
) -> Callable[..., Any]:
    if type(part) is not Backbone:
        return part
    fuse_convolutions = options.fuse_convolutions and options.fold_batch_norm and device.type == "cpu" and fused_convolutions_work()
    run = optimized_backbone(
        part.body,
        graph,
        fold_batch_norm=options.fold_batch_norm,
        inplace_activations=options.inplace_activations,
        fuse_convolutions=fuse_convolutions,
        channels_last=options.channels_last,
        winograd=options.winograd,
    )
    # inductor makes fused convolutions no faster
    return run if compiler is None or (fuse_convolutions and graph is not None) else compiler(run)


def _is_usual(encoder: nn.Module) -> bool:
    """Whether all parts are those that `ChunkedEncoder` knows."""
    return type(encoder) is DeformableEncoder and all(
        type(layer) is EncoderLayer and type(layer.self_attn) is MultiScaleDeformableAttention and type(layer.ffn) is FeedForward
        for layer in encoder.layers
    )


def _last_layer(decoder: nn.Module, queries: Queries, memory: Tensor, flat: FlatFeatures) -> tuple[Tensor, Tensor]:
    """The queries `[B, Q, C]` and boxes `[B, Q, 4]` after the last layer, other boxes only where the next layer needs them."""
    if type(decoder) is not DeformableDecoder or any(type(layer) is not DecoderLayer for layer in decoder.layers):
        hidden, boxes = decoder(queries, memory, flat)
        return hidden[-1], boxes[-1]
    return run_to_last_layer(decoder, queries, memory, flat)


def run_to_last_layer(decoder: Any, queries: Queries, memory: Tensor, flat: FlatFeatures) -> tuple[Tensor, Tensor]:
    """The layers of a usual decoder one after the other, for the answer of the last one; also for export.

    Args:
        decoder: has the `layers`, `box_heads` and `box_refinement` of a `DeformableDecoder`.
        queries: what goes in.
        memory: `[B, S, C]`.
        flat: the sequence that `memory` belongs to.

    Returns:
        The queries `[B, Q, C]` and boxes `[B, Q, 4]`, cxcywh in [0, 1] of each image.
    """
    query, boxes = queries.query, queries.reference_points
    reference, last = boxes, len(decoder.layers) - 1
    for index, layer in enumerate(decoder.layers):
        query = layer(query, queries.query_pos, on_padded_levels(reference, flat.valid_ratios), memory, flat)
        if decoder.box_refinement or index == last:
            boxes = apply_box_delta(decoder.box_heads[min(index, len(decoder.box_heads) - 1)](query), reference)
        if decoder.box_refinement:
            reference = boxes
    return query, boxes


def _best_proposals(
    source: EncoderProposals, memory: Tensor, flat: FlatFeatures, proposals: tuple[Tensor, Tensor], chunk: int
) -> Queries:
    """What `EncoderProposals` gives; boxes are computed for the best positions alone, and of the class logits the first."""
    box_logits, can_propose = (tensor.expand(len(memory), *tensor.shape[1:]) for tensor in proposals)
    pieces = [slice(start, start + chunk) for start in range(0, memory.shape[1], chunk)]

    def features(tokens: Tensor, usable: Tensor) -> Tensor:
        return source.memory_norm(source.memory_proj(tokens.masked_fill(~usable, 0.0)))

    scores = [source.class_head(features(memory[:, piece], can_propose[:, piece]))[..., 0].float() for piece in pieces]
    objectness = torch.cat(scores, dim=1).masked_fill(flat.padding_mask, float("-inf"))  # padding comes last
    best = objectness.topk(min(source.num_queries, memory.shape[1]), dim=1).indices[..., None]  # [B, Q, 1]

    def of_best(tensor: Tensor) -> Tensor:
        return tensor.gather(1, best.expand(-1, -1, tensor.shape[-1]))

    usable = of_best(can_propose)
    chosen = source.box_head(features(of_best(memory), usable)).float() + of_best(box_logits)
    references = chosen.masked_fill(~usable, NO_PROPOSAL_LOGIT).sigmoid()
    embedding = sine_embedding(references * SCALE, source.hidden_dim // 2).to(memory.dtype)
    query_pos, query = source.query_norm(source.query_proj(embedding)).chunk(2, dim=-1)
    return Queries(query, query_pos, references)
