"""Deformable DETR, the whole network (Zhu et al., ICLR 2021): images in, class logits and boxes of every decoder layer out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deformable_detr.config import Metadata
from deformable_detr.model.pyramid import padded_pyramid, separate_pyramid
from deformable_detr.structures import ImageBatch, Predictions


class DeformableDETR(nn.Module):
    """The detector as a chain of parts; `build_model` puts them together.

    Args:
        backbone: images → maps at strides 8, 16 and 32.
        neck: these maps → L maps of width C.
        flatten: levels and padding masks → `FlatFeatures`.
        encoder: `FlatFeatures` → memory `[B, S, C]`.
        query_source: memory, `FlatFeatures` → `Queries`; `LearnedQueries` or `EncoderProposals`.
        decoder: `Queries`, memory, `FlatFeatures` → hidden `[N, B, Q, C]`, boxes `[N, B, Q, 4]`.
        class_heads: one for all layers, or one for each.
        metadata: settings, classes and image sizes, for whoever saves or uses the model.
        separate_images: outside training, run backbone and neck for images of different sizes one by one, so that padding
            has no influence. False: always on the padded canvas, as the original does.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        flatten: nn.Module,
        encoder: nn.Module,
        query_source: nn.Module,
        decoder: nn.Module,
        class_heads: Sequence[nn.Module],
        metadata: Metadata,
        *,
        separate_images: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.flatten = flatten
        self.encoder = encoder
        self.query_source = query_source
        self.decoder = decoder
        self.class_heads = nn.ModuleList(class_heads)
        self.metadata = metadata
        self.separate_images = separate_images

    def forward(self, images: ImageBatch | Sequence[Tensor]) -> Predictions:
        """Find the objects of a batch of images.

        Args:
            images: normalised float images `[3, h, w]` of any sizes, or an `ImageBatch`.

        Returns:
            Logits and boxes of every decoder layer, and of the encoder's proposals for a two-stage model.
        """
        batch = images if isinstance(images, ImageBatch) else ImageBatch.from_images(images)
        run = separate_pyramid if self.separate_images and not self.training else padded_pyramid
        levels, padding_masks = run(lambda images: self.neck(self.backbone(images)), batch)
        flat = self.flatten(levels, padding_masks)
        memory = self.encoder(flat)
        queries = self.query_source(memory, flat)
        hidden, boxes = self.decoder(queries, memory, flat)
        last = len(self.class_heads) - 1
        logits = torch.stack([self.class_heads[min(layer, last)](query) for layer, query in enumerate(hidden)])
        return Predictions(logits, boxes, queries.encoder_logits, queries.encoder_boxes)
