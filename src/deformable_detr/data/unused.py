"""The unused files of a dataset's folder: every one, with the reason."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from deformable_detr.data.coco_layout import json_kind
from deformable_detr.data.file_index import FileIndex
from deformable_detr.data.findings import KINDS, Item
from deformable_detr.data.images import IMAGE_SUFFIXES, UNREADABLE_SUFFIXES
from deformable_detr.data.yolo import looks_like_labels

OWN = "changes.json"
"""What `doctor --fix` writes beside a repaired copy."""


def unused_files(index: FileIndex, used: Iterable[str], reasons: Mapping[str, str]) -> list[tuple[str, Item]]:
    """All files of an index that are not among the used ones.

    Args:
        index: the dataset's files.
        used: paths of annotation files, label files and listed images.
        reasons: for some annotation files why they are not used.

    Returns:
        The code of a finding with the file, in the order of the index.
    """
    taken = {os.path.abspath(path) for path in (*used, index.root / OWN)}  # noqa: PTH100 (as a data.yaml may name the folder)
    found = []
    for path in index.files:
        if os.path.abspath(path) not in taken:  # noqa: PTH100
            code, reason = _judge(Path(path))
            reason = reason or (reasons.get(path, "") if code == "annotation-unused" else "")
            found.append((code, Item(f"{index.relative(path)}{': ' if reason else ''}{reason}", file=path)))
    return found


def summarise_unused(unused: Iterable[tuple[str, Item]]) -> str:
    """One line for the log: how many files of each kind; empty where there are none."""
    counts = Counter(code for code, _ in unused)
    order = [code for code in KINDS if counts[code]]
    return ", ".join(f"{counts[code]} {KINDS[code].title}" for code in order)


def _judge(path: Path) -> tuple[str, str]:
    """The code of the finding, and the reason where the code does not say it."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "image-unlisted", ""
    if suffix in UNREADABLE_SUFFIXES:
        return "image-format", ""
    if suffix == ".json":
        kind = json_kind(path)
        reason = {"COCO": "", "predictions": "predictions (boxes with scores)", "panoptic": "segments, not boxes"}.get(
            str(kind), "no COCO file"
        )
        return "annotation-unused" if kind else "file-unused", reason
    if suffix == ".xml" or (suffix == ".txt" and looks_like_labels(path)):
        return "label-unused", ""
    if suffix in (".tfrecord", ".data") or path.parent.name.lower() in ("main", "imagesets"):
        return "annotation-unused", ""
    return "file-unused", ""
