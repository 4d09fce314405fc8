"""Capture everything of one forward pass of one image: features, memory, queries, sampling, boxes of every layer.

```python
inside = look_inside(detector, "street.jpg")
found = inside.detections(threshold=0.5)[0]
inside.points_in_image(inside.decoder[-1], found.query)   # [M, L, P, 2] pixels of street.jpg
inside.decoder[-1].attention_weights[0, found.query]        # [M, L, P]
inside.boxes_per_layer(found.query)                         # [N + 1, 4]: the reference, then every layer's box
```

Nothing is captured unless :func:`look_inside` is called, and the model's outputs are the same with and without it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from deformable_detr.boxes import cxcywh_to_xyxy, pixels_of
from deformable_detr.data.transforms import eval_transform
from deformable_detr.inference.predictor import Predictor
from deformable_detr.inference.sources import ImageLike, open_single
from deformable_detr.model import DeformableDETR, MultiScaleDeformableAttention
from deformable_detr.model.plain import network_of
from deformable_detr.model.queries import Queries
from deformable_detr.ops.reference import sampling_locations_from_offsets
from deformable_detr.precision import autocast
from deformable_detr.structures import ImageBatch, Predictions
from deformable_detr.visualize.inside.capture import Call, capture_calls, evaluating, on_cpu
from deformable_detr.visualize.inside.inside import Inside, LayerSampling, Proposals, Stage


@torch.no_grad()
def look_inside(model: DeformableDETR | Predictor, image: ImageLike, *, encoder: bool = True) -> Inside:
    """Run the model on one image and keep what happens inside.

    Args:
        model: any variant, on any device, or a detector (its precision is used). Its mode stays as it is.
        image: a file, a PIL image, a numpy array (uint8 `[H, W, 3]`, RGB) or a tensor (uint8 `[3, H, W]`, RGB).
        encoder: False leaves out the sampling of the encoder, which takes most of the memory: `inside.encoder` is then empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an image.
        TypeError: a network without the layers of this one, such as that of an exported file.
    """
    precision = model.precision if isinstance(model, Predictor) else "fp32"
    network = network_of(model.model if isinstance(model, Predictor) else model)
    pixels = open_single(image, bit_depth=model.metadata.bit_depth if model.metadata else 16).read()
    batch = batch_of(network, pixels)
    with evaluating(network), autocast(precision, batch.images.device):
        with capture_calls(parts_of(network)) as calls:
            predictions = network(batch)
        return inside_of_calls(network, calls, pixels, batch, predictions, encoder=encoder)


def batch_of(model: DeformableDETR, image: Tensor) -> ImageBatch:
    """Resize and normalise one image `[3, H, W]` (uint8 RGB) as the model wants it, on its device."""
    metadata = model.metadata
    transform = eval_transform(metadata.eval_short_side, metadata.max_long_side, metadata.mean, metadata.std)
    return ImageBatch.from_images([transform(image, None)[0]]).to(next(model.parameters()).device)


def parts_of(model: DeformableDETR) -> list[torch.nn.Module]:
    """The modules whose calls :func:`inside_of_calls` needs."""
    attentions = [layer.self_attn for layer in model.encoder.layers] + [layer.cross_attn for layer in model.decoder.layers]  # type: ignore[union-attr]
    return [model.backbone, model.neck, model.flatten, model.encoder, model.query_source, *attentions]  # type: ignore[list-item]


def inside_of_calls(
    model: DeformableDETR,
    calls: dict[torch.nn.Module, Call],
    image: Tensor,
    batch: ImageBatch,
    predictions: Predictions,
    *,
    encoder: bool = True,
) -> Inside:
    """Assemble what was captured from a batch of one image."""
    flat, queries = on_cpu(calls[model.flatten].output), on_cpu(calls[model.query_source].output)
    self_attentions = [layer.self_attn for layer in model.encoder.layers] if encoder else []  # type: ignore[union-attr]
    cross_attentions = [layer.cross_attn for layer in model.decoder.layers]  # type: ignore[union-attr]
    return Inside(
        image=image,
        input_size=(batch.images.shape[2], batch.images.shape[3]) if batch.image_sizes is None else batch.image_sizes[0],
        categories=model.metadata.named_categories,
        predictions=on_cpu(predictions),
        backbone_levels=tuple(on_cpu(calls[model.backbone].output)),
        neck_levels=tuple(on_cpu(calls[model.neck].output)),
        flat=flat,
        memory=on_cpu(calls[model.encoder].output),
        queries=queries,
        encoder=tuple(_layer_sampling("encoder", index, module, calls[module]) for index, module in enumerate(self_attentions)),
        decoder=tuple(_layer_sampling("decoder", index, module, calls[module]) for index, module in enumerate(cross_attentions)),
        proposals=_proposals(queries, flat.can_propose, image.shape[1:]),
    )


def _layer_sampling(stage: Stage, layer: int, attention: MultiScaleDeformableAttention, call: Call) -> LayerSampling:
    """Compute locations and weights again, which the fused operator does not return (paper, section 4.1, equation 3).

    In the autocast context of the module's own call the linear layers round in the same way.
    """
    query, reference_points, _, spatial_shapes, *_ = call.args
    offsets, logits = (value.to(reference_points.dtype) for value in attention.offsets_and_logits(query))
    weights = logits.flatten(-2).softmax(-1).unflatten(-1, logits.shape[-2:])
    locations = sampling_locations_from_offsets(reference_points, offsets, spatial_shapes)
    return LayerSampling(stage, layer, *on_cpu((reference_points, locations, weights)))


def _proposals(queries: Queries, can_propose: Tensor | None, image_size: Sequence[int]) -> Proposals | None:
    if queries.ranking is None or can_propose is None:
        return None
    return Proposals(
        objectness=queries.ranking.scores[0].sigmoid(),
        boxes=cxcywh_to_xyxy(queries.ranking.box_logits[0].sigmoid()) * pixels_of(image_size),
        can_propose=can_propose[0, :, 0],
        taken=queries.ranking.best[0],
    )
