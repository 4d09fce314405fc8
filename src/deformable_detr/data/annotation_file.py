"""The content of an annotation file as arrays, and everything that is wrong with it: what training, evaluation and doctor share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from deformable_detr.categories import Categories
from deformable_detr.data.file_index import slashed
from deformable_detr.data.findings import Found, Item
from deformable_detr.data.text import Record, read_json
from deformable_detr.structures import ImageId

PER_BOX = ("annotation_ids", "annotation_rows", "images", "labels", "boxes", "areas", "crowd")
"""The arrays with an entry for each annotation."""


@dataclass(frozen=True, eq=False)
class AnnotationFile:
    """All that can be used of an annotation file, in its order: I images and N annotations. The arrays are shared, do not write."""

    path: Path
    """Where it comes from, for messages."""

    image_ids: tuple[ImageId, ...]
    """The ids of the images."""

    file_names: np.ndarray
    """`[I]` str, relative to the image folder, as annotated."""

    image_sizes: np.ndarray
    """`[I, 2]` int32, (height, width) in pixels; 0 where the file does not say."""

    image_rows: np.ndarray
    """`[I]` int64: the position in the file's `images`."""

    annotation_ids: np.ndarray
    """`[N]` int64, or str where one is no whole number; `number 7` where there is none."""

    annotation_rows: np.ndarray
    """`[N]` int64: the position in the file's `annotations`."""

    images: np.ndarray
    """`[N]` int64: the position of the image."""

    labels: np.ndarray
    """`[N]` int64: the position in `categories`."""

    boxes: np.ndarray
    """`[N, 4]` float64: left, top, width, height as they are written, finite, sizes of 0 or more."""

    areas: np.ndarray
    """`[N]` float64, as written, else of the box."""

    crowd: np.ndarray
    """`[N]` bool."""

    categories: Categories
    """Sorted by id."""

    found: Found
    """What is wrong; what is at fault beyond use is left out of the arrays."""

    annotated: bool = True
    """False for a file without the key `annotations`, such as COCO's test-dev."""

    record: Record | None = None
    """The parsed content, where there is no file that it could be read from again."""

    def read_record(self) -> Record:
        """The parsed content of the file."""
        return read_json(self.path) if self.record is None else self.record

    def check(self, *, boxes_required: bool = False, but: Sequence[str] = ()) -> Self:
        """Be strict: the file, if it is in order.

        Args:
            boxes_required: whether a file without `annotations` is an error, too.
            but: codes of findings that do not matter, such as `file-name-missing`.

        Raises:
            ValueError: the first error; the message names the file, the entry and how many more there are.
        """
        self.found.raise_first(self.path, but)
        if boxes_required and not self.annotated:
            raise ValueError(f"{self.path}: the key 'annotations' is missing; a COCO file has images, annotations and categories")
        return self

    def single_class(self) -> Self:
        """The same file with all its categories as one, called `object`."""
        return replace(self, labels=np.zeros_like(self.labels), categories=Categories(("object",), (1,)))

    def merged(self) -> Self:
        """The same file with one image for all entries of the same file name, the first of them.

        Where all of them have the very same boxes they stay apart: the image was listed again on purpose, to be seen more often.
        """
        entries: dict[str, list[int]] = {}
        for position, name in enumerate(self.file_names.tolist()):
            entries.setdefault(slashed(name) or f"/{position}", []).append(position)
        if len(entries) == len(self.file_names):
            return self
        found, target, boxes = self.found.copy(), np.arange(len(self.file_names)), self._boxes_of_images()
        for first, *others in entries.values():
            apart = first in boxes and all(boxes.get(position) == boxes[first] for position in others)
            for position in others:
                target[position] = position if apart else first
                name, image_id = str(self.file_names[position]), self.image_ids[position]
                text = f"{name}: image {image_id!r} is image {self.image_ids[first]!r} once more"
                found.add("image-listed-twice", Item(text, int(target[position]), None, name, image_id))
        found = found.take(dict(enumerate(target.tolist())))  # what is wrong with the others is wrong with the one
        kept = np.flatnonzero(target == np.arange(len(target)))
        return replace(self, images=target[self.images], found=found).take(kept)

    def _boxes_of_images(self) -> dict[int, list[tuple]]:
        """Label and box of all annotations of each image, in ascending order."""
        found: dict[int, list[tuple]] = {}
        for image, label, box in zip(self.images.tolist(), self.labels.tolist(), self.boxes.tolist(), strict=True):
            found.setdefault(image, []).append((label, *box))
        return {image: sorted(rows) for image, rows in found.items()}

    def take(self, chosen: np.ndarray) -> Self:
        """The same file with some of its images only.

        Args:
            chosen: `[n]` int64 positions of images, ascending.
        """
        position = np.full(len(self.image_ids), -1, dtype=np.int64)
        position[chosen] = np.arange(len(chosen))
        rows = np.flatnonzero(position[self.images] >= 0)
        per_image = {name: getattr(self, name)[chosen] for name in ("file_names", "image_sizes", "image_rows")}
        per_box = {name: getattr(self, name)[rows] for name in PER_BOX if name != "images"}
        ids = tuple(self.image_ids[index] for index in chosen.tolist())
        found = self.found.take(dict(zip(chosen.tolist(), range(len(chosen)), strict=True)))
        return replace(self, image_ids=ids, images=position[self.images[rows]], found=found, **per_image, **per_box)
