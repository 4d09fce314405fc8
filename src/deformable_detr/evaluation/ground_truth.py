"""The annotation file as evaluation needs it: everything in it counts, crowd regions too."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from deformable_detr.categories import Categories
from deformable_detr.structures import ImageId


@dataclass(frozen=True)
class GroundTruth:
    """The objects of an annotation file, per image."""

    path: Path
    """Where they come from, for messages."""

    categories: Categories
    """All categories of the file, in the order of their ids."""

    annotations: dict[ImageId, list[dict[str, Any]]]
    """Image id → COCO annotations with `bbox`, `area`, `iscrowd` and `category_id`; an empty list for an image without any."""

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a COCO annotation file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not JSON, not COCO, or an annotation of an unknown image; the message says which.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such annotation file")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not a JSON file ({error})") from error
        missing = [key for key in ("images", "annotations", "categories") if key not in content]
        if missing:
            raise ValueError(f"{path}: the key {', '.join(missing)} is missing, so this is no COCO annotation file with boxes")
        named = sorted((entry["id"], str(entry.get("name", entry["id"]))) for entry in content["categories"])
        categories = Categories(tuple(name for _, name in named), tuple(category_id for category_id, _ in named))
        annotations: dict[ImageId, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
        for entry in content["annotations"]:
            annotation = _annotation(entry, categories, path)
            if entry["image_id"] not in annotations:
                raise ValueError(
                    f"{path}: annotation {entry.get('id')} belongs to image {entry['image_id']!r}, which is not listed"
                )
            annotations[entry["image_id"]].append(annotation)
        return cls(path, categories, annotations)

    def check_images(self, image_ids: Iterable[ImageId]) -> None:
        """Make sure that the file speaks of these images.

        Raises:
            ValueError: it does not; the message names the first of them.
        """
        unknown = [image_id for image_id in image_ids if image_id not in self.annotations]
        if unknown:
            raise ValueError(
                f"{self.path}: {len(unknown)} evaluated images are not in this annotation file, such as image {unknown[0]!r}: "
                "predictions and annotations must be of the same split"
            )


def _annotation(entry: dict[str, Any], categories: Categories, path: Path) -> dict[str, Any]:
    """What evaluation needs of a COCO annotation; a missing area is that of the box."""
    missing = [key for key in ("image_id", "category_id", "bbox") if entry.get(key) is None]
    if missing:
        raise ValueError(f"{path}: annotation {entry.get('id')} has no {', '.join(missing)}")
    if entry["category_id"] not in categories.ids:
        raise ValueError(f"{path}: annotation {entry.get('id')} has the unknown category id {entry['category_id']!r}")
    left, top, width, height = (float(value) for value in entry["bbox"])
    area = entry.get("area")
    return {
        "bbox": [left, top, width, height],
        "area": width * height if area is None else float(area),
        "iscrowd": int(entry.get("iscrowd", 0)),
        "category_id": entry["category_id"],
    }
