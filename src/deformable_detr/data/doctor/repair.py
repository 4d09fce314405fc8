"""`--fix`: a copy of a dataset, in COCO's layout, without the errors that the examination found.

Findings of a split are first collected in a plan, then the record is written from the original and the plan in one pass. Findings
refer to rows and images of the original, and several can concern the same one (a clipped box in an image whose size is corrected):
changing entries one finding after another would invalidate the rows that later findings refer to, and count changes twice.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from deformable_detr.data.cache import FOLDER
from deformable_detr.data.doctor.boxes import limits_of, to_pixels
from deformable_detr.data.doctor.examine import Examination
from deformable_detr.data.doctor.split_data import SplitData
from deformable_detr.data.entries import box_of_segmentation
from deformable_detr.data.file_index import slashed, split_role
from deformable_detr.data.findings import Finding
from deformable_detr.data.splits import WRITTEN, write_division
from deformable_detr.data.writing import check_new, free_name, place_image
from deformable_detr.files import atomic_folder, write_json

__all__ = ["SAME_ASPECT", "check_output", "repair"]

LEFT_OUT_ANNOTATIONS = ("box-malformed", "image-unknown", "category-unknown", "box-outside", "box-degenerate", "box-twice")
LEFT_OUT_IMAGES = ("file-name-missing", "image-missing", "image-damaged", "image-copy", "image-leak")
SAME_ASPECT = 0.02
"""Largest relative difference of two aspect ratios that count as one."""


def repair(examination: Examination, output_dir: str | Path) -> list[str]:
    """Write a repaired copy: `annotations/instances_<split>.json`, the images in `<split>/`, and `changes.json`.

    Images are hard links where the disk allows it, else copies, and stay in the split that they were divided into. The original
    is only read. Crowd regions are converted and scaled like boxes. Outlines are scaled with their image; run lengths and keypoints
    of such images are left out.

    Args:
        examination: of all splits that are to be in the copy.
        output_dir: a folder that is empty or not there yet, outside the dataset.

    Returns:
        What was changed, a sentence each.

    Raises:
        FileExistsError: the folder is not empty.
        ValueError: the folder is inside the dataset, or a split's annotations cannot be read at all.
    """
    out = Path(output_dir)
    check_output(out, examination.dataset)
    for finding in examination.findings:
        if finding.code == "file-damaged":
            raise ValueError(f"cannot be repaired: {finding.items[0].text}")
    changes: dict[str, list[str]] = {}
    with atomic_folder(out) as partial:
        for data in examination.splits:
            record, sources, noted = _repaired_record(data, [f for f in examination.findings if f.split == data.name])
            originals = [slashed(image["file_name"]) for image in record["images"]]
            _place_images(data, record["images"], sources, partial / data.name)
            source = f"annotations/instances_{data.name}.json"
            write_json(partial / source, record)
            changes[data.name] = noted
            pairs = zip([image["file_name"] for image in record["images"]], originals, strict=True)
            division = {name: examination.division[original] for name, original in pairs if original in examination.division}
            if division and split_role(data.name) != "test":
                write_division(partial / FOLDER / WRITTEN, source, division)
        write_json(partial / "changes.json", changes, indent=1)
    return [f"{name}: {text}" for name, noted in changes.items() for text in _summary(noted)]


def check_output(out: Path, dataset: Path) -> None:
    """Check that a copy can be written.

    Raises:
        FileExistsError: the folder is not empty.
        ValueError: the folder is inside the dataset.
    """
    check_new(out)
    if out.resolve().is_relative_to((dataset if dataset.is_dir() else dataset.parent).resolve()):
        raise ValueError(f"{out}: lies in the dataset itself; name a folder outside of it")


def _repaired_record(data: SplitData, findings: list[Finding]) -> tuple[dict[str, list[dict]], list[Path], list[str]]:
    """The COCO record of a split's copy, where its images are, and every change as `kind: case`."""
    plan = _Plan(data)
    for finding in findings:
        plan.apply(finding)
    file, record = data.split.annotations, data.record
    images = {}
    for position in range(len(data.image_ids)):
        if position not in plan.dropped_images:
            height, width = plan.size(position)
            entry = record["images"][int(file.image_rows[position])]
            images[position] = entry | {"id": file.image_ids[position], "height": height, "width": width}
    first_of: dict[str, int] = {}  # classes of one name become one
    merged = [first_of.setdefault(name, key) for key, name in data.categories.items()]
    boxes = to_pixels(file.boxes, limits_of(data, file.images), data.form)
    annotations = []
    for index, row in enumerate(file.annotation_rows.tolist()):
        position = int(file.images[index])
        if row in plan.dropped_annotations or position not in images:
            continue
        box = plan.box(boxes[index], position)
        if box is None:
            continue
        entry = plan.scaled(record["annotations"][row], position)
        changed = entry | {"id": len(annotations) + 1, "image_id": file.image_ids[position], "iscrowd": int(file.crowd[index])}
        changed["category_id"] = merged[int(file.labels[index])]
        if box != entry.get("bbox"):
            changed |= {"bbox": box, "area": box[2] * box[3]}
        annotations.append(changed | {"area": changed.get("area", box[2] * box[3])})
    listed = [{"id": key, "name": data.categories[key]} for key in sorted(set(merged))]
    repaired = {"images": list(images.values()), "annotations": annotations, "categories": listed}
    return repaired, [data.path(position) for position in images], plan.noted


class _Plan:
    """What to change in a split."""

    def __init__(self, data: SplitData) -> None:
        self.data = data
        self.dropped_annotations: set[int] = set()
        self.dropped_images: set[int] = set()
        self.sizes: dict[int, tuple[int, int]] = {}
        self.scales: dict[int, tuple[float, float]] = {}
        """Image position → factors (x, y) for its boxes."""
        self.noted: list[str] = []

    def apply(self, finding: Finding) -> None:
        """Add the changes that a finding requires; kinds that need none are skipped."""
        code = finding.code
        for item in finding.items:
            if code in LEFT_OUT_ANNOTATIONS and item.annotation is not None:
                self.dropped_annotations.add(item.annotation)
            elif code in LEFT_OUT_IMAGES and item.image is not None:
                self.dropped_images.add(item.image)
            elif code == "exif-boxes" and item.image is not None:
                self.sizes[item.image] = item.value
            elif code == "image-size" and item.image is not None:
                self._resize(item.image, item.value)
            elif code not in TOLD:
                continue
            self.noted.append(f"{TOLD.get(code, finding.kind.title)}: {item.text}")

    def size(self, position: int) -> tuple[int, int]:
        """(height, width) of an image in the copy."""
        height, width = self.sizes.get(position, tuple(self.data.sizes[position].tolist()))
        return height, width

    def scaled(self, entry: dict[str, Any], position: int) -> dict[str, Any]:
        """An annotation whose outlines have the size of its image; what cannot be scaled is left out."""
        if position not in self.scales:
            return entry
        kept = {key: value for key, value in entry.items() if key not in ("segmentation", "keypoints", "num_keypoints")}
        parts, scales = entry.get("segmentation"), self.scales[position]
        if isinstance(parts, list) and all(isinstance(part, list) and box_of_segmentation(part) for part in parts):
            kept["segmentation"] = [[round(float(v) * scales[at % 2], 3) for at, v in enumerate(part)] for part in parts]
        return kept

    def box(self, box: np.ndarray, position: int) -> list[float] | None:
        """A box [left, top, width, height] in its image: scaled, cut off at the edges; None if nothing is left."""
        x_scale, y_scale = self.scales.get(position, (1.0, 1.0))
        left, top, width, height = box.tolist()
        right, bottom = (left + width) * x_scale, (top + height) * y_scale
        limit_y, limit_x = self.size(position)
        left, top = max(left * x_scale, 0.0), max(top * y_scale, 0.0)
        kept = [round(v, 3) for v in (left, top, min(right, limit_x) - left, min(bottom, limit_y) - top)]
        return kept if kept[2] > 0 and kept[3] > 0 else None

    def _resize(self, image: int, size: tuple[int, int]) -> None:
        """Give an image its true size.

        With the same aspect ratio the image was resized after its annotation, so the boxes are scaled. Otherwise only the stated
        size may be wrong: the boxes stay if they fit into the true one, and the image is left out if not.
        """
        height, width = (int(side) for side in self.data.sizes[image])
        if abs(size[1] / size[0] / (width / height) - 1) <= SAME_ASPECT:
            self.scales[image] = (size[1] / width, size[0] / height)
        else:
            boxes = self.data.boxes[self.data.images == image]
            if len(boxes) and ((boxes[:, 0] + boxes[:, 2] > size[1] + 2) | (boxes[:, 1] + boxes[:, 3] > size[0] + 2)).any():
                self.dropped_images.add(image)
        self.sizes[image] = size


TOLD = {
    "label-fault": "left out",
    "entry-malformed": "left out",
    "category-id-twice": "left out",
    "image-id-twice": "left out",
    "category-name-twice": "merged",
    "annotation-id-twice": "numbered anew",
    "boxes-xyxy": "converted from [left, top, right, bottom]",
    "boxes-centred": "converted from [centre x, centre y, width, height]",
    "boxes-normalised": "converted from shares to pixels",
    "box-clipped": "cut off at the edge",
    "box-computed": "box computed from the outline",
    "image-listed-twice": "merged",
    "image-renamed": "renamed",
    "image-size": "size corrected",
    "size-missing": "size written",
    "exif-boxes": "size of the stored pixels stated",
    **dict.fromkeys((*LEFT_OUT_ANNOTATIONS, *LEFT_OUT_IMAGES), "left out"),
}
"""What is done about a kind of finding; entries with other kinds stay as they are."""


def _place_images(data: SplitData, images: list[dict[str, Any]], sources: list[Path], folder: Path) -> None:
    """Link or copy the images of a record from where they are; their names change only where they would lead out of the folder."""
    folder.mkdir(parents=True)
    taken: set[str] = set()
    renamed = {item.image_id for item in data.found.items.get("image-renamed", ())}
    for image, source in zip(images, sources, strict=True):
        name = Path(source.name if image["id"] in renamed else image["file_name"].replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts:
            name = Path(f"{image['id']}_{name.name}")
        image["file_name"] = free_name(name.as_posix(), taken)
        place_image(source, folder / image["file_name"])


def _summary(noted: list[str]) -> list[str]:
    """Changes by kind, with their number."""
    counts = Counter(text.partition(":")[0] for text in noted)
    return [f"{kind}: {number}" for kind, number in counts.items()]
