"""Checks over the classes and the numbers of objects: within a split and between splits."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from deformable_detr.data.doctor.findings import Item
from deformable_detr.data.doctor.split_data import SplitData

RARE = 10
"""Training boxes below which a class is called rare."""


def class_counts(data: SplitData) -> Counter[str]:
    """Boxes of each class, the empty ones included."""
    counts = Counter(dict.fromkeys(data.categories.values(), 0))
    for category_id, number in zip(*np.unique(data.category_ids, return_counts=True), strict=True):
        counts[data.categories[int(category_id)]] += int(number)
    return counts


def training_split(splits: Sequence[SplitData]) -> SplitData | None:
    """The split that is trained on: `train…`, else the only one there is."""
    return next((data for data in splits if data.name.startswith("train")), splits[0] if len(splits) == 1 else None)


def check_classes(splits: Sequence[SplitData], num_queries: int) -> None:
    """Note classes that cannot be learned or measured, and images with too many objects."""
    counts = [class_counts(data) for data in splits]
    training = training_split(splits)
    for data, found in zip(splits, counts, strict=True):
        objects = np.bincount(data.images, minlength=len(data.image_ids)).tolist()
        usable = data.usable_images()
        data.found.add("images-empty", *(data.image_item(image) for image in usable if not objects[image]))
        crowded = [image for image in usable if objects[image] > num_queries]
        data.found.add(
            "too-many-objects", *(data.image_item(image, f"{objects[image]} objects, {num_queries} queries") for image in crowded)
        )
        if data is training and not len(data.boxes):
            data.found.add("no-boxes", Item(str(data.annotation_file)))
        elif data is training:
            data.found.add("class-rare", *(Item(f"{name!r}: {n}") for name, n in found.items() if 0 < n < RARE))
        if data is splits[0]:
            empty = [name for name in found if not any(other[name] for other in counts)]
            data.found.add("class-empty", *(Item(f"{name!r}") for name in empty))
    if training is not None and len(splits) > 1:
        _check_between(splits, counts, training)


def _check_between(splits: Sequence[SplitData], counts: Sequence[Counter[str]], training: SplitData) -> None:
    """What the training split has and the others have not, and the other way round."""
    learned = counts[splits.index(training)]
    for data, found in zip(splits, counts, strict=True):
        if data is training:
            continue
        for name, number in found.items():
            if number and name not in learned and learned:
                data.found.add("class-not-in-train", Item(f"{name!r}: {number} boxes"))
            elif number and learned[name] == 0:
                data.found.add("class-untrained", Item(f"{name!r}: {number} boxes, none in {training.name}"))
        if len(data.boxes):
            unmeasured = [(name, number) for name, number in learned.items() if number and not found[name]]
            data.found.add("class-unmeasured", *(Item(f"{name!r}: {n} boxes in {training.name}") for name, n in unmeasured))
