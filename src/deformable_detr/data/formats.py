"""From a path to the annotation file and the images of a split, whatever the format: COCO, YOLO, Pascal VOC.

Formats other than COCO are converted once, to a COCO file among the derived files (see `cache.py`); what is behind reads COCO only.
"""

import json
import logging
from pathlib import Path

from deformable_detr.data.cache import derived_folder, fingerprint, write_whole
from deformable_detr.data.coco_layout import CocoLayout
from deformable_detr.data.images import IMAGE_SUFFIXES
from deformable_detr.data.layout import Fault, ForeignLayout, Layout, Record, walk_files
from deformable_detr.data.splits import MADE_SPLITS, divide
from deformable_detr.data.voc import VocLayout
from deformable_detr.data.yolo import YoloLayout

logger = logging.getLogger(__name__)

CONVERSION = 1
"""Raised when converted files change, so that those of an older version are not taken."""

LOOKED_FOR = (
    "COCO (annotations/instances_<split>.json, <split>/_annotations.coco.json, or one .json), "
    "YOLO (data.yaml, images/ and labels/), Pascal VOC (Annotations/*.xml and JPEGImages/, or .xml files beside the images)"
)


def find_split(dataset: str | Path, split: str) -> tuple[Path, Path]:
    """Find the annotation file and the image folder of one part of a dataset.

    The format is recognised from the path: COCO, YOLO or Pascal VOC (`docs/data.md` shows the layouts). A dataset that has only
    training images, or no splits at all, is divided once into train, val and test, and the division is written down. `val` and
    `valid` mean the same.

    Args:
        dataset: the folder, or the data.yaml of a YOLO dataset, or one COCO JSON file.
        split: such as `train`, `val`, `test`, `val2017`.

    Returns:
        A COCO annotation file, and the folder that its image names are relative to.

    Raises:
        FileNotFoundError: no such dataset or split; the message lists what was looked for and what is there.
        ValueError: more than one file fits, or the annotations are damaged.
    """
    layout = open_layout(dataset)
    own, pool = layout.own_split(split), undivided_part(layout)
    if pool is not None and split in MADE_SPLITS and own in (None, pool):
        return divide(layout.root, _source_name(layout, pool), locate(layout, pool), MADE_SPLITS[split], layout.splits())
    if own is not None:
        return locate(layout, own)
    if isinstance(layout, CocoLayout):
        found = sorted(str(file.relative_to(layout.root)) for file in layout.annotation_files.values())
        raise FileNotFoundError(
            f"{layout.root}: no split {split!r}; looked for annotations/instances_{split}.json, "
            f"annotations/instances_{split}<year>.json and {split}/_annotations.coco.json; found {', '.join(found)}"
        )
    raise FileNotFoundError(f"{layout.source}: no split {split!r}; this {layout.format} dataset has {', '.join(layout.splits())}")


def open_layout(dataset: str | Path) -> Layout:
    """Recognise the format of a dataset.

    Raises:
        FileNotFoundError: there is nothing, or nothing with annotations; the message names the formats looked for.
        ValueError: a data.yaml that cannot be used.
    """
    path = Path(dataset)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such dataset folder")
    for open_format in (CocoLayout.open, YoloLayout.open, VocLayout.open):
        if layout := open_format(path):
            return layout
    if path.is_file():
        raise ValueError(f"{path}: not a dataset; give its folder, a YOLO data.yaml or a COCO .json")
    images = len(walk_files(path, IMAGE_SUFFIXES))
    there = f"{images} images without boxes, good for `predict` alone" if images else "no images"
    raise FileNotFoundError(f"{path}: no annotation file at all, but {there}; looked for {LOOKED_FOR}")


def undivided_part(layout: Layout) -> str | None:
    """The one part that training and validation images can be taken from; None where the dataset has splits of its own."""
    parts = [name for name in layout.splits() if not name.startswith("test")]
    return parts[0] if len(parts) == 1 and not parts[0].startswith("val") else None


def locate(layout: Layout, name: str) -> tuple[Path, Path]:
    """The annotation file, converted where need be, and the image folder of one of the layout's own splits.

    Raises:
        FileNotFoundError: a folder that it names is missing.
        ValueError: damaged annotations; the message names file and line.
    """
    if isinstance(layout, CocoLayout):
        return layout.locate(name)
    if not isinstance(layout, ForeignLayout):
        raise TypeError(f"{type(layout).__name__} neither has COCO files nor can be converted to them")
    file = derived_folder(layout.root) / f"{name}-{fingerprint(layout.files(), CONVERSION, name)}.json"
    if not file.is_file():
        record, faults = layout.read(name)
        if faults:
            raise ValueError(f"{faults[0]}{_more(faults)}; `deformable-detr doctor {layout.root}` lists all, --fix leaves them out")
        write_whole(file, json.dumps(record).encode())
        logger.info("%s: read %d images of %s (%s)", layout.source, len(record["images"]), name, layout.format)
    return file, layout.root


def read_split(layout: Layout, name: str) -> tuple[Record, list[Fault]]:
    """The COCO record of an own split of a foreign format, without what is faulty in it, and the faults.

    Raises:
        TypeError: a COCO dataset, whose file is the record.
    """
    if not isinstance(layout, ForeignLayout):
        raise TypeError("a COCO dataset needs no conversion")
    return layout.read(name)


def _more(faults: list[Fault]) -> str:
    return f" (and {len(faults) - 1} more such faults)" if len(faults) > 1 else ""


def _source_name(layout: Layout, pool: str) -> str:
    """What is divided, as it stands in splits.json."""
    source = layout.annotation_files[pool] if isinstance(layout, CocoLayout) else layout.source
    return source.relative_to(layout.root).as_posix()
