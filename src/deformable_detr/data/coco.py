"""The samples of a COCO annotation file as (image, target)."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from deformable_detr.boxes import xyxy_to_cxcywh
from deformable_detr.data.annotations import read_annotations
from deformable_detr.data.formats import find_split
from deformable_detr.data.images import read_image
from deformable_detr.structures import Categories, ImageId, Target

__all__ = ["CocoDataset", "SampleKey", "find_split"]

Transform = Callable[[Tensor, Target | None], tuple[Tensor, Target | None]]


class SampleKey(NamedTuple):
    """Which picture, and the seed of everything random that is done to it."""

    index: int
    seed: int


class CocoDataset(Dataset[tuple[Tensor, Target]]):
    """Pictures with boxes, from a COCO annotation file and a folder.

    Category ids become labels 0 … K−1, in the order of the ids. Crowd regions are no targets, boxes are clipped to the image,
    images without objects are kept.

    Args:
        annotation_file: COCO JSON.
        image_dir: the folder that `file_name` is relative to.
        transform: takes and gives (image, target), such as `train_transform(...)`.
        categories: the classes to map to, by name (by id where not one name is known): a validation set must use those of the
            training set. None takes the file's own.
        training: True demands at least one box; False also accepts a file without `annotations`.

    Raises:
        FileNotFoundError: the file, the folder, or the first picture is missing.
        ValueError: the file is damaged; see `read_annotations`.
    """

    def __init__(
        self,
        annotation_file: str | Path,
        image_dir: str | Path,
        transform: Transform,
        *,
        categories: Categories | None = None,
        training: bool = False,
    ) -> None:
        self.annotation_file, self.image_dir = Path(annotation_file), Path(image_dir)
        self.transform = transform
        self._annotations = read_annotations(annotation_file, categories=categories, boxes_required=training)
        if training and len(self._annotations.boxes) == 0:
            raise ValueError(f"{annotation_file}: not one box to train on (empty, crowd and degenerate ones are left out)")
        if not self.image_dir.is_dir():
            raise FileNotFoundError(f"{image_dir}: no such image folder")
        if not self.image_path(0).is_file():
            raise FileNotFoundError(
                f"{self.image_path(0)}: the first picture of {annotation_file} is missing; is this the right image folder?"
            )

    @property
    def categories(self) -> Categories:
        """What the labels mean."""
        return self._annotations.categories

    @property
    def image_ids(self) -> tuple[ImageId, ...]:
        """The ids of all pictures, in the order of the data set."""
        return self._annotations.image_ids

    def image_path(self, index: int) -> Path:
        """The file of a picture."""
        return self.image_dir / str(self._annotations.file_names[index])

    def target(self, index: int) -> Target:
        """What is to be found in a picture, before any transform."""
        found = self._annotations
        height, width = (int(side) for side in found.image_sizes[index])
        rows = slice(int(found.first_box[index]), int(found.first_box[index + 1]))
        boxes = torch.from_numpy(found.boxes[rows]) / torch.tensor([width, height, width, height])
        return Target(xyxy_to_cxcywh(boxes), torch.from_numpy(found.labels[rows].copy()), found.image_ids[index], (height, width))

    def image(self, index: int) -> Tensor:
        """A picture `[3, H, W]` uint8, in the orientation that its annotations were made in.

        Raises:
            ValueError: its size is not the one in the annotation file.
        """
        path, size = self.image_path(index), tuple(self._annotations.image_sizes[index].tolist())
        image = read_image(path)
        if tuple(image.shape[1:]) == size[::-1] != size:
            image = read_image(path, upright=False)  # annotated without regard to the EXIF orientation, as some of COCO is
        if tuple(image.shape[1:]) != size:
            raise ValueError(
                f"{path}: the picture is {image.shape[2]} x {image.shape[1]} pixels (width x height), but image "
                f"{self.image_ids[index]!r} of {self.annotation_file} is {size[1]} x {size[0]}; its boxes would not fit: "
                "correct the file or the picture"
            )
        return image

    def __len__(self) -> int:
        return len(self._annotations.image_ids)

    def __getitem__(self, key: int | SampleKey) -> tuple[Tensor, Target]:
        """The transformed image `[3, h, w]` and its target; a key with a seed gives the same every time."""
        if isinstance(key, SampleKey):
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(key.seed)
                return self[key.index]
        image, target = self.transform(self.image(key), self.target(key))
        if target is None:
            raise TypeError("the transform of a data set must give back the target")
        return image, target
