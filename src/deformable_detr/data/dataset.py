"""A dataset on the disk, opened once: its format, its splits, and every file of it accounted for."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deformable_detr.data.annotation_file import AnnotationFile
from deformable_detr.data.annotation_reader import FOUND, parse_record, read_annotation_file
from deformable_detr.data.cache import derived_folder, fingerprint
from deformable_detr.data.coco_layout import CocoLayout
from deformable_detr.data.file_index import FileIndex, split_role
from deformable_detr.data.findings import Found, Item
from deformable_detr.data.foreign import name_format
from deformable_detr.data.layout import ForeignLayout, Layout, empty_record, read_sizes
from deformable_detr.data.splits import MADE_SPLITS, divide, read_division
from deformable_detr.data.unused import unused_files
from deformable_detr.data.voc import VocLayout
from deformable_detr.data.yolo import YoloLayout
from deformable_detr.files import write_text

logger = logging.getLogger(__name__)

CONVERSION = 4
"""Raised when converted files change, so that those of an older version are not taken."""

ALL = "all"
"""Name of all images of a dataset that has no splits of its own."""

LOOKED_FOR = (
    "COCO (annotations/instances_<split>.json, <split>/_annotations.coco.json, or one .json), "
    "YOLO (data.yaml, or classes.txt with images and labels), Pascal VOC (.xml files)"
)


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a dataset: its annotations, and where its images are."""

    name: str
    """As it was asked for, or as the dataset calls it."""

    annotations: AnnotationFile
    """What is annotated; what is wrong with it is in `found`."""

    paths: np.ndarray
    """`[I]` str: the file of each image, whether it is there or not."""

    folders: tuple[Path, ...]
    """Where the images were looked for."""

    found: Found
    """What was noticed while opening and reading."""

    @classmethod
    def of_file(cls, annotation_file: str | Path, image_dir: str | Path, name: str = "") -> "Split":
        """The images of one COCO annotation file, whose names are relative to one folder.

        Raises:
            FileNotFoundError: the file or the folder is missing.
        """
        file, folder = read_annotation_file(annotation_file), Path(image_dir)
        if not folder.is_dir():
            raise FileNotFoundError(f"{image_dir}: no such image folder")
        return _located(name, file, FileIndex(folder), (folder,), None)

    def path(self, image: int) -> Path:
        """The file of an image."""
        return Path(str(self.paths[image]))

    def check(self, *, boxes_required: bool = False, but: Sequence[str] = ()) -> "Split":
        """Be strict: the split, if what was read is in order.

        Args:
            boxes_required: whether annotations without boxes are an error, too.
            but: codes of findings that do not matter.

        Raises:
            ValueError: the first error.
        """
        self.found.raise_first(self.annotations.path, but)
        self.annotations.check(boxes_required=boxes_required, but=but)
        return self

    def take(self, chosen: np.ndarray, name: str) -> "Split":
        """A part of the images, by their positions."""
        found = replace(self.found.take({image: index for index, image in enumerate(chosen.tolist())}), split=name)
        return replace(self, name=name, annotations=self.annotations.take(chosen), paths=self.paths[chosen], found=found)


class DetectionDataset:
    """An opened dataset. Its splits are read when they are asked for, and kept.

    Args:
        path: as it was given.
        layout: the format that was recognised.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path, self.layout = path, layout
        self._own: dict[str, Split] = {}
        self._made: dict[str, Split] | None = None

    @property
    def root(self) -> Path:
        """The folder of the dataset."""
        return self.layout.root

    @property
    def format(self) -> str:
        """The name of its format."""
        return self.layout.format

    @property
    def own_splits(self) -> tuple[str, ...]:
        """The names of the parts that the dataset has of its own."""
        return self.layout.splits()

    @property
    def pool(self) -> str | None:
        """The one part that training and validation images can be taken from; None where the dataset has both of its own."""
        parts = [name for name in self.own_splits if split_role(name) != "test"]
        return parts[0] if len(parts) == 1 and split_role(parts[0]) != "val" else None

    @property
    def divided(self) -> bool:
        """Whether a division into splits has been written down for it."""
        try:
            return bool(self.division())
        except ValueError:  # damaged: said where it is used
            return True

    def division(self) -> dict[str, str]:
        """Image → split, as written down for it; empty where nothing is.

        Raises:
            ValueError: splits.json is damaged.
        """
        return {} if self.pool is None else read_division(self.root, self._source_name())

    def split(self, name: str) -> Split:
        """Read one part of the dataset.

        A dataset that has only training images, or no splits at all, is divided once into train, val and test, and the division is
        written down. `val`, `valid` and `validation` mean the same, and so do upper and lower case.

        Args:
            name: such as `train`, `val`, `test`, `val2017`, or `all` for a dataset without splits of its own.

        Raises:
            FileNotFoundError: no such split; the message lists what is there.
            ValueError: several fit.
        """
        own, pool = self.layout.own_split(name), self.pool
        if pool is not None and (made_of := MADE_SPLITS.get(name.lower())) and own in (None, pool):
            count = len(self.own(pool).paths)
            if not count:
                return self.own(pool)  # what is wrong with it is found there
            made = self._divide()
            if made_of not in made:
                raise FileNotFoundError(f"{self.root}: no split {name!r}, and {count} images are too few to make one")
            return made[made_of]
        if own is None and name.lower() == ALL and pool is not None:
            own = pool
        if own is None:
            raise FileNotFoundError(f"{self.layout.source}: no split {name!r}{self._what_there_is(name)}")
        return self.own(own)

    def training_part(self) -> Split:
        """What is trained on of a dataset without splits: as :meth:`split`, but a new division is not written down."""
        return self._divide(keep=False).get("train") or self.own(str(self.pool))

    def own(self, name: str) -> Split:
        """Read one of :attr:`own_splits`, whole, whether the dataset is divided or not."""
        if name not in self._own:
            layout = self.layout
            if isinstance(layout, CocoLayout):
                file = read_annotation_file(layout.annotation_files[name])
                folders, role = layout.image_folders(name), split_role(name)
            else:
                file, folders, role = self._converted(name), [self.root], None
            self._own[name] = _located(name, file, layout.index, folders, role)
        return self._own[name]

    def forget(self) -> None:
        """Give the memory of the splits back; they are read again when they are asked for."""
        self._own, self._made = {}, None

    def evaluation_split(self) -> str:
        """What is measured where no split is named: val; of a dataset without splits that no training has divided, all images."""
        if self.divided:
            return "val"
        names = [name for name in self.own_splits if split_role(name) == "val"]
        if names or self.pool is None:
            return "val"
        test = next((name for name in self.own_splits if split_role(name) == "test"), None)
        return test or ALL

    def unused(self) -> list[tuple[str, Item]]:
        """Every file that nothing is made of: the code of the finding, and the file with the reason."""
        used = {str(path) for path in self.layout.used_files()}
        for name in self.own_splits:
            used.update(self.own(name).paths.tolist())
        reasons = dict(self._other_annotations())
        return unused_files(self.layout.index, used, reasons)

    def _other_annotations(self) -> Iterator[tuple[str, str]]:
        """Why an annotation file of the known formats is not used, where that can be said."""
        if isinstance(self.layout, CocoLayout):
            roles = {split_role(name): file.name for name, file in self.layout.annotation_files.items()}
            for path in self.layout.index.select(".json"):
                folder = path.parent.name if path.parent != self.root else ""
                if (role := split_role(path.stem) or split_role(folder)) in roles:
                    yield str(path), f"the split is read from {roles[role]}"

    def _what_there_is(self, name: str) -> str:
        if isinstance(self.layout, CocoLayout):
            found = sorted(self.layout.index.relative(file) for file in self.layout.annotation_files.values())
            return (
                f"; looked for annotations/instances_{name}.json, annotations/instances_{name}<year>.json and "
                f"{name}/_annotations.coco.json; found {', '.join(found)}"
            )
        return f"; this {self.format} dataset has {', '.join(self.own_splits)}"

    def _source_name(self) -> str:
        """What is divided, by its name in splits.json."""
        source = self.layout.annotation_files[str(self.pool)] if isinstance(self.layout, CocoLayout) else self.layout.source
        return self.layout.index.relative(source)

    def _divide(self, *, keep: bool = True) -> dict[str, Split]:
        if self._made is None:
            whole = self.own(str(self.pool))
            has_test = any(split_role(name) == "test" for name in self.own_splits)
            where = self.root, self._source_name()
            chosen = divide(*where, whole.annotations, whole.paths.tolist(), make_test=not has_test, keep=keep)
            parts = {name: np.flatnonzero(np.array(chosen) == name) for name in dict.fromkeys(chosen)}
            made = {name: whole.take(images, name) for name, images in parts.items()}
            if not keep:
                return made
            self._made = made
        return self._made

    def _converted(self, name: str) -> AnnotationFile:
        """Through a converted file, unless there are errors: then from the record in memory, each time."""
        layout = self.layout
        assert isinstance(layout, ForeignLayout)
        key = fingerprint({*layout.used_files(), *map(Path, layout.index.images)}, CONVERSION, name)
        path = derived_folder(self.root) / f"{name}-{key}.json"
        if not path.is_file():
            try:
                record, found = layout.read(name)
            except (OSError, ValueError) as error:
                damaged = Item(str(error), file=str(layout.source))
                record, found = empty_record({}), Found(name, {"file-damaged": [damaged]})
            if found.errors:
                return replace(parse_record(record, layout.source), found=found, record=record)
            write_text(path, json.dumps(record | {FOUND: found.items}))
            logger.info("%s: read %d images of %s (%s)", layout.source, len(record["images"]), name, self.format)
        return read_annotation_file(path)


def open_dataset(dataset: "str | Path | DetectionDataset") -> DetectionDataset:
    """Open a dataset: recognise its format and list its files. Nothing is parsed yet.

    Args:
        dataset: its folder, the data.yaml of a YOLO dataset, or one COCO JSON file; COCO, YOLO or Pascal VOC (`docs/data.md` shows
            the layouts). An opened one is given back.

    Raises:
        FileNotFoundError: there is nothing, or nothing with annotations; the message names the formats looked for, and the format
            that was recognised, if it must be imported first.
        ValueError: a data.yaml that cannot be used.
    """
    if isinstance(dataset, DetectionDataset):
        return dataset
    path = Path(dataset)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such dataset folder")
    file = path if path.is_file() else None
    root = path.parent if file else path
    if file and file.suffix.lower() == ".json" and root.name.lower() == "annotations":
        root = root.parent
    if file and file.suffix.lower() not in (".json", ".yaml", ".yml"):
        raise ValueError(f"{path}: not a dataset; give its folder, a YOLO data.yaml or a COCO .json")
    index = FileIndex(root)
    for open_format in (CocoLayout.open, YoloLayout.open, VocLayout.open):
        if layout := open_format(index, file):
            return DetectionDataset(path, layout)
    images = len(index.images)
    there = f"{images} images without boxes, good for `predict` alone" if images else "no images"
    if known := name_format(index):
        raise FileNotFoundError(f"{path}: annotations in the format {known}, with {images} images; looked for {LOOKED_FOR}")
    raise FileNotFoundError(f"{path}: no annotation file at all, but {there}; looked for {LOOKED_FOR}")


def _located(name: str, file: AnnotationFile, index: FileIndex, folders: Sequence[Path], role: str | None) -> Split:
    """Find the images of an annotation file, and read the sizes that it lacks."""
    file = file.merged()
    found = replace(file.found.copy(), split=name)
    names = file.file_names.tolist()
    paths, elsewhere, reasons = index.locate_images(names, folders, role)
    for image, text in elsewhere.items():
        found.add("image-renamed", Item(text, image, None, names[image], file.image_ids[image]))
    for image, text in reasons.items():
        found.add("image-ambiguous", Item(f"{names[image]}: {text}", image, None, names[image]))
    unknown = np.flatnonzero((file.image_sizes == 0).any(axis=1))
    if len(unknown):
        sizes = file.image_sizes.copy()
        for image, size in zip(unknown.tolist(), read_sizes(Path(paths[image]) for image in unknown.tolist()), strict=True):
            if not isinstance(size, Exception):
                sizes[image] = size
        file = replace(file, image_sizes=sizes)
    return Split(name, file, np.array(paths, dtype=str), tuple(folders), found)
