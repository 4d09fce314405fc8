"""What a recipe needs to know of a training split, from its annotation file alone."""

import numpy as np

from deformable_detr.data.annotations import Annotations
from deformable_detr.recipes import DataFacts


def data_facts(annotations: Annotations) -> DataFacts:
    """Count and measure.

    Raises:
        ValueError: not one box.
    """
    if len(annotations.boxes) == 0:
        raise ValueError("there is not one box to train on, so no recipe can be chosen")
    sizes, counts = annotations.image_sizes, np.diff(annotations.first_box)
    short, long = sizes.min(axis=1), sizes.max(axis=1)
    boxes = annotations.boxes
    narrow = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) / np.repeat(short, counts)
    return DataFacts(
        num_images=len(sizes),
        short_side=int(np.median(short)),
        aspect=float(np.quantile(long / short, 0.98)),
        small_object=float(np.quantile(narrow, 0.1)),
        most_objects=int(counts.max()),
    )
