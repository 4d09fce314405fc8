"""The parts that make a detector fast: the same weights and predictions, without what only training needs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deformable_detr.acceleration.convolutions import optimized_backbone
from deformable_detr.acceleration.encoder import ChunkedEncoder, Compiler
from deformable_detr.acceleration.fused_convolutions import fused_convolutions_work
from deformable_detr.acceleration.geometry import KeptGeometry
from deformable_detr.acceleration.options import InferenceOptions
from deformable_detr.acceleration.tracing import untouched
from deformable_detr.model.backbone import Backbone
from deformable_detr.model.decoder import DeformableDecoder, LastLayer
from deformable_detr.model.deformable_attention import MultiScaleDeformableAttention
from deformable_detr.model.deformable_detr import DeformableDETR
from deformable_detr.model.encoder import DeformableEncoder, EncoderLayer, FeedForward
from deformable_detr.model.flatten import FlattenLevels
from deformable_detr.model.heads import MLP, BoxHead, ClassHeads
from deformable_detr.model.position_encoding import SinePositionEncoding
from deformable_detr.model.queries import AnchoredProposals, BestProposals, EncoderProposals, MixedProposals

ENCODER_PARTS = (
    *(nn.ModuleList, EncoderLayer, MultiScaleDeformableAttention, FeedForward),
    *(nn.Linear, nn.LayerNorm, nn.ReLU, nn.Dropout),
)
PROPOSAL_SOURCES = (EncoderProposals, MixedProposals, AnchoredProposals)
PROPOSAL_PARTS = (nn.ModuleList, nn.Linear, nn.LayerNorm, nn.Embedding, MLP, BoxHead)


def fast_network(model: DeformableDETR, options: InferenceOptions, compiler: Compiler | None = None) -> DeformableDETR:
    """Assemble a model from the fastest forms of its parts; it is valid as long as no weight changes.

    Args:
        model: in evaluation mode. Its weights are shared, except convolutions with folded batch norms and joined projections.
        options: which parts are exchanged. A part of a type of your own stays, and one that something is hooked into.
        compiler: for `options.compile`.
    """
    device = next(model.parameters()).device
    chunk = options.chunk_tokens if device.type == "cpu" else None
    parts: dict[str, Any] = dict(model.named_children())
    if _consists_of(model.backbone, Backbone, parts_below=False):
        parts["backbone"] = _fast_backbone(model.backbone, options, compiler, device)  # pyright: ignore[reportArgumentType]
    if options.constant_sizes and _consists_of(model.flatten, FlattenLevels, SinePositionEncoding):
        parts["flatten"] = KeptGeometry(model.flatten, options.constant_sizes)  # pyright: ignore[reportArgumentType]
    if options.chunk_tokens is not None and _consists_of(model.encoder, DeformableEncoder, *ENCODER_PARTS):
        parts["encoder"] = ChunkedEncoder(model.encoder.layers, chunk, compiler)  # pyright: ignore[reportArgumentType]
    if options.answer_only:
        parts |= answering_parts(model, chunk)
    return DeformableDETR(**parts, metadata=model.metadata).eval()


def answering_parts(model: DeformableDETR, chunk: int | None = None) -> dict[str, nn.Module]:
    """The parts of a model that returns the last layer's predictions alone (N = 1), and nothing that only a loss needs.

    Args:
        model: whose weights are used. A query source or decoder of a type of your own runs as it is, and one that something is
            hooked into.
        chunk: number of positions whose proposals are scored at a time. None: all at once.
    """
    parts = {}
    if any(_consists_of(model.query_source, kind, *PROPOSAL_PARTS) for kind in PROPOSAL_SOURCES):
        parts["query_source"] = BestProposals(model.query_source, chunk)  # pyright: ignore[reportArgumentType]
    if _consists_of(model.class_heads, ClassHeads, parts_below=False):
        usual = _consists_of(model.decoder, DeformableDecoder, parts_below=False)
        parts["decoder"] = LastLayer(model.decoder) if usual else _LastOfAll(model.decoder)  # pyright: ignore[reportArgumentType]
        parts["class_heads"] = ClassHeads([model.class_heads[-1]])  # pyright: ignore[reportIndexIssue]
    return parts


class _LastOfAll(nn.Module):
    """The last layer's predictions of a decoder that returns those of all layers."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        hidden, boxes = self.decoder(*inputs)
        return hidden[-1:], boxes[-1:]


class _Function(nn.Module):
    """A function as a part of the model."""

    def __init__(self, function: Callable[[Tensor], list[Tensor]]) -> None:
        super().__init__()
        self.forward = function


def _fast_backbone(part: Backbone, options: InferenceOptions, compiler: Compiler | None, device: torch.device) -> nn.Module:
    exact = device.type == "cpu" and not torch.is_autocast_enabled("cpu")  # the fused ones compute in float32
    fuse_convolutions = options.fuse_convolutions and options.fold_batch_norm and exact and fused_convolutions_work()
    run = optimized_backbone(
        part.body,
        fold_batch_norm=options.fold_batch_norm,
        inplace_activations=options.inplace_activations,
        fuse_convolutions=fuse_convolutions,
        channels_last=options.channels_last,
        winograd=options.winograd,
    )
    # inductor makes fused convolutions no faster
    return run if compiler is None or (fuse_convolutions and run is not part.body) else _Function(compiler(run))


def _consists_of(part: nn.Module, kind: type[nn.Module], *kinds: type[nn.Module], parts_below: bool = True) -> bool:
    """Whether a part is exactly of this kind, with nothing hooked into it, so that another form may replace it.

    Args:
        part: of the model.
        kind: its type.
        kinds: the types of all modules below it.
        parts_below: False: these are called as they are, whatever they are.
    """
    below = list(part.modules())[1:] if parts_below else []
    return type(part) is kind and untouched(part) and all(type(module) in kinds and untouched(module) for module in below)
