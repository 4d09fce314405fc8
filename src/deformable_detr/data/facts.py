"""The facts about a training split that a recipe needs, from its annotations alone."""

import numpy as np

from deformable_detr.data.annotation_file import AnnotationFile
from deformable_detr.recipes import DataFacts


def data_facts(file: AnnotationFile) -> DataFacts:
    """Count and measure the objects of a split, crowd regions aside.

    Raises:
        ValueError: not one box.
    """
    chosen = ~file.crowd
    return measure(file.image_sizes, file.images[chosen], file.boxes[chosen])


def measure(sizes: np.ndarray, images: np.ndarray, boxes: np.ndarray) -> DataFacts:
    """Count and measure.

    Args:
        sizes: `[I, 2]` (height, width) of the images in pixels.
        images: `[A]` the position of each box's image.
        boxes: `[A, 4]` left, top, width, height in pixels; what lies outside of the image does not count.

    Raises:
        ValueError: not one box.
    """
    limits = sizes[images][:, ::-1]
    sides = np.minimum(boxes[:, :2] + boxes[:, 2:], limits) - boxes[:, :2].clip(0)
    there = (sides > 0).all(axis=1)
    if not there.any():
        raise ValueError("there is not one box to train on, so no recipe can be chosen")
    short, long = sizes.min(axis=1), sizes.max(axis=1)
    known = short > 0
    return DataFacts(
        num_images=len(sizes),
        short_side=int(np.median(short[known])),
        aspect=float(np.quantile(long[known] / short[known], 0.98)),
        small_object=float(np.quantile(sides[there].min(axis=1) / short[images[there]], 0.1)),
        most_objects=int(np.bincount(images[there]).max()),
    )
