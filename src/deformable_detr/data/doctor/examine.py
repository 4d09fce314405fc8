"""The whole examination of a dataset, and the quick one that stands before every training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deformable_detr.data.annotation_file import read_annotation_file, read_json
from deformable_detr.data.coco_layout import CocoLayout
from deformable_detr.data.doctor.boxes import check_boxes
from deformable_detr.data.doctor.classes import check_classes
from deformable_detr.data.doctor.duplicates import check_duplicates
from deformable_detr.data.doctor.findings import Finding, Item, sort_findings
from deformable_detr.data.doctor.images import check_images, check_listing, check_sample, check_unlisted
from deformable_detr.data.doctor.split_data import SECTIONS, SplitData, read_split_data, split_data_of
from deformable_detr.data.doctor.statistics import (
    SplitStatistics,
    Suggestion,
    split_statistics,
    suggestions,
    to_dict,
)
from deformable_detr.data.formats import open_layout, read_split, undivided_part
from deformable_detr.data.layout import Layout

Progress = Callable[[int, int], None]

SAMPLE = 50
"""Images per split whose headers are looked at before a training."""


@dataclass(frozen=True)
class Examination:
    """What was found, and what the dataset holds."""

    dataset: Path
    format: str
    splits: tuple[SplitData, ...]
    findings: tuple[Finding, ...]
    """The gravest first."""

    statistics: dict[str, SplitStatistics]
    suggestions: tuple[Suggestion, ...]
    undivided: bool
    """Whether training will make train, val and test out of it."""

    def count(self, severity: str) -> int:
        """How many findings of a severity, each kind of a split being one."""
        return sum(finding.severity == severity for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "dataset": str(self.dataset),
            "format": self.format,
            "undivided": self.undivided,
            "findings": [finding.to_dict() for finding in self.findings],
            "statistics": {name: to_dict(found) for name, found in self.statistics.items()},
            "suggestions": [to_dict(found) for found in self.suggestions],
        }


def examine(
    dataset: str | Path,
    splits: Sequence[str] = (),
    *,
    num_queries: int = 300,
    progress: Progress = lambda done, total: None,
) -> Examination:
    """Look at all annotations and all images of a dataset, and note everything.

    Args:
        dataset: as for `find_split`.
        splits: which ones; empty: all that the dataset has of its own.
        num_queries: of the network that is to be trained.
        progress: called with the numbers of images read and to be read.

    Raises:
        FileNotFoundError: no dataset, or no such split.
    """
    layout = open_layout(dataset)
    parts = [_read_tolerantly(layout, name) for name in _split_names(layout, splits)]
    for data in parts:
        check_boxes(data)
        check_listing(data)
    done, total = 0, sum(len(data.usable_images()) for data in parts)

    def advance() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    facts = [check_images(data, advance) for data in parts]
    check_unlisted(parts)
    check_duplicates(parts, facts)
    check_classes(parts, num_queries)
    return Examination(
        Path(dataset),
        layout.format,
        tuple(parts),
        tuple(sort_findings(finding for data in parts for finding in data.found.findings())),
        {data.name: split_statistics(data) for data in parts},
        tuple(suggestions(parts)),
        undivided_part(layout) is not None,
    )


def quick_check(splits: Mapping[str, tuple[Path, Path]], num_queries: int) -> list[Finding]:
    """What annotations and the headers of a few images tell, in about a second: errors and warnings, no notes.

    A file that a dataset has just been opened from is not read again.

    Args:
        splits: by name, COCO annotation file and image folder, as `find_split` gives them.
        num_queries: of the network.
    """
    parts = [_read_quickly(name, *files) for name, files in splits.items()]
    for data in parts:
        check_boxes(data)
        check_listing(data)
        check_sample(data, SAMPLE)
    check_classes(parts, num_queries)
    return [finding for data in parts for finding in data.found.findings() if finding.severity != "note"]


def _split_names(layout: Layout, splits: Sequence[str]) -> list[str]:
    """The layout's own names of the wanted splits, training first."""
    names = list(layout.splits())
    if splits:
        found = {split: layout.own_split(split) for split in splits}
        unknown = [split for split, name in found.items() if name is None]
        if unknown:
            raise FileNotFoundError(f"{layout.root}: no split {unknown[0]!r} of its own; there is {', '.join(names)}")
        names = [name for name in found.values() if name is not None]
    return sorted(dict.fromkeys(names), key=lambda name: (not name.startswith("train"), not name.startswith("val"), name))


def _read_tolerantly(layout: Layout, name: str) -> SplitData:
    """A split of any format, with everything wrong as findings."""
    if isinstance(layout, CocoLayout):
        file = layout.annotation_files[name]
        try:
            image_dir = layout.locate(name)[1]
        except FileNotFoundError:
            image_dir = layout.root / name  # every image will be missing there
        return _from_file(name, file, image_dir)
    try:
        record, faults = read_split(layout, name)
    except FileNotFoundError as error:
        return _damaged(name, layout.source, layout.root, error)
    return read_split_data(name, record, layout.source, layout.root, faults)


def _from_file(name: str, file: Path, image_dir: Path) -> SplitData:
    try:
        return read_split_data(name, read_json(file), file, image_dir)
    except ValueError as error:
        return _damaged(name, file, image_dir, error)


def _read_quickly(name: str, file: Path, image_dir: Path) -> SplitData:
    """From the arrays that a dataset is made of; entry by entry where the file is not in order."""
    try:
        read = read_annotation_file(file)
    except ValueError:
        return _from_file(name, file, image_dir)
    return split_data_of(name, read, file, image_dir) if read.annotated else _from_file(name, file, image_dir)


def _damaged(name: str, file: Path, image_dir: Path, error: Exception) -> SplitData:
    """A split of which nothing can be read."""
    data = read_split_data(name, {key: [] for key in SECTIONS}, file, image_dir)
    data.found.add("file-damaged", Item(str(error), file=str(file)))
    return data
