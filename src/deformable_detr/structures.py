"""The few types that the parts of the detector exchange, and the legend of shape letters used everywhere.

Legend: B batch · H W padded image · h w one level · S = sum of h * w over the levels · Q queries · C width · M heads ·
D = C / M · L levels · P sampling points · N decoder layers · K classes · T targets of an image.

Model and criterion meet only through :class:`Predictions` and :class:`Target`; data and model only through
:class:`ImageBatch`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

ImageId = int | str

Branch = Literal["decoder", "encoder", "denoising", "one_to_many"]
"""The sets of predictions that are trained; the last two exist in training alone."""


class _Movable:
    """What a dataclass of tensors can do as a whole."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same with its tensors on `device`."""
        return map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking), self)

    def pin_memory(self) -> Self:
        """The same in page-locked memory (called by the data loader)."""
        return map_tensors(Tensor.pin_memory, self)


# What goes into the network or comes out of it is not frozen: Lightning casts a copy of it in place, field by field.
@dataclass
class ImageBatch(_Movable):
    """Images of different sizes, padded at the right and the bottom to one canvas."""

    images: Tensor
    """`[B, 3, H, W]` float, normalised with the backbone's mean and deviation; zero in the padding."""

    padding_mask: Tensor
    """`[B, H, W]` bool, True where there is padding."""

    image_ids: tuple[ImageId | None, ...] = ()
    """The name of each image in messages; empty or of length B."""

    image_sizes: tuple[tuple[int, int], ...] | None = None
    """(height, width) of each image without its padding. None: only the mask says."""

    @classmethod
    def from_images(cls, images: Sequence[Tensor], image_ids: Sequence[ImageId | None] = (), multiple_of: int = 1) -> Self:
        """Pad a list of `[3, h, w]` images to their common largest size.

        Args:
            images: normalised float images, on one device and of one dtype.
            image_ids: their names, for messages.
            multiple_of: round the canvas up to a multiple of this, so that fewer different shapes occur.

        Raises:
            ValueError: no images, or one that is not `[3, h, w]` or has no pixels.
        """
        if len(images) == 0:
            raise ValueError("a batch needs at least one image, but the list is empty")
        for index, image in enumerate(images):
            if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
                raise ValueError(
                    f"image {index} has shape {list(image.shape)}; expected [3, height, width] with at least one pixel"
                )
            if not image.is_floating_point():
                raise ValueError(f"image {index} has dtype {image.dtype}; expected a normalised float image")
        height, width = (-(-max(image.shape[axis] for image in images) // multiple_of) * multiple_of for axis in (1, 2))
        canvas = images[0].new_zeros(len(images), 3, height, width)
        padding_mask = torch.ones(len(images), height, width, dtype=torch.bool, device=images[0].device)
        for index, image in enumerate(images):
            canvas[index, :, : image.shape[1], : image.shape[2]] = image
            padding_mask[index, : image.shape[1], : image.shape[2]] = False
        sizes = tuple((image.shape[1], image.shape[2]) for image in images)
        return cls(canvas, padding_mask, tuple(image_ids), sizes)

    @property
    def may_be_padded(self) -> bool:
        """False where the image sizes say that every image fills the canvas."""
        return self.image_sizes is None or any(size != tuple(self.images.shape[-2:]) for size in self.image_sizes)

    @property
    def sizes(self) -> tuple | None:
        """The canvas and the images' sizes, which determine every mask of the batch. None: only `padding_mask` tells."""
        return None if self.image_sizes is None else (tuple(self.images.shape[-2:]), self.image_sizes)

    def __len__(self) -> int:
        return self.images.shape[0]


@dataclass
class Target(_Movable):
    """The ground truth of one image."""

    boxes: Tensor
    """`[T, 4]` float, cxcywh, each in [0, 1] as a share of the image's own (unpadded) width and height."""

    labels: Tensor
    """`[T]` int64 in [0, K)."""

    image_id: ImageId | None = None
    """The name of the image in messages and results."""

    image_size: tuple[int, int] | None = None
    """(height, width) in pixels of the image as read (upright), before any resizing."""

    def __len__(self) -> int:
        return self.labels.shape[0]


@dataclass(frozen=True)
class FeaturePyramid:
    """The neck's maps of a batch."""

    levels: list[Tensor]
    """L maps `[B, C, h, w]`, finest first."""

    padding_masks: list[Tensor] | None = None
    """L masks `[B, h, w]` bool, True where there is padding. None: nowhere."""

    sizes: tuple | None = None
    """Equal for batches of equal masks, see `ImageBatch.sizes`. None: no masks, or only they themselves say."""


@dataclass(frozen=True)
class Geometry:
    """What is known of the S positions of the sequence, whatever the images show; B is that of the images, or 1 for all."""

    positions: Tensor
    """`[B, S, C]` sine encoding of the position plus the embedding of the level."""

    padding_mask: Tensor | None
    """`[B, S]` bool, True where there is padding. None: nowhere."""

    spatial_shapes: tuple[tuple[int, int], ...]
    """`(h, w)` of each of the L levels."""

    valid_ratios: Tensor
    """`[B, L, 2]` (x, y): the share of the level's width and height that the image itself covers, in (0, 1]."""

    reference_points: Tensor
    """`[B, S, L, 2]` (x, y): each position's own coordinates on every level, in [0, 1] of each padded level; float32."""

    proposal_logits: Tensor | None
    """`[B, S, 4]`, two-stage only: the box that each position proposes, as logits of cxcywh in [0, 1] of each image."""

    can_propose: Tensor | None
    """`[B, S, 1]` bool, two-stage only: False in the padding and where the box leaves the range from 0.01 to 0.99."""

    def for_images(self, number: int) -> Self:
        """The geometry of one image, for this many images that are like it."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.expand(number, *value.shape[1:]) for name, value in tensors.items()})

    def with_features(self, features: Tensor) -> "FlatFeatures":
        """The sequence whose features are `[B, S, C]`."""
        return FlatFeatures(**vars(self), features=features)

    @property
    def proposals(self) -> tuple[Tensor, Tensor]:
        """`proposal_logits` and `can_propose`.

        Raises:
            ValueError: they were not computed.
        """
        if self.proposal_logits is None or self.can_propose is None:
            raise ValueError("a two-stage model needs the proposals of the positions: build FlattenLevels with proposals=True")
        return self.proposal_logits, self.can_propose

    @property
    def level_start_index(self) -> tuple[int, ...]:
        """Where each level begins in the sequence."""
        starts = [0]
        for height, width in self.spatial_shapes[:-1]:
            starts.append(starts[-1] + height * width)
        return tuple(starts)


@dataclass(frozen=True)
class FlatFeatures(Geometry):
    """All levels of a feature pyramid as one sequence of S positions, finest level first, each level row by row."""

    features: Tensor
    """`[B, S, C]`"""


@dataclass
class Predictions:
    """Predictions for a batch, of every decoder layer; those of the last layer, `[-1]`, are the model's."""

    logits: Tensor
    """`[N, B, Q, K]`, before the sigmoid: each class is decided on its own, there is no background class."""

    boxes: Tensor
    """`[N, B, Q, 4]` cxcywh in [0, 1] of each image's own (unpadded) width and height."""

    encoder_logits: Tensor | None = None
    """`[B, S, K]` of the proposals, two-stage only. Channel 0 is trained as objectness (Deformable DETR, app. A.4), or all of
    them as classes. DINO has the Q selected proposals in place of all S positions."""

    encoder_boxes: Tensor | None = None
    """`[B, S, 4]` of the proposals, in the frame of `boxes`; (1, 1, 1, 1) at positions that cannot propose."""

    denoising_logits: Tensor | None = None
    """`[N, B, G, K]` of G denoising queries, in training with them only."""

    denoising_boxes: Tensor | None = None
    """`[N, B, G, 4]`, in the frame of `boxes`."""

    one_to_many_logits: Tensor | None = None
    """`[N, B, ·, K]` of a one-to-many branch, in training with one only."""

    one_to_many_boxes: Tensor | None = None
    """`[N, B, ·, 4]`, in the frame of `boxes`."""

    def of(self, branch: Branch) -> tuple[Tensor, Tensor] | None:
        """Logits `[N, B, ·, K]` and boxes `[N, B, ·, 4]` of a branch, the encoder's as one layer; None where there are none."""
        prefix = "" if branch == "decoder" else f"{branch}_"
        logits, boxes = getattr(self, f"{prefix}logits"), getattr(self, f"{prefix}boxes")
        if logits is None or boxes is None:
            return None
        return (logits[None], boxes[None]) if branch == "encoder" else (logits, boxes)

    def __len__(self) -> int:
        return self.logits.shape[1]


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Nested lists, tuples and dataclasses with what a function makes of each of their tensors; the rest stays as it is."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        parts = [map_tensors(function, item) for item in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{item.name: map_tensors(function, getattr(value, item.name)) for item in fields(value)})
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dataclasses, in order."""
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        value = [getattr(value, item.name) for item in fields(value)]
    return [tensor for item in value for tensor in tensors_in(item)] if isinstance(value, (list, tuple)) else []
