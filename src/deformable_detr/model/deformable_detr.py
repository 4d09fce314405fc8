"""Deformable DETR, the whole network (Zhu et al., ICLR 2021): images in, class logits and boxes of every decoder layer out."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from deformable_detr.config import Metadata
from deformable_detr.model.decoder import Decoded
from deformable_detr.model.denoising import DenoisingNoise
from deformable_detr.structures import ImageBatch, Predictions, Target


class DeformableDETR(nn.Module):
    """The detector as a chain of parts; `build_model` puts them together.

    Training, inference and export run this one chain. What they do differently is the choice of a part.

    Args:
        backbone: images → maps at strides 8, 16 and 32.
        neck: these maps → L maps of width C.
        canvas: runs both on a batch of images of different sizes → `FeaturePyramid`; `SeparateImages` or `PaddedCanvas`.
        flatten: `FeaturePyramid` → `FlatFeatures`.
        encoder: `FlatFeatures` → memory `[B, S, C]`.
        query_source: memory, `FlatFeatures` → `Queries`; it alone decides their number, content, position and who sees whom.
        decoder: `Queries`, memory, `FlatFeatures` → hidden `[N, B, Q, C]`, boxes `[N, B, Q, 4]`, and what those of training need.
        class_heads: hidden → logits `[N, B, Q, K]`.
        suppressor: makes the last of them one-to-one where the others are one-to-many: `Suppressor` or `NoSuppressor`.
        denoising: makes further queries from the targets in training: `ContrastiveDenoising` or `NoDenoising`.
        metadata: settings, classes and image sizes, for saving and using the model.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        neck: nn.Module,
        canvas: nn.Module,
        flatten: nn.Module,
        encoder: nn.Module,
        query_source: nn.Module,
        decoder: nn.Module,
        class_heads: nn.Module,
        suppressor: nn.Module,
        denoising: nn.Module,
        metadata: Metadata,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.canvas = canvas
        self.flatten = flatten
        self.encoder = encoder
        self.query_source = query_source
        self.decoder = decoder
        self.class_heads = class_heads
        self.suppressor = suppressor
        self.denoising = denoising
        self.metadata = metadata

    def forward(
        self,
        images: ImageBatch | Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        noise: DenoisingNoise | None = None,
    ) -> Predictions:
        """Find the objects of a batch of images.

        Args:
            images: normalised float images `[3, h, w]` of any sizes, or an `ImageBatch`.
            targets: one per image; needed in training by a model that learns by denoising, else of no consequence.
            noise: of the denoising queries; None draws it.

        Returns:
            Logits and boxes of every decoder layer, and of the encoder's proposals for a two-stage model; in training also of the
            queries that exist there alone. Those have no influence on the others.

        Raises:
            ValueError: targets are missing, or the noise does not fit them.
        """
        batch = images if isinstance(images, ImageBatch) else ImageBatch.from_images(images)
        pyramid = self.canvas(lambda images: self.neck(self.backbone(images)), batch)
        flat = self.flatten(pyramid)
        memory = self.encoder(flat)
        queries = self.query_source(memory, flat)
        decoded = Decoded(*self.decoder(queries, memory, flat))
        logits = self.class_heads(decoded.hidden)
        predictions = Predictions(logits, decoded.boxes, queries.encoder_logits, queries.encoder_boxes)
        predictions = self.suppressor(predictions, decoded.hidden)
        denoising = self.denoising(self.query_source, memory, targets, noise)
        for branch, further, others in (("one_to_many", queries.one_to_many, ()), ("denoising", denoising, decoded.seen)):
            if further is not None:
                values = [seen.value for seen in decoded.seen]
                hidden, boxes, *_ = self.decoder(further, memory, flat, others, values)
                logits = self.class_heads(hidden, further.first_layer)
                predictions = replace(predictions, **{f"{branch}_logits": logits, f"{branch}_boxes": boxes})
        return predictions
