"""The samples of a split as (image, target)."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from deformable_detr.boxes import pixels_of, xyxy_to_cxcywh
from deformable_detr.categories import Categories
from deformable_detr.data.annotation_file import AnnotationFile
from deformable_detr.data.annotations import target_annotations
from deformable_detr.data.dataset import Split
from deformable_detr.data.doctor.boxes import check_geometry
from deformable_detr.data.doctor.split_data import SplitData
from deformable_detr.data.findings import REPLACED
from deformable_detr.data.images import read_image
from deformable_detr.data.mixing import Mixing
from deformable_detr.data.transforms import TURNS
from deformable_detr.files import is_file
from deformable_detr.structures import ImageId, Target

logger = logging.getLogger(__name__)

Transform = Callable[[Tensor, Target | None], tuple[Tensor, Target | None]]


class SampleKey(NamedTuple):
    """Which image, and the seed of everything random that is done to it."""

    index: int  # pyright: ignore[reportIncompatibleMethodOverride] (a tuple's method, of no use here)
    seed: int
    mix: bool = False
    """Whether other images may be mixed into it."""

    turns: tuple[str, ...] = ()
    """Which of :data:`TURNS` it goes through."""


class CocoDataset(Dataset[tuple[Tensor, Target]]):
    """Images with boxes of one split of a dataset.

    Category ids become labels 0 … K−1, in the order of the ids. Crowd regions are no targets, boxes are clipped to the image,
    images without objects are kept.

    Args:
        split: annotations and the paths of the images.
        transform: takes and gives (image, target), such as `train_transform(...)`.
        mixing: mixes other images into those whose key asks for it, before `transform`. None: never.
        turns: which of :data:`TURNS` the sampler of a training draws for whole steps, with their probabilities. An image goes
            through those that its key names, after `mixing`.
        categories: the classes to map to, by name: a validation set must use those of the training set. None takes the file's own.
        training: True demands at least one box; False also accepts a file without `annotations`.
        on_bad_image: `skip` replaces an image that cannot be read by the next one and says so in the log; YOLO and VOC images whose
            very size cannot be read are left out. Only for training: an evaluation must not leave an image out.
        bit_depth: how many bits of 16-bit images are used, see :func:`~deformable_detr.data.images.read_image`.

    Raises:
        FileNotFoundError: the first image is missing; with `skip`, all of them.
        ValueError: the annotations are at fault: the first error that `deformable-detr doctor` finds in them.
    """

    def __init__(
        self,
        split: Split,
        transform: Transform,
        *,
        mixing: Mixing | None = None,
        turns: Mapping[str, float] = MappingProxyType({}),
        categories: Categories | None = None,
        training: bool = False,
        on_bad_image: Literal["stop", "skip"] = "stop",
        bit_depth: int = 16,
    ) -> None:
        self.on_bad_image, self.bit_depth = on_bad_image, bit_depth
        self.transform, self.mixing, self.turns = transform, mixing, dict(turns)
        self.annotation_file = split.annotations.path
        borne = REPLACED if on_bad_image == "skip" else ()
        data = SplitData.of(split.check(boxes_required=training, but=borne))
        check_geometry(data)
        data.found.raise_first(self.annotation_file, borne)
        self._annotations = target_annotations(split.annotations, categories)
        self._paths = split.paths
        self._ground_truth = None if training else split.annotations
        if training and len(self._annotations.boxes) == 0:
            looked = "; ".join(item.text for item in split.found.items.get("labels-missing", ()))
            reason = looked or "empty, crowd and degenerate ones are left out"
            raise ValueError(f"{self.annotation_file}: not one box to train on ({reason})")
        if not any(is_file(self.image_path(index)) for index in range(len(self) if on_bad_image == "skip" else 1)):
            looked = ", ".join(map(str, split.folders))
            raise FileNotFoundError(
                f"{self.image_path(0)}: the first image of {self.annotation_file} is missing; is this the right image folder? "
                f"Looked in {looked}"
            )

    @property
    def ground_truth(self) -> AnnotationFile:
        """The annotations to evaluate with.

        Raises:
            ValueError: a dataset for training does not keep them.
        """
        if self._ground_truth is None:
            raise ValueError(f"{self.annotation_file} was opened for training, which keeps no annotations to evaluate with")
        return self._ground_truth

    @property
    def categories(self) -> Categories:
        """What the labels mean."""
        return self._annotations.categories

    @property
    def image_ids(self) -> tuple[ImageId, ...]:
        """The ids of all images, in the order of the dataset."""
        return self._annotations.image_ids

    def image_path(self, index: int) -> Path:
        """The file of an image."""
        return Path(str(self._paths[index]))

    def image_sizes(self) -> np.ndarray:
        """`[I, 2]` (height, width) of all images, as the annotation file says."""
        return self._annotations.image_sizes

    def objects_per_image(self) -> np.ndarray:
        """`[I]` how many boxes each image has."""
        return np.diff(self._annotations.first_box)

    def boxes(self) -> np.ndarray:
        """`[A, 4]` all boxes, xyxy in pixels, image by image."""
        return self._annotations.boxes

    def labels(self) -> np.ndarray:
        """`[A]` their labels."""
        return self._annotations.labels

    def target(self, index: int) -> Target:
        """The ground truth of an image, before any transform."""
        index = range(len(self))[index]  # -1 is the last one
        found = self._annotations
        height, width = (int(side) for side in found.image_sizes[index])
        rows = slice(int(found.first_box[index]), int(found.first_box[index + 1]))
        boxes = torch.from_numpy(found.boxes[rows]) / pixels_of((height, width))
        return Target(xyxy_to_cxcywh(boxes), torch.from_numpy(found.labels[rows].copy()), found.image_ids[index], (height, width))

    def image(self, index: int) -> Tensor:
        """An image `[3, H, W]` uint8, in the orientation that its annotations were made in.

        Raises:
            ValueError: its size is not the one in the annotation file.
        """
        path, size = self.image_path(index), tuple(self._annotations.image_sizes[index].tolist())
        image = read_image(path, bit_depth=self.bit_depth)
        if tuple(image.shape[1:]) == size[::-1] != size:
            image = read_image(
                path, upright=False, bit_depth=self.bit_depth
            )  # annotated without regard to the EXIF orientation, as some of COCO is
        if tuple(image.shape[1:]) != size:
            raise ValueError(
                f"{path}: the image is {image.shape[2]} x {image.shape[1]} pixels (width x height), but image "
                f"{self.image_ids[index]!r} of {self.annotation_file} is {size[1]} x {size[0]}; its boxes would not fit: "
                "correct the file or the image"
            )
        return image

    def __len__(self) -> int:
        return len(self._annotations.image_ids)

    def __getitem__(self, key: int | SampleKey) -> tuple[Tensor, Target]:
        """The transformed image `[3, h, w]` and its target; a key with a seed gives the same every time."""
        if isinstance(key, SampleKey):
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(key.seed)
                return self._sample(key)
        return self._sample(SampleKey(key, seed=0))

    def _sample(self, key: SampleKey) -> tuple[Tensor, Target]:
        mixing = self.mixing if key.mix else None
        image, target = self._image(key.index) if mixing is None else mixing(key.index, len(self), self._image)
        for name in key.turns:
            image, target = TURNS[name](image, target)
        image, target = self.transform(image, target)
        if target is None:
            raise TypeError("the transform of a dataset must give back the target")
        return image, target

    def _image(self, index: int) -> tuple[Tensor, Target]:
        """An image with its target; with `on_bad_image="skip"` the next one that can be read."""
        if self.on_bad_image == "stop":
            return self.image(index), self.target(index)
        for candidate in [*range(index, len(self)), *range(index)]:
            try:
                return self.image(candidate), self.target(candidate)
            except (OSError, ValueError) as error:
                logger.warning("left out, the next image takes its place: %s", error)
        raise ValueError(f"{self.annotation_file}: not one image can be read")
