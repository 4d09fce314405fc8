"""A split as the checks look at it: its boxes (crowd regions aside) as arrays, and what was found so far."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from deformable_detr.data.dataset import Split
from deformable_detr.data.findings import Found, Item
from deformable_detr.data.text import Record
from deformable_detr.structures import ImageId

__all__ = ["SplitData", "check_ids"]


@dataclass
class SplitData:
    """One split: I images and A boxes."""

    split: Split
    found: Found

    positions: np.ndarray
    """`[A]` int64: the position of each box in the arrays of `split.annotations`."""

    images: np.ndarray
    """`[A]` int64: the position of its image."""

    category_ids: np.ndarray
    """`[A]` int64."""

    boxes: np.ndarray
    """`[A, 4]` float64: left, top, width, height in pixels."""

    areas: np.ndarray
    """`[A]` float64, as written."""

    form: str = "xywh"
    """How the boxes are written in the file; `boxes` has them converted."""

    @classmethod
    def of(cls, split: Split) -> Self:
        """The boxes of a split, and what was noticed while reading it."""
        file = split.annotations
        chosen = np.flatnonzero(~file.crowd)
        category_ids = np.asarray(file.categories.ids, dtype=np.int64)[file.labels[chosen]]
        arrays = (chosen, file.images[chosen], category_ids, file.boxes[chosen], file.areas[chosen])
        return cls(split, split.found.copy(), *arrays)

    @property
    def rows(self) -> np.ndarray:
        """`[A]` int64: the position of each box in the file's `annotations`."""
        return self.split.annotations.annotation_rows[self.positions]

    @property
    def name(self) -> str:
        """Of the split."""
        return self.split.name

    @property
    def categories(self) -> dict[int, str]:
        """Id → name."""
        categories = self.split.annotations.categories
        return dict(zip(categories.ids, categories.names, strict=True))

    @property
    def image_ids(self) -> Sequence[ImageId]:
        """`[I]`."""
        return self.split.annotations.image_ids

    @property
    def sizes(self) -> np.ndarray:
        """`[I, 2]` (height, width) as annotated, else of the file; 0 where neither says."""
        return self.split.annotations.image_sizes

    @cached_property
    def record(self) -> Record:
        """The parsed file, which a repair starts from."""
        return self.split.annotations.read_record()

    def path(self, image: int) -> Path:
        """The file of an image."""
        return self.split.path(image)

    def file_name(self, image: int) -> str:
        """Its name as annotated."""
        return str(self.split.annotations.file_names[image])

    def image_item(self, image: int, text: str = "", value: Any = None) -> Item:
        """A case about an image."""
        name = self.file_name(image)
        return Item(f"{name}{': ' if text else ''}{text}", image, None, name, self.image_ids[image], None, value)

    def box_item(self, index: int, text: str) -> Item:
        """A case about a box, by its index in the arrays."""
        return self.annotation_item(int(self.positions[index]), f": {text}")

    def annotation_item(self, position: int, text: str = "") -> Item:
        """A case about an annotation, crowd or not, by its position in the arrays of `split.annotations`."""
        file = self.split.annotations
        image, row, annotation_id = int(file.images[position]), int(file.annotation_rows[position]), file.annotation_ids[position]
        name = self.file_name(image)
        text = f"{name}, annotation {annotation_id}{text}"
        return Item(text, image, row, name, self.image_ids[image], annotation_id.item())


def check_ids(data: SplitData) -> None:
    """Note repeated ids and names, gaps between category ids, and crowd regions."""
    file, found = data.split.annotations, data.found
    ids, names = file.categories.ids, file.categories.names
    repeated = [i for position, i in enumerate(ids) if names[position] in names[:position]]
    found.add("category-name-twice", *(Item(f"id {i} is another {data.categories[i]!r}", value=i) for i in repeated))
    folded = [" ".join(name.split()).casefold() for name in names]
    alike = [(name, names[folded.index(folded[position])]) for position, name in enumerate(names)]
    found.add("category-name-alike", *(Item(f"{name!r} and {first!r}") for name, first in alike if name != first))
    if ids and ids not in (tuple(range(len(ids))), tuple(range(1, len(ids) + 1))):
        found.add("ids-sparse", Item(f"{len(ids)} classes with ids {ids[0]} … {ids[-1]}"))
    order = np.argsort(file.annotation_ids, kind="stable")
    again = order[1:][file.annotation_ids[order[1:]] == file.annotation_ids[order[:-1]]]
    found.add("annotation-id-twice", *map(data.annotation_item, np.sort(again)))
    found.add("crowd", *map(data.annotation_item, np.flatnonzero(file.crowd).tolist()))
