"""The way of one image through the model: every stage with its real shapes, and the cost of each part."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from deformable_detr.model import DeformableDETR, MultiScaleDeformableAttention
from deformable_detr.model.plain import network_of
from deformable_detr.structures import FlatFeatures, ImageBatch, Predictions, tensors_in
from deformable_detr.visualize.inside.capture import Call, capture_calls, evaluating, sampling_of_call
from deformable_detr.visualize.inside.inside import Detection, Inside
from deformable_detr.visualize.inside.look import batch_of, inside_of_calls

PARTS = ("backbone", "neck", "flatten", "encoder", "query_source", "decoder", "class_heads", "suppressor")


@dataclass(frozen=True)
class Step:
    """The call of one part of the model: `source | shapes in → shapes out`."""

    source: str
    """file:function, the file below `deformable_detr/`."""

    shapes_in: tuple[tuple[int, ...], ...]
    shapes_out: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        shown = [", ".join(str(list(shape)) for shape in shapes) for shapes in (self.shapes_in, self.shapes_out)]
        return " → ".join(shown)


@dataclass(frozen=True)
class Row:
    """One tensor on the way."""

    part: str
    name: str
    shape: tuple[int, ...]
    note: str


@dataclass(frozen=True)
class PartCost:
    """Parameters and multiply-adds of one part of the model."""

    part: str
    trainable_parameters: int
    frozen_parameters: int
    gmacs: float
    """10⁹ multiply-adds, called GFLOPs in the paper's table."""


@dataclass(frozen=True)
class FollowedDetection:
    """One of the strongest detections, with its box after every decoder layer."""

    name: str
    score: float
    query: int
    boxes: tuple[tuple[float, float, float, float], ...]
    """N times xyxy in pixels of the original image, first layer first."""


@dataclass(frozen=True)
class Description:
    """The result of :func:`describe`."""

    steps: tuple[Step, ...]
    rows: tuple[Row, ...]
    costs: tuple[PartCost, ...]
    detections: tuple[FollowedDetection, ...]
    inside: Inside
    """Everything that was captured on the way."""

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and dicts, for JSON: all but `inside`."""
        return {name: [asdict(item) for item in getattr(self, name)] for name in ("steps", "rows", "costs", "detections")}


@torch.no_grad()
def describe(model: nn.Module, image: Tensor, *, num_detections: int = 5) -> Description:
    """Run the model on one image and note the shapes and the cost of every stage.

    Args:
        model: any variant, on any device.
        image: `[3, H, W]` uint8 RGB, as `read_image` gives it.
        num_detections: number of the highest-scored detections that are followed through the layers.

    Raises:
        TypeError: a network without the layers of this one, such as that of an exported file.
    """
    model = network_of(model)
    batch = batch_of(model, image)
    own = "deformable_detr."
    modules = [module for module in model.modules() if not list(module.children()) or type(module).__module__.startswith(own)]
    with evaluating(model), capture_calls(modules) as calls, _operations(model) as flops:
        predictions = model(batch)
    inside = inside_of_calls(model, calls, image, batch, predictions)
    return Description(
        steps=tuple(_steps(model, calls, batch, predictions)),
        rows=tuple(_rows(model, calls, image, batch, predictions)),
        costs=tuple(_costs(model, calls, flops)),
        detections=tuple(_follow(inside, found) for found in inside.detections(top_k=num_detections)),
        inside=inside,
    )


class _OperationCounter(TorchDispatchMode):
    """Counts the operations of this thread by PyTorch's formulas.

    PyTorch's own counter has hooks in the modules of all threads, and fails with gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """See PyTorch."""
        kwargs, formula = kwargs or {}, flop_registry.get(func.overloadpacket)
        if formula is None:
            with self:
                output = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if output is NotImplemented else output
        output = func(*args, **kwargs)
        self.total += formula(*args, **kwargs, out_val=output)
        return output


@contextmanager
def _operations(model: DeformableDETR) -> Iterator[dict[str, int]]:
    """Operations of each part in this thread."""
    flops: dict[str, int] = dict.fromkeys(PARTS, 0)
    begun: dict[nn.Module, int] = {}
    names, thread = {model.get_submodule(part): part for part in PARTS}, get_ident()

    def begin(module: nn.Module, args: tuple) -> None:
        if get_ident() == thread:
            begun[module] = counter.total

    def end(module: nn.Module, args: tuple, output: Any) -> None:
        if get_ident() == thread:
            flops[names[module]] += counter.total - begun[module]

    handles = [module.register_forward_pre_hook(begin) for module in names]
    handles += [module.register_forward_hook(end) for module in names]
    try:
        with _OperationCounter() as counter:
            yield flops
    finally:
        for handle in handles:
            handle.remove()


def _shapes(value: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape) for tensor in tensors_in(value))


def _source(module: nn.Module) -> str:
    kind = type(module)
    return f"{kind.__module__.removeprefix('deformable_detr.').replace('.', '/')}.py:{kind.__name__}.forward"


def _steps(model: DeformableDETR, calls: dict[nn.Module, Call], batch: ImageBatch, predictions: Predictions) -> Iterator[Step]:
    encoder_layer: Any = model.encoder.layers[0]  # type: ignore[index]
    decoder_layer: Any = model.decoder.layers[0]  # type: ignore[index]
    for module in (
        *(model.backbone, model.neck, model.flatten),
        *(encoder_layer.self_attn, encoder_layer, model.encoder),
        model.query_source,
        *(decoder_layer.cross_attn, decoder_layer, model.decoder),
    ):
        yield Step(_source(module), _shapes(calls[module].args), _shapes(calls[module].output))
    yield Step(_source(model), _shapes(batch), _shapes(predictions))


def _rows(
    model: DeformableDETR, calls: dict[nn.Module, Call], image: Tensor, batch: ImageBatch, predictions: Predictions
) -> Iterator[Row]:
    flat: FlatFeatures = calls[model.flatten].output
    yield Row("image", "as read", tuple(image.shape), "uint8 RGB, upright")
    yield Row("image", "resized, normalised", tuple(batch.images.shape), f"short side {model.metadata.eval_short_side}")
    backbone: Any = model.backbone
    neck: Any = model.neck
    levels = calls[model.backbone].output
    for index, (level, stride) in enumerate(zip(levels, backbone.strides, strict=True)):
        yield Row("backbone", f"C{index + 6 - len(levels)}", tuple(level.shape), f"stride {stride}")
    for index, level in enumerate(calls[neck].output):
        origin = "1x1 convolution" if index < neck.num_backbone_levels else "3x3 convolution, stride 2"
        yield Row("neck", f"level {index}", tuple(level.shape), f"{origin}, GroupNorm")
    lengths = " + ".join(f"{h}x{w}" for h, w in flat.spatial_shapes)
    starts = ", ".join(map(str, flat.level_start_index))
    yield Row("flatten", "features", tuple(flat.features.shape), f"S = {lengths}")
    yield Row("flatten", "level start index", (len(flat.spatial_shapes),), starts)
    yield Row("flatten", "reference points", tuple(flat.reference_points.shape), "each position's own place, on every level")
    yield Row("flatten", "valid ratios", tuple(flat.valid_ratios.shape), "share of each level that is image (x, y)")
    yield Row("flatten", "positions", tuple(flat.positions.shape), "sine encoding of (y, x) + level embedding")
    yield from _attention_rows("encoder, layer 1", calls, model.encoder.layers[0].self_attn)  # type: ignore[index, union-attr]
    memory = calls[model.encoder].output
    yield Row("encoder", "memory", tuple(memory.shape), f"after {len(model.encoder.layers)} layers")  # type: ignore[arg-type]
    queries = calls[model.query_source].output
    yield Row("queries", "query", tuple(queries.query.shape), f"content; from {type(model.query_source).__name__}")
    yield Row("queries", "query_pos", tuple(queries.query_pos.shape), "position")
    kind = "points (x, y)" if queries.reference_points.shape[-1] == 2 else "boxes (cx, cy, w, h)"
    yield Row("queries", "reference points", tuple(queries.reference_points.shape), f"{kind} in [0, 1]")
    if predictions.encoder_boxes is not None and predictions.encoder_logits is not None:
        yield Row("queries", "proposal logits", tuple(predictions.encoder_logits.shape), "those that are trained")
        yield Row("queries", "proposal boxes", tuple(predictions.encoder_boxes.shape), "cxcywh in [0, 1]")
    yield from _attention_rows("decoder, layer 1", calls, model.decoder.layers[0].cross_attn)  # type: ignore[index, union-attr]
    yield Row("decoder", "hidden", tuple(calls[model.decoder].output[0].shape), "the queries after each layer")
    change = (predictions.boxes[1:] - predictions.boxes[:-1]).abs().mean(dim=(1, 2, 3))
    moved = ", ".join(f"{value:.4f}" for value in change.tolist())
    note = f"cxcywh in [0, 1]; mean change from layer to layer {moved}" if len(change) else "cxcywh in [0, 1]"
    yield Row("decoder", "boxes", tuple(predictions.boxes.shape), note)
    yield Row("class heads", "logits", tuple(predictions.logits.shape), "one sigmoid per class, no background class")


def _attention_rows(part: str, calls: dict[nn.Module, Call], attention: MultiScaleDeformableAttention) -> Iterator[Row]:
    """The sampling of one attention module."""
    reference_points, offsets, places, weights = sampling_of_call(attention, calls[attention])
    outside = ((places < 0) | (places > 1)).any(-1).float().mean()
    unit = "pixels of the level" if reference_points.shape[-1] == 2 else f"shares of half a box, times {attention.num_points}"
    yield Row(part, "reference points", tuple(reference_points.shape), "in [0, 1] of each padded level")
    yield Row(part, "sampling offsets", tuple(offsets.shape), f"mean length {offsets.norm(dim=-1).mean():.2f} ({unit})")
    yield Row(part, "attention weights", tuple(weights.shape), f"sum to 1 over L·P; the largest is {weights.max():.2f}")
    yield Row(part, "sampling locations", tuple(places.shape), f"{outside:.1%} lie outside the image, where features are zero")


def _costs(model: DeformableDETR, calls: dict[nn.Module, Call], flops: dict[str, int]) -> Iterator[PartCost]:
    for part in PARTS:
        module = model.get_submodule(part)
        sizes = {True: 0, False: 0}
        for parameter in module.parameters():
            sizes[parameter.requires_grad] += parameter.numel()
        if part == "suppressor" and not sum(sizes.values()):
            continue
        macs = flops[part] / 2
        attentions = [item for item in module.modules() if isinstance(item, MultiScaleDeformableAttention)]
        macs += sum(_operator_macs(item, calls[item]) for item in attentions)
        yield PartCost(part, sizes[True], sizes[False], macs / 1e9)


def _operator_macs(attention: MultiScaleDeformableAttention, call: Call) -> float:
    """Multiply-adds of the operator, which the counter leaves out: four corners and one weight per channel and sample."""
    batch, queries, channels = call.args[0].shape
    return 5.0 * batch * queries * attention.num_levels * attention.num_points * channels


def _follow(inside: Inside, found: Detection) -> FollowedDetection:
    boxes = inside.boxes_per_layer(found.query)[1:].tolist()
    return FollowedDetection(found.name, found.score, found.query, tuple(tuple(box) for box in boxes))
