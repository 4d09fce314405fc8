"""Checks of predictions and targets before they are matched, with a single transfer from the device."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from deformable_detr.criterion.targets import FlatTargets, image_name
from deformable_detr.structures import Target


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
        ValueError: a label outside [0, K) or an unsound box; the message names the image.
        FloatingPointError: predictions with NaN or infinity; the message names the images.
    """
    finite = [x.isfinite().flatten(2).all(2) for x in (logits, boxes)]  # [N, B] each
    finite_logits, finite_boxes, labels, sizes, *fetched = _fetch([*finite, *targets.validity(logits.shape[-1]), *more])
    targets.check(labels > 0, sizes > 0, logits.shape[-1])
    _check_finite({"class logits": finite_logits > 0, "boxes": finite_boxes > 0}, targets.sources, source)
    return fetched


def _fetch(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Tensors as arrays on the host, through a single transfer: on a GPU every transfer waits for all work before it."""
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    values = torch.cat([tensor.flatten().to(dtype) for tensor in tensors]).cpu().numpy()
    ends = np.cumsum([tensor.numel() for tensor in tensors])
    parts = np.split(values, ends[:-1])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _check_finite(finite: Mapping[str, np.ndarray], targets: Sequence[Target], source: str) -> None:
    """`finite`: kind of prediction → bool `[N, B]`."""
    found = []
    for kind, sound in finite.items():
        layers, images = np.nonzero(~sound)
        if len(images):
            names = ", ".join(image_name(targets, index) for index in sorted({*images.tolist()}))
            found.append(f"{kind} of {names} (layers {sorted({*layers.tolist()})})")
    if found:
        raise FloatingPointError(
            f"the {source} predicted NaN or infinity: {'; '.join(found)}; the images may be broken, or training has diverged"
        )
