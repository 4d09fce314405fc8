"""The way of one image through the model: every stage with its real shapes, and the cost of each part."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deformable_detr.model import DeformableDETR, MultiScaleDeformableAttention
from deformable_detr.model.plain import network_of
from deformable_detr.structures import ImageBatch, Predictions, tensors_in
from deformable_detr.visualize.inside.capture import Call, OperationCounter, capture_calls, evaluating
from deformable_detr.visualize.inside.inside import Detection, Inside, LayerSampling
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
    with evaluating(model), OperationCounter() as counter, capture_calls(modules, counter) as calls:
        predictions = model(batch)
    inside = inside_of_calls(model, calls, image, batch, predictions)
    return Description(
        steps=tuple(_steps(model, calls, batch, predictions)),
        rows=tuple(_rows(model, calls, batch, inside)),
        costs=tuple(_costs(model, calls)),
        detections=tuple(_follow(inside, found) for found in inside.detections(top_k=num_detections)),
        inside=inside,
    )


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


def _rows(model: DeformableDETR, calls: dict[nn.Module, Call], batch: ImageBatch, inside: Inside) -> Iterator[Row]:
    backbone: Any = model.backbone
    neck: Any = model.neck
    first_encoder_layer: Any = model.encoder.layers[0]  # type: ignore[index]
    first_decoder_layer: Any = model.decoder.layers[0]  # type: ignore[index]
    flat, queries, predictions = inside.flat, inside.queries, inside.predictions
    yield Row("image", "as read", tuple(inside.image.shape), "uint8 RGB, upright")
    yield Row("image", "resized, normalised", tuple(batch.images.shape), f"short side {model.metadata.eval_short_side}")
    first = 6 - len(inside.backbone_levels)
    for number, (level, stride) in enumerate(zip(inside.backbone_levels, backbone.strides, strict=True), first):
        yield Row("backbone", f"C{number}", tuple(level.shape), f"stride {stride}")
    for index, level in enumerate(inside.neck_levels):
        origin = "1x1 convolution" if index < neck.num_backbone_levels else "3x3 convolution, stride 2"
        yield Row("neck", f"level {index}", tuple(level.shape), f"{origin}, GroupNorm")
    lengths = " + ".join(f"{h}x{w}" for h, w in flat.spatial_shapes)
    starts = ", ".join(map(str, flat.level_start_index))
    yield Row("flatten", "features", tuple(flat.features.shape), f"S = {lengths}")
    yield Row("flatten", "level start index", (len(flat.spatial_shapes),), starts)
    yield Row("flatten", "reference points", tuple(flat.reference_points.shape), "each position's own place, on every level")
    yield Row("flatten", "valid ratios", tuple(flat.valid_ratios.shape), "share of each level that is image (x, y)")
    yield Row("flatten", "positions", tuple(flat.positions.shape), "sine encoding of (y, x) + level embedding")
    yield from _attention_rows("encoder, layer 1", first_encoder_layer.self_attn, calls, inside.encoder[0])
    yield Row("encoder", "memory", tuple(inside.memory.shape), f"after {len(inside.encoder)} layers")
    yield Row("queries", "query", tuple(queries.query.shape), f"content; from {type(model.query_source).__name__}")
    yield Row("queries", "query_pos", tuple(queries.query_pos.shape), "position")
    kind = "points (x, y)" if queries.reference_points.shape[-1] == 2 else "boxes (cx, cy, w, h)"
    yield Row("queries", "reference points", tuple(queries.reference_points.shape), f"{kind} in [0, 1]")
    if predictions.encoder_boxes is not None and predictions.encoder_logits is not None:
        yield Row("queries", "proposal logits", tuple(predictions.encoder_logits.shape), "those that are trained")
        yield Row("queries", "proposal boxes", tuple(predictions.encoder_boxes.shape), "cxcywh in [0, 1]")
    yield from _attention_rows("decoder, layer 1", first_decoder_layer.cross_attn, calls, inside.decoder[0])
    yield Row("decoder", "hidden", tuple(calls[model.decoder].output[0].shape), "the queries after each layer")
    change = (predictions.boxes[1:] - predictions.boxes[:-1]).abs().mean(dim=(1, 2, 3))
    moved = ", ".join(f"{value:.4f}" for value in change.tolist())
    note = f"cxcywh in [0, 1]; mean change from layer to layer {moved}" if len(change) else "cxcywh in [0, 1]"
    yield Row("decoder", "boxes", tuple(predictions.boxes.shape), note)
    yield Row("class heads", "logits", tuple(predictions.logits.shape), "one sigmoid per class, no background class")


def _attention_rows(
    part: str, attention: MultiScaleDeformableAttention, calls: dict[nn.Module, Call], sampling: LayerSampling
) -> Iterator[Row]:
    """The sampling of one attention module."""
    offsets, _ = attention.offsets_and_logits(calls[attention].args[0])
    reference_points, places, weights = sampling.reference_points, sampling.sampling_locations, sampling.attention_weights
    outside = ((places < 0) | (places > 1)).any(-1).float().mean()
    unit = "pixels of the level" if reference_points.shape[-1] == 2 else f"shares of half a box, times {attention.num_points}"
    yield Row(part, "reference points", tuple(reference_points.shape), "in [0, 1] of each padded level")
    yield Row(part, "sampling offsets", tuple(offsets.shape), f"mean length {offsets.norm(dim=-1).mean():.2f} ({unit})")
    yield Row(part, "attention weights", tuple(weights.shape), f"sum to 1 over L·P; the largest is {weights.max():.2f}")
    yield Row(part, "sampling locations", tuple(places.shape), f"{outside:.1%} lie outside the image, where features are zero")


def _costs(model: DeformableDETR, calls: dict[nn.Module, Call]) -> Iterator[PartCost]:
    for part in PARTS:
        module = model.get_submodule(part)
        sizes = {True: 0, False: 0}
        for parameter in module.parameters():
            sizes[parameter.requires_grad] += parameter.numel()
        if part == "suppressor" and not sum(sizes.values()):
            continue
        macs = calls[module].operations / 2
        for attention in module.modules():
            if isinstance(attention, MultiScaleDeformableAttention):  # the counter leaves the operator out
                samples = attention.num_levels * attention.num_points
                macs += 5.0 * calls[attention].args[0].numel() * samples  # four corners and one weight per channel and sample
        yield PartCost(part, sizes[True], sizes[False], macs / 1e9)


def _follow(inside: Inside, found: Detection) -> FollowedDetection:
    boxes = inside.boxes_per_layer(found.query)[1:].tolist()
    return FollowedDetection(found.name, found.score, found.query, tuple(tuple(box) for box in boxes))
