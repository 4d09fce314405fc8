"""COCO datasets on the disk: which annotation file and which image folder belong to a split."""

import json
import mmap
import re
from pathlib import Path
from typing import Self

from deformable_detr.data.layout import SPLIT_NAMES, Layout

FIRST_IMAGE = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')


class CocoLayout(Layout):
    """Annotation files in COCO's JSON, each with its folder of images.

    Known are `annotations/instances_<split>.json` with `<split>/`, `images/<split>/` or `images/`, where a year may follow the
    split's name; Roboflow's `<split>/_annotations.coco.json` beside the images; and else the JSON files of `annotations/` or
    of the folder itself, each a split of its name.

    Args:
        root: the folder of the dataset.
        annotation_files: the JSON file of each split.
    """

    format = "COCO"

    def __init__(self, root: Path, annotation_files: dict[str, Path]) -> None:
        super().__init__(root, root)
        self.annotation_files = annotation_files

    @classmethod
    def open(cls, path: Path) -> Self | None:
        """The layout of a folder or of one JSON file; None where there is nothing of COCO."""
        if path.is_file():
            if path.suffix.lower() != ".json":
                return None
            root = path.parent.parent if path.parent.name == "annotations" else path.parent
            return cls(root, {path.stem.removeprefix("instances_"): path})
        named = {file.stem.removeprefix("instances_"): file for file in sorted(path.glob("annotations/instances_*.json"))}
        beside = {file.parent.name: file for file in sorted(path.glob("*/_annotations.coco.json"))}
        files = named | beside
        for pattern in ("annotations/*.json", "*.json"):
            files = files or {file.stem: file for file in sorted(path.glob(pattern)) if _looks_like_coco(file)}
        return cls(path, files) if files else None

    def splits(self) -> tuple[str, ...]:
        """The names of the annotation files, without `instances_`."""
        return tuple(self.annotation_files)

    def own_split(self, split: str) -> str | None:
        """The name under which there is a split: `valid` or `val2017` for `val`.

        Raises:
            ValueError: more than one file fits.
        """
        for name in SPLIT_NAMES.get(split, (split,)):
            if name in self.annotation_files:
                return name
            fitting = sorted(other for other in self.annotation_files if re.fullmatch(re.escape(name) + r"[0-9].*", other))
            if len(fitting) > 1:
                names = ", ".join(self.annotation_files[other].name for other in fitting)
                raise ValueError(
                    f"{self.root}: several files fit the split {name!r}: {names}; name one of them, such as {fitting[-1]!r}"
                )
            if fitting:
                return fitting[0]
        return None

    def locate(self, name: str) -> tuple[Path, Path]:
        """The annotation file and the image folder of one of :meth:`splits`.

        Raises:
            FileNotFoundError: no folder that could have its images.
        """
        file = self.annotation_files[name]
        return file, self._image_dir(name, file)

    def _image_dir(self, name: str, file: Path) -> Path:
        """The folder that the first image of an annotation file lies in; else the first one with a fitting name."""
        if file.name == "_annotations.coco.json":
            return file.parent
        root, plain = self.root, re.sub(r"(?<=\D)[0-9].*$", "", name)
        candidates = [
            root / name,
            root / plain,
            root / "images" / name,
            root / "images" / plain,
            *sorted(root.glob(f"{plain}[0-9]*/")),
        ]
        candidates.append(root / "images")
        present = [folder for folder in dict.fromkeys(candidates) if folder.is_dir()]
        first = _first_image(file)
        for folder in (*present, root / "data", root, file.parent):
            if first and (folder / first).is_file():
                return folder
        if present:
            return present[0]
        looked = ", ".join(dict.fromkeys(str(folder.relative_to(root)) for folder in candidates))
        there = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")))
        raise FileNotFoundError(f"{root}: no image folder for {file.name}; looked for {looked}; there is {there}")


def _looks_like_coco(file: Path) -> bool:
    """Whether a JSON file has the keys of COCO; the file is not parsed."""
    if file.stat().st_size == 0:
        return False
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return all(text.find(key) >= 0 for key in (b'"images"', b'"annotations"', b'"categories"'))


def _first_image(file: Path) -> str | None:
    """The first `file_name` of an annotation file that may be too large to be parsed for that."""
    if file.stat().st_size == 0:
        return None
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
        found = FIRST_IMAGE.search(text)
        return json.loads(found.group(1)) if found else None
