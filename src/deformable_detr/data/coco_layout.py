"""COCO datasets on the disk: which annotation file and which image folders belong to a split."""

import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from deformable_detr.data.file_index import FileIndex, split_role
from deformable_detr.data.layout import Layout
from deformable_detr.data.text import encoding_of, read_json, read_text

ANNOTATION_FOLDERS = ("annotations", "annotation", "anns", "labels")
IMAGE_FOLDERS = ("images", "jpegimages", "data", "imgs")
OTHER_TASKS = re.compile(r"keypoint|caption|panoptic|stuff|image_info")
SEGMENTS, SCORE = re.compile(rb'"segments_info"\s*:'), re.compile(rb'"score"\s*:')
"""Keys: classes may have such names."""

DEEPEST = 4
"""Parts of a path below the root up to which annotation files are looked for."""


class CocoLayout(Layout):
    """Annotation files in COCO's JSON, each with its folders of images.

    Known are `annotations/instances_<split>.json`, where a year may follow the split's name; Roboflow's
    `<split>/_annotations.coco.json`; and other JSON files that are COCO, whose split is the word in their name or their folder's.
    Predictions (boxes with scores) and files of other tasks are not taken.

    Args:
        index: the files of the dataset.
        annotation_files: the JSON file of each split.
    """

    format = "COCO"

    def __init__(self, index: FileIndex, annotation_files: dict[str, Path]) -> None:
        super().__init__(index, index.root, annotation_files)
        self.annotation_files = annotation_files

    @classmethod
    def open(cls, index: FileIndex, file: Path | None) -> Self | None:
        """The layout of a folder, or of one JSON file of it; None where there is nothing of COCO."""
        if file is not None:
            return cls(index, {_name_of(file): file}) if file.suffix.lower() == ".json" else None
        files = [path for path in index.select(".json") if len(path.relative_to(index.root).parts) <= DEEPEST]
        found: dict[str, Path] = {}
        for path in files:
            if path.name.lower().startswith("instances_") and path.parent.name.lower() in ANNOTATION_FOLDERS:
                found.setdefault(_name_of(path), path)
        for path in files:
            if path.name.endswith("_annotations.coco.json") and path.parent != index.root:
                found.setdefault(path.parent.name, path)
        others: dict[str, Path] = {}
        for path in sorted(files, key=lambda path: (path.parent.name.lower() != "annotations", len(path.parts), path)):
            if path not in found.values() and json_kind(path) == "COCO":
                folder = path.parent.name if path.parent != index.root else ""
                name = folder if split_role(folder) and not split_role(path.stem) else _name_of(path)
                others.setdefault(name, path)
        if found:  # beside these, only what has a split that they lack
            roles = {split_role(name) for name in found}
            others = {name: path for name, path in others.items() if split_role(name) not in (None, *roles)}
        plain = {name: path for name, path in others.items() if not OTHER_TASKS.search(path.name.lower())}
        found |= plain if found or plain else others
        named = {name: path for name, path in found.items() if split_role(name)}
        if {"train", "val"} <= {split_role(name) for name in named}:
            found = named  # a file of everything beside them would be no split
        return cls(index, found) if found else None

    def used_files(self) -> Iterator[Path]:
        """The JSON files."""
        yield from self.annotation_files.values()

    def image_folders(self, name: str) -> list[Path]:
        """Folders that may contain the images of a split, the likeliest first."""
        file, root = self.annotation_files[name], self.root
        plain, role = re.sub(r"(?<=\D)[0-9].*$", "", name), split_role(name)
        if file.name.endswith("_annotations.coco.json"):
            likely = [file.parent]
        else:
            likely = [root / part / word for part in ("", "images") for word in (name, plain)]
        present = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
        folders = list(dict.fromkeys((*present, *(path for path in self.index.folders if path != root))))
        likely += [path for path in folders if path.name.casefold() in (name.casefold(), plain.casefold())]
        likely += [path for path in folders if role and split_role(path.name) == role]
        likely += [path / "images" for path in likely]
        likely += [path for path in folders if path.parent == root and path.name.lower() in IMAGE_FOLDERS]
        likely += [file.parent / "images", file.parent, root]
        return [path for path in dict.fromkeys(likely) if path.is_dir()]


def _has_scores(file: Path, text: mmap.mmap | bytes) -> bool:
    """Whether annotations have scores: not null, and not of an image or among an object's attributes."""
    if not SCORE.search(text):
        return False
    try:
        annotations = read_json(file)["annotations"]
    except (ValueError, KeyError):  # said where it is read
        return False
    return isinstance(annotations, list) and any(isinstance(one, dict) and one.get("score") is not None for one in annotations)


def _name_of(file: Path) -> str:
    return re.sub(r"^instances_", "", file.stem, flags=re.IGNORECASE)


def json_kind(file: Path) -> str | None:
    """What a JSON file is, by the keys in it; most are not parsed: `COCO`, `panoptic`, `predictions`, or None."""
    if file.stat().st_size == 0:
        return None
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            text = content if encoding_of(content[:4]).startswith("utf-8") else read_text(file).encode()
        except ValueError:
            return None
        if all(text.find(key) >= 0 for key in (b'"images"', b'"annotations"', b'"categories"')):
            return "panoptic" if SEGMENTS.search(text) else "predictions" if _has_scores(file, text) else "COCO"
        return "predictions" if SCORE.search(text) and text.find(b'"image_id"') >= 0 else None
