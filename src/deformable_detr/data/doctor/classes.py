"""Checks over the classes and the numbers of objects: within a split and between splits."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from deformable_detr.class_names import match_classes
from deformable_detr.data.doctor.split_data import SplitData
from deformable_detr.data.file_index import split_role
from deformable_detr.data.findings import Item

RARE = 10
"""Training boxes below which a class is called rare."""


def class_counts(data: SplitData) -> Counter[str]:
    """Boxes of each class, the empty ones included."""
    counts = Counter(dict.fromkeys(data.categories.values(), 0))
    for category_id, number in zip(*np.unique(data.category_ids, return_counts=True), strict=True):
        counts[data.categories[int(category_id)]] += int(number)
    return counts


def training_split(splits: Sequence[SplitData]) -> SplitData | None:
    """The split that is trained on: that of this name, else the one that is nothing else."""
    named = next((data for data in splits if split_role(data.name) == "train"), None)
    rest = [data for data in splits if split_role(data.name) is None]
    return named or (rest[0] if len(rest) == 1 else None)


def check_classes(splits: Sequence[SplitData], num_queries: int) -> None:
    """Note classes that cannot be learned or measured, and images with too many objects."""
    counts = [class_counts(data) for data in splits]
    training = training_split(splits)
    for data, found in zip(splits, counts, strict=True):
        objects = np.bincount(data.images, minlength=len(data.image_ids)).tolist()
        for image, number in enumerate(objects):
            if not number:
                data.found.add("images-empty", data.image_item(image))
            elif number > num_queries:
                data.found.add("too-many-objects", data.image_item(image, f"{number} objects, {num_queries} queries"))
        if data is training and not len(data.boxes):
            data.found.add("no-boxes", Item(str(data.split.annotations.path)))
        elif not len(data.boxes) and len(data.image_ids):
            data.found.add("no-boxes-to-measure", Item(str(data.split.annotations.path)))
        elif data is training:
            data.found.add("class-rare", *(Item(f"{name!r}: {n}") for name, n in found.items() if 0 < n < RARE))
        if data is splits[0]:
            empty = [name for name in found if not any(other[name] for other in counts)]
            data.found.add("class-empty", *(Item(f"{name!r}") for name in empty))
    if training is not None and len(splits) > 1:
        _check_between(splits, counts, training)


def _check_between(splits: Sequence[SplitData], counts: Sequence[Counter[str]], training: SplitData) -> None:
    """What the training split has and the others have not, and the other way round."""
    learned = counts[next(index for index, data in enumerate(splits) if data is training)]
    classes = training.split.annotations.categories
    for data, found in zip(splits, counts, strict=True):
        if data is training:
            continue
        own = data.split.annotations.categories
        mates = match_classes(own, classes)
        name_in_train = {name: None if mate is None else classes.names[mate] for name, mate in zip(own.names, mates, strict=True)}
        for name, number in found.items():
            mate = name_in_train.get(name)
            if number and mate is None and learned:
                data.found.add("class-not-in-train", Item(f"{name!r}: {number} boxes"))
            elif number and mate is not None and learned[mate] == 0:
                data.found.add("class-untrained", Item(f"{name!r}: {number} boxes, none in {training.name}"))
        if len(data.boxes):
            measured = {name_in_train.get(name) for name, number in found.items() if number}
            unmeasured = [(name, number) for name, number in learned.items() if number and name not in measured]
            data.found.add("class-unmeasured", *(Item(f"{name!r}: {n} boxes in {training.name}") for name, n in unmeasured))
