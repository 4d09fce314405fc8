"""The parts that make a detector fast: the same weights and the same answer, without what only training needs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from deformable_detr.acceleration.convolutions import optimized_backbone, trace
from deformable_detr.acceleration.encoder import ChunkedEncoder, Compiler
from deformable_detr.acceleration.fused_convolutions import fused_convolutions_work
from deformable_detr.acceleration.geometry import KeptGeometry
from deformable_detr.acceleration.options import InferenceOptions
from deformable_detr.model.backbone import Backbone
from deformable_detr.model.decoder import DeformableDecoder, LastLayer
from deformable_detr.model.deformable_attention import MultiScaleDeformableAttention
from deformable_detr.model.deformable_detr import DeformableDETR
from deformable_detr.model.encoder import DeformableEncoder, EncoderLayer, FeedForward
from deformable_detr.model.flatten import FlattenLevels
from deformable_detr.model.heads import ClassHeads
from deformable_detr.model.queries import BestProposals, Proposals


def fast_network(
    model: DeformableDETR, options: InferenceOptions, graph: fx.Graph | None, compiler: Compiler | None = None
) -> DeformableDETR:
    """Put a model's parts together anew, in the form that is fastest here; it holds as long as no weight changes.

    Args:
        model: in evaluation mode. Its weights are shared, except convolutions with folded batch norms and joined projections.
        options: which parts are exchanged. A part of a type of your own stays.
        graph: of the backbone, see `trace_backbone`.
        compiler: for `options.compile`.
    """
    device = next(model.parameters()).device
    chunk = options.chunk_tokens if device.type == "cpu" else None
    parts: dict[str, Any] = dict(model.named_children())
    if type(model.backbone) is Backbone:
        parts["backbone"] = _fast_backbone(model.backbone, options, graph, compiler, device)
    if options.constant_sizes and type(model.flatten) is FlattenLevels:
        parts["flatten"] = KeptGeometry(model.flatten, options.constant_sizes)
    if options.chunk_tokens is not None and _is_usual(model.encoder):
        parts["encoder"] = ChunkedEncoder(model.encoder.layers, chunk, compiler)  # pyright: ignore[reportArgumentType]
    if options.answer_only:
        parts |= answering_parts(model, chunk)
    return DeformableDETR(**parts, metadata=model.metadata).eval()


def answering_parts(model: DeformableDETR, chunk: int | None = None) -> dict[str, nn.Module]:
    """The parts of a network that gives the last layer's answer (N = 1), and nothing that is only for a loss.

    Args:
        model: whose weights are used. A query source or decoder of a type of your own runs as it is.
        chunk: score the proposals of so many positions at a time. None: all at once.
    """
    parts = {}
    if isinstance(model.query_source, Proposals):
        parts["query_source"] = BestProposals(model.query_source, chunk)
    if type(model.class_heads) is ClassHeads:
        usual = type(model.decoder) is DeformableDecoder
        parts["decoder"] = LastLayer(model.decoder) if usual else _LastOfAll(model.decoder)  # pyright: ignore[reportArgumentType]
        parts["class_heads"] = ClassHeads([model.class_heads[-1]])
    return parts


def trace_backbone(model: DeformableDETR) -> fx.Graph | None:
    """The graph of the backbone, or None where it has to run as it is; see `convolutions.trace`."""
    return trace(model.backbone.body) if type(model.backbone) is Backbone else None


class _LastOfAll(nn.Module):
    """The last layer's answer of a decoder that gives those of all layers."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        hidden, boxes = self.decoder(*inputs)
        return hidden[-1:], boxes[-1:]


class _Function(nn.Module):
    """A function as a part of the network."""

    def __init__(self, function: Callable[[Tensor], list[Tensor]]) -> None:
        super().__init__()
        self.forward = function


def _fast_backbone(
    part: Backbone, options: InferenceOptions, graph: fx.Graph | None, compiler: Compiler | None, device: torch.device
) -> nn.Module:
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
    return run if compiler is None or (fuse_convolutions and graph is not None) else _Function(compiler(run))


def _is_usual(encoder: nn.Module) -> bool:
    """Whether all parts are those that `ChunkedEncoder` knows."""
    return type(encoder) is DeformableEncoder and all(
        type(layer) is EncoderLayer and type(layer.self_attn) is MultiScaleDeformableAttention and type(layer.ffn) is FeedForward
        for layer in encoder.layers
    )
