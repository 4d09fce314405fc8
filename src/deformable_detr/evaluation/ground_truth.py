"""The annotations of a split as evaluation needs them: everything counts, crowd regions too."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from deformable_detr.categories import Categories
from deformable_detr.data.annotation_file import AnnotationFile
from deformable_detr.data.annotation_reader import read_annotation_file
from deformable_detr.structures import ImageId

__all__ = ["GroundTruth"]


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The objects of an annotation file, per image."""

    path: Path
    """Where they come from, for messages."""

    categories: Categories
    """All categories of the file, in the order of their ids."""

    annotations: dict[ImageId, list[dict[str, Any]]]
    """Image id → COCO annotations with `bbox`, `area`, `iscrowd` and `category_id`; an empty list for an image without any."""

    @classmethod
    def of(cls, source: "str | Path | AnnotationFile | GroundTruth") -> "GroundTruth":
        """The ground truth of a COCO annotation file, read or not.

        Raises:
            FileNotFoundError: no such file.
            ValueError: no annotation file with boxes, or one with errors; the message says which.
        """
        if isinstance(source, GroundTruth):
            return source
        return cls._of_file(source if isinstance(source, AnnotationFile) else read_annotation_file(source))

    @classmethod
    def _of_file(cls, file: AnnotationFile) -> Self:
        file.check(boxes_required=True, but=("file-name-missing",))
        annotations: dict[ImageId, list[dict[str, Any]]] = {image_id: [] for image_id in file.image_ids}
        columns = (file.images, file.labels, file.boxes, file.areas, file.crowd)
        for image, label, box, area, crowd in zip(*(column.tolist() for column in columns), strict=True):
            entry = {"bbox": box, "area": area, "iscrowd": int(crowd), "category_id": file.categories.ids[label]}
            annotations[file.image_ids[image]].append(entry)
        return cls(file.path, file.categories, annotations)

    def check_images(self, image_ids: Iterable[ImageId]) -> None:
        """Check that the file contains these images.

        Raises:
            ValueError: it does not; the message names the first of them.
        """
        unknown = [image_id for image_id in image_ids if image_id not in self.annotations]
        if unknown:
            raise ValueError(
                f"{self.path}: {len(unknown)} evaluated images are not in this annotation file, such as image {unknown[0]!r}: "
                "predictions and annotations must be of the same split"
            )
