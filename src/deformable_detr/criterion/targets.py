"""The objects of a whole batch as one list, which is what matcher and losses compute with, and the checks that they are sound."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from deformable_detr.structures import Target

LARGEST_SHARE = 2.0  # of an image's side; beyond it a box must be in pixels


def image_name(targets: Sequence[Target], index: int) -> str:
    """How messages call an image: by its id where it has one, else by its index in the batch."""
    image_id = targets[index].image_id
    return f"image {index} of the batch" if image_id is None else f"image {image_id!r}"


@dataclass(frozen=True)
class FlatTargets:
    """The targets of a batch one after the other; T here counts the objects of all images together."""

    boxes: Tensor
    """`[T, 4]` cxcywh in [0, 1] of each image's own size."""

    labels: Tensor
    """`[T]` int64, not yet known to be in [0, K)."""

    counts: tuple[int, ...]
    """The number of objects of each image."""

    sources: tuple[Target, ...]
    """Where they come from, for messages."""

    @classmethod
    def from_targets(cls, targets: Sequence[Target], device: torch.device, dtype: torch.dtype) -> Self:
        """Concatenate the targets of a batch on one device.

        Raises:
            ValueError: boxes that are not `[T, 4]`, labels that are not `[T]` integers; the message names the image.
        """
        for index, target in enumerate(targets):
            _check_shapes(target, image_name(targets, index))
        return cls(
            boxes=torch.cat([target.boxes for target in targets]).to(device, dtype),
            labels=torch.cat([target.labels for target in targets]).to(device, torch.int64),
            counts=tuple(len(target) for target in targets),
            sources=tuple(targets),
        )

    def images(self) -> Tensor:
        """The image that each object is in: int64 `[T]`."""
        return torch.from_numpy(self._image_numbers()).to(self.labels.device)

    def image_name_of(self, row: int) -> str:
        """Which image an object is in, for messages."""
        return image_name(self.sources, int(self._image_numbers()[row]))

    def _image_numbers(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.counts)), self.counts)


def fetch_checked(logits: Tensor, boxes: Tensor, targets: FlatTargets, source: str, *more: Tensor) -> list[np.ndarray]:
    """Check predictions and targets, and bring further tensors to the host with what the checks need.

    Args:
        logits: `[N, B, Q, K]`.
        boxes: `[N, B, Q, 4]`.
        targets: of the B images.
        source: the part of the model that predicted, for messages.
        more: any tensors.

    Returns:
        `more` as arrays.

    Raises:
        ValueError: a label outside [0, K), a box with NaN, with a negative size or in pixels; the message names the image.
        FloatingPointError: predictions with NaN or infinity; the message names the images.
    """
    num_classes = logits.shape[-1]
    finite = [x.isfinite().flatten(2).all(2) for x in (logits, boxes)]  # [N, B] each
    labels = (targets.labels >= 0) & (targets.labels < num_classes)
    sizes = (targets.boxes.abs() <= LARGEST_SHARE).all(-1) & (targets.boxes[:, 2:] >= 0).all(-1)  # False for NaN as well
    finite_logits, finite_boxes, labels, sizes, *fetched = _fetch([*finite, labels, sizes, *more])
    for row in np.flatnonzero(labels == 0)[:1].tolist():
        raise ValueError(
            f"{targets.image_name_of(row)} has the label {int(targets.labels[row])}, but this model has "
            f"{num_classes} classes: labels go from 0 to {num_classes - 1} (category ids must be mapped to labels first)"
        )
    for row in np.flatnonzero(sizes == 0)[:1].tolist():
        raise ValueError(
            f"{targets.image_name_of(row)} has the box {targets.boxes[row].tolist()}; boxes must be finite "
            "(centre x, centre y, width, height) as shares in [0, 1] of the image's width and height, not pixels"
        )
    found = []
    for kind, sound in {"class logits": finite_logits, "boxes": finite_boxes}.items():
        layers, images = np.nonzero(sound == 0)
        if len(images):
            names = ", ".join(image_name(targets.sources, index) for index in sorted({*images.tolist()}))
            found.append(f"{kind} of {names} (layers {sorted({*layers.tolist()})})")
    if found:
        raise FloatingPointError(
            f"the {source} predicted NaN or infinity: {'; '.join(found)}; the images may be broken, or training has diverged"
        )
    return fetched


def _fetch(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Tensors as arrays on the host, through a single transfer: on a GPU every transfer waits for all work before it."""
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    values = torch.cat([tensor.flatten().to(dtype) for tensor in tensors]).cpu().numpy()
    ends = np.cumsum([tensor.numel() for tensor in tensors])
    parts = np.split(values, ends[:-1])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _check_shapes(target: Target, name: str) -> None:
    if target.boxes.ndim != 2 or target.boxes.shape[1] != 4:
        raise ValueError(
            f"{name}: boxes have shape {list(target.boxes.shape)}; expected [T, 4] (an image without objects has [0, 4])"
        )
    if target.labels.shape != target.boxes.shape[:1]:
        raise ValueError(f"{name}: {target.boxes.shape[0]} boxes but labels of shape {list(target.labels.shape)}; expected [T]")
    if target.labels.is_floating_point() or target.labels.is_complex():
        raise ValueError(f"{name}: labels are {target.labels.dtype}; expected int64")
