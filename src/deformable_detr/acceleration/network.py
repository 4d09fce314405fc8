"""The parts that make a detector fast: the same weights and predictions, without what only training needs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deformable_detr.acceleration.convolutions import optimized_backbone
from deformable_detr.acceleration.encoder import ChunkedEncoder, Compiler
from deformable_detr.acceleration.fused_convolutions import fused_convolutions_work
from deformable_detr.acceleration.geometry import KeptGeometry
from deformable_detr.acceleration.low_precision import (
    ENCODER_PARTS,
    LOW,
    PROPOSAL_SOURCES,
    Autocast,
    LowLinear,
    PackedLinear,
    lowered,
)
from deformable_detr.acceleration.options import InferenceOptions
from deformable_detr.acceleration.tracing import consists_of
from deformable_detr.model.backbone import Backbone
from deformable_detr.model.decoder import DeformableDecoder
from deformable_detr.model.deformable_detr import DeformableDETR
from deformable_detr.model.encoder import DeformableEncoder
from deformable_detr.model.flatten import FlattenLevels
from deformable_detr.model.heads import MLP, BoxHead, ClassHeads
from deformable_detr.model.position_encoding import SinePositionEncoding
from deformable_detr.model.queries import BestProposals

PROPOSAL_PARTS = (nn.ModuleList, nn.Linear, PackedLinear, LowLinear, nn.LayerNorm, nn.Embedding, MLP, BoxHead)


def fast_network(
    model: DeformableDETR, options: InferenceOptions, compiler: Compiler | None = None, *, low_precision: bool = False
) -> DeformableDETR:
    """Assemble a model from the fastest forms of its parts; it is valid as long as no weight changes.

    Args:
        model: in evaluation mode. Its weights are shared, except convolutions with folded batch norms and joined projections.
        options: which parts are exchanged. A part of a type of your own stays, and one that something is hooked into.
        compiler: for `options.compile`.
        low_precision: compute in bfloat16, see `low_precision.py`; on a CPU whose packed weights work or a GPU, without a compiler.
    """
    device = next(model.parameters()).device
    if low_precision:
        model = lowered(model)
    chunk = options.chunk_tokens if device.type == "cpu" else None
    parts: dict[str, Any] = dict(model.named_children())
    if consists_of(model.backbone, Backbone, parts_below=False):
        parts["backbone"] = _fast_backbone(model.backbone, options, compiler, device, low_precision)  # pyright: ignore[reportArgumentType]
    if options.constant_sizes and consists_of(model.flatten, FlattenLevels, SinePositionEncoding):
        parts["flatten"] = KeptGeometry(model.flatten, options.constant_sizes)  # pyright: ignore[reportArgumentType]
    if options.chunk_tokens is not None and consists_of(model.encoder, DeformableEncoder, *ENCODER_PARTS):
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
    if any(consists_of(model.query_source, kind, *PROPOSAL_PARTS) for kind in PROPOSAL_SOURCES):
        parts["query_source"] = BestProposals(model.query_source, chunk)  # pyright: ignore[reportArgumentType]
    if consists_of(model.class_heads, ClassHeads, parts_below=False):
        parts["decoder"] = _LastLayer(model.decoder)  # pyright: ignore[reportArgumentType]
        parts["class_heads"] = ClassHeads([model.class_heads[-1]])  # pyright: ignore[reportIndexIssue]
    return parts


class _LastLayer(nn.Module):
    """A decoder that gives the queries and boxes after its last layer alone, N = 1.

    The usual one is run layer by layer: an exported file then holds nothing of what only the other layers' predictions need.
    """

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder
        self.is_usual = consists_of(decoder, DeformableDecoder, parts_below=False)

    def forward(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        if self.is_usual:
            *_, (hidden, boxes, _) = self.decoder.steps(*inputs)  # pyright: ignore[reportCallIssue]
            return hidden[None], boxes[None]
        hidden, boxes, *_ = self.decoder(*inputs)
        return hidden[-1:], boxes[-1:]


def _fast_backbone(
    part: Backbone, options: InferenceOptions, compiler: Compiler | None, device: torch.device, low_precision: bool
) -> Callable[[Tensor], list[Tensor]]:
    switches = {name: getattr(options, name) for name in ("fold_batch_norm", "inplace_activations", "channels_last")}
    fuses = options.fuse_convolutions and options.fold_batch_norm and device.type in ("cpu", "cuda")
    if low_precision:
        packs = fuses and options.channels_last
        run = optimized_backbone(part.body, fuse_convolutions=True, dtype=LOW, **switches) if packs else part.body
        return run if run is not part.body else Autocast(optimized_backbone(part.body, fuse_convolutions=False, **switches), device)
    # they compute in float32; and inductor fuses on a GPU itself
    fuses = fuses and not torch.is_autocast_enabled(device.type) and not (compiler is not None and device.type == "cuda")
    fuses = fuses and fused_convolutions_work(device=device)
    run = optimized_backbone(part.body, fuse_convolutions=fuses, winograd=options.winograd, **switches)
    # inductor makes fused convolutions no faster
    return run if compiler is None or (fuses and run is not part.body) else compiler(run)
