"""What is kept of one forward pass of one image: features, memory, queries, sampling, boxes of every layer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from deformable_detr.boxes import cxcywh_to_xyxy, pixels_of
from deformable_detr.categories import Categories
from deformable_detr.config import MAX_DETECTIONS
from deformable_detr.model.queries import Queries
from deformable_detr.postprocessing import postprocess
from deformable_detr.structures import FlatFeatures, Predictions

Stage = Literal["encoder", "decoder"]


@dataclass(frozen=True, eq=False)
class LayerSampling:
    """The sampling of one attention layer: the encoder's self-attention or the decoder's cross-attention."""

    stage: Stage
    """Which stack the layer belongs to."""

    layer: int
    """Its index there, from 0."""

    reference_points: Tensor
    """`[B, Q, L, 2 | 4]`: (x, y) or (cx, cy, w, h) in [0, 1] of each **padded level** (in the encoder Q is S)."""

    sampling_locations: Tensor
    """`[B, Q, M, L, P, 2]`: (x, y), the corners of each **padded level** at 0 and 1, as the operator gets them. They may be
    outside, where features are zero."""

    attention_weights: Tensor
    """`[B, Q, M, L, P]`, in [0, 1], sum to 1 over L · P."""


class SamplingPoint(NamedTuple):
    """One sampling point of a query or position in a layer."""

    head: int
    level: int
    point: int
    """Its index among the P of its head and level."""
    x: float
    y: float
    """Pixels of the image."""
    weight: float
    """The weights of a head sum to 1."""


class Look(NamedTuple):
    """The sampling of one query or position in one layer."""

    points: Tensor
    """`[M, L, P, 2]` (x, y) in pixels of the image; they may be outside."""

    weights: Tensor
    """`[M, L, P]`, sum to 1 in each head."""

    reference: Tensor
    """`[2]` (x, y) or `[4]` (cx, cy, w, h) in pixels."""

    def strongest(self, heads: Iterable[int] | None = None, levels: Sequence[int] | None = None) -> list[SamplingPoint]:
        """The sampling points of some heads on some levels (None: of all), largest weight first."""
        num_heads, num_levels = self.weights.shape[:2]
        found = [
            SamplingPoint(head, level, point, x, y, float(self.weights[head, level, point]))
            for head in (range(num_heads) if heads is None else heads)
            for level in (range(num_levels) if levels is None else levels)
            for point, (x, y) in enumerate(self.points[head, level].tolist())
        ]
        return sorted(found, key=lambda item: -item.weight)


@dataclass(frozen=True)
class Detection:
    """One (query, class) pair of the last decoder layer."""

    query: int
    label: int
    name: str
    score: float
    box: tuple[float, float, float, float]
    """xyxy in pixels of the image, not clipped."""


@dataclass(frozen=True, eq=False)
class Proposals:
    """The encoder's proposals of a two-stage model (paper, app. A.4)."""

    objectness: Tensor
    """`[S]` in [0, 1]: what the positions are ranked by: class channel 0, or the best class (DINO). 0 in the padding."""

    boxes: Tensor
    """`[S, 4]` xyxy in pixels of the image."""

    can_propose: Tensor
    """`[S]` bool: False in the padding and where the position's box would leave (0.01, 0.99) of the image."""

    taken: Tensor
    """`[Q]` int64: the position in the sequence that each query comes from, best first."""


@dataclass(frozen=True, eq=False)
class Inside:
    """One forward pass of one image (B is 1), on the CPU."""

    image: Tensor
    """`[3, H, W]` uint8 RGB: the image as read, upright. All pixel coordinates refer to it."""

    input_size: tuple[int, int]
    """(height, width) of the resized image that the model saw, without padding."""

    categories: Categories
    """The names of the labels."""

    predictions: Predictions
    """Logits and boxes of every decoder layer."""

    backbone_levels: tuple[Tensor, ...]
    """`[1, channels, h, w]` each: C3, C4, C5."""

    neck_levels: tuple[Tensor, ...]
    """`[1, C, h, w]` each, L of them."""

    flat: FlatFeatures
    """The input of the encoder as one sequence: features, positions, padding mask, spatial shapes, valid ratios."""

    memory: Tensor
    """`[1, S, C]`: the output of the encoder."""

    queries: Queries
    """The input of the decoder: content, position, reference points."""

    encoder: tuple[LayerSampling, ...]
    """Self-attention of each encoder layer."""

    decoder: tuple[LayerSampling, ...]
    """Cross-attention of each decoder layer."""

    proposals: Proposals | None = None
    """The encoder's proposals, for a two-stage model."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the image as read, in pixels."""
        return self.image.shape[1], self.image.shape[2]

    @property
    def spatial_shapes(self) -> tuple[tuple[int, int], ...]:
        """(h, w) of each of the L levels."""
        return self.flat.spatial_shapes

    @property
    def level_start_index(self) -> tuple[int, ...]:
        """Where each level begins in the sequence."""
        return self.flat.level_start_index

    @property
    def valid_ratios(self) -> Tensor:
        """`[1, L, 2]` (x, y): the share of each level that is image and not padding."""
        return self.flat.valid_ratios

    @property
    def query_source(self) -> Literal["learned", "proposals"]:
        """Where the queries come from."""
        return "learned" if self.proposals is None else "proposals"

    @property
    def num_queries(self) -> int:
        """Q."""
        return self.predictions.boxes.shape[2]

    def points_in_image(self, sampling: LayerSampling, query: int) -> Tensor:
        """The sampling points of one query in a layer: `[M, L, P, 2]` (x, y) in pixels of the image; they may be outside of it.

        Args:
            sampling: an entry of `encoder` or `decoder`.
            query: the query, or in the encoder the position in the sequence (see :meth:`position_at`).
        """
        return self._to_image(sampling.sampling_locations[0, query], self.valid_ratios[0][None, :, None])

    def look(self, sampling: LayerSampling, query: int) -> Look:
        """Points, weights and reference of one query in a layer; arguments as for :meth:`points_in_image`."""
        weights = sampling.attention_weights[0, query].float()
        return Look(self.points_in_image(sampling, query), weights, self.reference_in_image(sampling, query))

    def reference_in_image(self, sampling: LayerSampling, query: int) -> Tensor:
        """The reference that a query samples around: `[2]` (x, y) or `[4]` (cx, cy, w, h) in pixels of the image."""
        reference, ratios = sampling.reference_points[0, query, 0], self.valid_ratios[0, 0]
        return torch.cat([self._to_image(part, ratios) for part in reference.split(2)])

    def boxes_in_image(self, boxes: Tensor) -> Tensor:
        """Convert normalised boxes cxcywh `[…, 4]` to xyxy in pixels of the image."""
        return cxcywh_to_xyxy(boxes.float()) * pixels_of(self.image_size)

    def level_attention(self, query: int) -> Tensor:
        """`[N, L]`: the share of each decoder layer's cross-attention on each level, the mean over the heads."""
        return torch.stack([layer.attention_weights[0, query].float().sum(-1).mean(0) for layer in self.decoder])

    def boxes_per_layer(self, query: int) -> Tensor:
        """`[N + 1, 4]` xyxy in pixels: first the reference (the proposal's box; a learned point has no size), then each layer's."""
        reference = self.queries.reference_points[0, query].float()
        if len(reference) == 2:
            reference = torch.cat((reference, reference.new_zeros(2)))
        return self.boxes_in_image(torch.cat((reference[None], self.predictions.boxes[:, 0, query].float())))

    def scores_per_layer(self, query: int) -> Tensor:
        """`[N, K]` in [0, 1]: the class scores of the query after each decoder layer."""
        return self.predictions.logits[:, 0, query].float().sigmoid()

    @property
    def scores(self) -> Tensor:
        """`[Q]` in [0, 1]: the score of each query's strongest class in the last layer."""
        return self.predictions.logits[-1, 0].float().sigmoid().amax(-1)

    def detections(self, threshold: float = 0.0, top_k: int = MAX_DETECTIONS) -> list[Detection]:
        """The best (query, class) pairs of the last layer, highest score first, as :func:`postprocess` ranks them.

        Args:
            threshold: smallest score, in [0, 1].
            top_k: at most this many.
        """
        found = postprocess(self.predictions, [self.image_size], top_k)[0]
        num_classes = self.predictions.logits.shape[-1]
        places = self.predictions.logits[-1, 0].float().sigmoid().flatten().topk(len(found["scores"])).indices
        return [
            Detection(place // num_classes, label, self.categories.names[label], score, tuple(box))
            for place, label, score, box in zip(
                places.tolist(), found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True
            )
            if score >= threshold
        ]

    def detection_of(self, query: int) -> Detection:
        """The strongest class of one query.

        Raises:
            ValueError: there is no such query.
        """
        if not 0 <= query < self.num_queries:
            raise ValueError(f"there is no query {query}: this network has the queries 0 to {self.num_queries - 1}")
        score, label = self.predictions.logits[-1, 0, query].float().sigmoid().max(-1)
        name, box = self.categories.names[int(label)], self.boxes_per_layer(query)[-1]
        return Detection(query, int(label), name, float(score), tuple(box.tolist()))

    def query_at(self, x: float, y: float, threshold: float = 0.3) -> int:
        """Find the query of the object at a point of the image (pixels).

        Among the boxes that contain the point: the smallest one with a score of at least `threshold`, else the one with the highest
        score; if no box contains it, the query with the nearest box centre.

        Raises:
            ValueError: the point is outside the image.
        """
        self._check_point(x, y)
        boxes, scores = self.boxes_in_image(self.predictions.boxes[-1, 0]), self.scores
        point = boxes.new_tensor([x, y])
        holds = ((boxes[:, :2] <= point) & (point <= boxes[:, 2:])).all(-1)
        if (sure := holds & (scores >= threshold)).any():
            areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
            return int(areas.masked_fill(~sure, torch.inf).argmin())
        if holds.any():
            return int(scores.masked_fill(~holds, -1).argmax())
        return int(((boxes[:, :2] + boxes[:, 2:]) / 2 - point).norm(dim=-1).argmin())

    def query_of_box(self, box: Sequence[float]) -> int:
        """Find the query whose last box has the highest IoU with `box` (xyxy, pixels); among equals the highest-scored one.

        Raises:
            ValueError: a box without area, or without overlap with any query's box.
        """
        wanted = torch.tensor([[float(value) for value in box]], dtype=torch.float32, device="cpu")
        if wanted.shape != (1, 4) or not (wanted[:, 2:] > wanted[:, :2]).all():
            raise ValueError(f"a box is left, top, right, bottom in pixels with left < right and top < bottom, not {list(box)}")
        overlaps = box_iou(wanted, self.boxes_in_image(self.predictions.boxes[-1, 0]))[0]
        if not (overlaps > 0).any():
            raise ValueError(
                f"no query's box overlaps {list(box)}; the image has {self.image.shape[2]} x {self.image.shape[1]} pixels"
            )
        return int((overlaps + 1e-3 * self.scores).argmax())

    def position_at(self, x: float, y: float, level: int = 0) -> int:
        """Find the encoder's position (in the sequence) whose cell on `level` contains the point (x, y) of the image, in pixels.

        Raises:
            ValueError: there is no such level, or the point is outside the image.
        """
        if not 0 <= level < len(self.spatial_shapes):
            raise ValueError(f"there is no level {level}: this network has the levels 0 to {len(self.spatial_shapes) - 1}")
        height, width = self._check_point(x, y)
        rows, columns = self.spatial_shapes[level]
        ratio_x, ratio_y = self.valid_ratios[0, level].tolist()
        column = min(int(x / width * ratio_x * columns), columns - 1)
        row = min(int(y / height * ratio_y * rows), rows - 1)
        return self.level_start_index[level] + row * columns + column

    def _check_point(self, x: float, y: float) -> tuple[int, int]:
        """The (height, width) of the image, if the point is in it."""
        height, width = self.image_size
        if not (0 <= x <= width and 0 <= y <= height):
            raise ValueError(f"the point ({x:g}, {y:g}) lies outside the image of {width} x {height} pixels")
        return height, width

    def level_and_cell(self, position: int) -> tuple[int, int, int]:
        """(level, row, column) of a position in the sequence."""
        level = max(index for index, start in enumerate(self.level_start_index) if start <= position)
        return level, *divmod(position - self.level_start_index[level], self.spatial_shapes[level][1])

    def _to_image(self, places: Tensor, valid_ratios: Tensor) -> Tensor:
        """Convert coordinates in [0, 1] of a padded level to pixels of the image."""
        return places.float() / valid_ratios * pixels_of(self.image_size)[:2]
