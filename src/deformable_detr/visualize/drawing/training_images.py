"""Training images as the model gets them: augmented, with their boxes and the padding of their batch."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import supervision as sv
import torch
from torch import Tensor

from deformable_detr.categories import Categories
from deformable_detr.config import DataConfig, Metadata
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.loader import build_loader
from deformable_detr.structures import ImageBatch, Target
from deformable_detr.visualize.drawing.detections import draw_detections, truth_detections

PLAIN = {
    "horizontal_flip": 0.0,
    "vertical_flip": 0.0,
    "transpose": 0.0,
    "crop_short_sides": (),
    "color_jitter": 0.0,
    "scale_jitter": (1.0, 1.0),
    "mosaic": 0.0,
    "copy_paste": 0.0,
    "mixup": 0.0,
}
"""All augmentations off except the choice of a size."""

STRONG = {
    "horizontal_flip": 1.0,
    "vertical_flip": 1.0,
    "transpose": 1.0,
    "color_jitter": 0.4,
    "scale_jitter": (0.5, 1.5),
    "mosaic": 1.0,
    "copy_paste": 1.0,
    "mixup": 1.0,
}
"""The value that shows each augmentation, where the settings do not have another one."""

STRIPES = 12  # pixels
STRIPE_GREYS = (70, 95)
NOT_FINITE = (255, 0, 255)
"""The colour of non-finite pixels."""


def draw_training_images(
    dataset: CocoDataset, data: DataConfig, *, batch_size: int, seed: int, count: int, training: bool = True
) -> Iterator[tuple[str, np.ndarray]]:
    """Draw the first images of a training as the model gets them, with boxes and class names.

    Pixels are those of the batch, de-normalised; padding is striped.

    Args:
        dataset: with its transform.
        data: its settings.
        batch_size: images per batch.
        seed: of the order and the augmentation, as in training.
        count: number of images, at most those of an epoch.
        training: False goes through the dataset in order.

    Yields:
        The name of the image's file, and the drawing `[H, W, 3]` uint8 RGB.
    """
    divisor = data.pad_size_divisor if training else 1
    loader = build_loader(dataset, batch_size=batch_size, training=training, seed=seed, pad_size_divisor=divisor)
    names = {image_id: dataset.image_path(index).name for index, image_id in enumerate(dataset.image_ids)}
    samples = ((batch, index, target) for batch, targets in loader for index, target in enumerate(targets))
    for batch, index, target in islice(samples, count):
        yield names[target.image_id], draw_sample(batch, index, target, data, dataset.categories)


def choices(data: DataConfig) -> dict[str, DataConfig]:
    """Make settings that show one augmentation each, by title: none, each alone (with its strength where it is on), all as set."""
    plain = replace(data, **PLAIN)
    shown = {"as it is": plain}
    if data.crop_short_sides:
        shown["random crop (official)"] = replace(plain, crop_short_sides=data.crop_short_sides)
    for name, strength in STRONG.items():
        set_to = getattr(data, name)
        on = name in ("color_jitter", "scale_jitter") and set_to != PLAIN[name]
        value = set_to if on else strength
        shown[f"{name} {value if isinstance(value, float) else list(value)}"] = replace(plain, **{name: value})
    return shown | {"all as they are set": data}


def draw_sample(batch: ImageBatch, index: int, target: Target, data: DataConfig | Metadata, categories: Categories) -> np.ndarray:
    """Draw one image of a batch, `[H, W, 3]` uint8 RGB: de-normalised, with striped padding, boxes and class names."""
    pixels = denormalised(batch.images[index], data)
    height, width = pixels.shape[1:]
    padding = batch.padding_mask[index]
    stripes = (np.arange(height)[:, None] + np.arange(width)) // STRIPES % 2
    greys = torch.from_numpy(np.array(STRIPE_GREYS, np.uint8)[stripes])  # [H, W]
    canvas = torch.where(padding, greys, pixels)
    size = (int((~padding).any(dim=1).sum()), int((~padding).any(dim=0).sum()))
    boxes: sv.Detections = truth_detections(replace(target, image_size=size), categories)
    return draw_detections(canvas, boxes)


def denormalised(image: Tensor, data: DataConfig | Metadata) -> Tensor:
    """Undo the normalisation of an image `[3, H, W]`: uint8 RGB, with non-finite pixels in magenta."""
    mean, std = (torch.tensor(values, dtype=torch.float32, device="cpu")[:, None, None] for values in (data.mean, data.std))
    finite = image.cpu().isfinite().all(dim=0)  # [H, W]
    pixels = ((image.cpu().nan_to_num() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return torch.where(finite, pixels, pixels.new_tensor(NOT_FINITE)[:, None, None])
