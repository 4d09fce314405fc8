"""The whole examination of a dataset, and the quick one that precedes every training."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from deformable_detr.data.dataset import DetectionDataset, Split, open_dataset
from deformable_detr.data.doctor.boxes import check_boxes, check_geometry
from deformable_detr.data.doctor.classes import check_classes, training_split
from deformable_detr.data.doctor.duplicates import check_duplicates, check_shared_files
from deformable_detr.data.doctor.images import check_images, check_sample
from deformable_detr.data.doctor.split_data import SplitData, check_ids
from deformable_detr.data.doctor.statistics import SplitStatistics, Suggestion, split_statistics, suggestions
from deformable_detr.data.file_index import path_role, split_role
from deformable_detr.data.findings import Finding, sort_findings

__all__ = ["Examination", "examine", "quick_check"]

SAMPLE = 50
"""Images per split whose headers are looked at before a training."""


@dataclass(frozen=True)
class Examination:
    """What was found, and what the dataset holds."""

    dataset: Path
    format: str
    splits: tuple[SplitData, ...]
    findings: tuple[Finding, ...]
    """The most severe first."""

    statistics: dict[str, SplitStatistics]
    suggestions: tuple[Suggestion, ...]
    undivided: bool
    """Whether training will make train, val and test out of it."""

    division: dict[str, str]
    """Image → split, where that has been done and written down."""

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
            "statistics": {name: asdict(found) for name, found in self.statistics.items()},
            "suggestions": [asdict(found) for found in self.suggestions],
        }


def examine(
    dataset: str | Path | DetectionDataset,
    splits: Sequence[str] = (),
    *,
    num_queries: int = 300,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Examination:
    """Look at all annotations and all images of a dataset, and note everything.

    Args:
        dataset: as for :func:`~deformable_detr.data.dataset.open_dataset`.
        splits: which ones; empty: all that the dataset has of its own.
        num_queries: of the model that is to be trained.
        progress: called with the numbers of images read and to be read.

    Raises:
        FileNotFoundError: no dataset, or no such split.
    """
    opened = open_dataset(dataset)
    parts = [SplitData.of(opened.own(name)) for name in _split_names(opened, splits)]
    for data in parts:
        check_ids(data)
        check_boxes(data)
    done, total = count(1), sum(len(data.image_ids) for data in parts)
    facts = [check_images(data, lambda: progress(next(done), total)) for data in parts]
    check_duplicates(parts, facts)
    check_classes(parts, num_queries)
    if not splits:
        note_unused(opened, parts)
    return Examination(
        opened.path,
        opened.format,
        tuple(parts),
        tuple(sort_findings(finding for data in parts for finding in data.found.findings())),
        {data.name: split_statistics(data) for data in parts},
        tuple(suggestions(_trained_on(opened, parts))),
        opened.pool is not None,
        opened.division(),
    )


def quick_check(splits: Sequence[Split], num_queries: int) -> list[Finding]:
    """What annotations and the headers of a few images tell, in about a second: errors and warnings, no notes.

    Args:
        splits: as a training opens them.
        num_queries: of the model.
    """
    parts = [SplitData.of(split) for split in splits]
    for data in parts:
        check_ids(data)
        check_boxes(data)
        check_sample(data, SAMPLE)
    check_shared_files(parts)
    check_classes(parts, num_queries)
    return [finding for data in parts for finding in data.found.findings() if finding.severity != "note"]


def note_unused(dataset: DetectionDataset, parts: Sequence[SplitData]) -> None:
    """Account for every unused file of the dataset; each counts for the split whose folder contains it."""
    by_role = {split_role(data.name): data for data in reversed(parts)}
    for code, item in dataset.unused():
        role = path_role(dataset.layout.index.relative(str(item.file)))
        by_role.get(role, parts[0]).found.add(code, item)


def _trained_on(dataset: DetectionDataset, parts: Sequence[SplitData]) -> SplitData:
    """What a training would take: of a dataset without splits, those images that the division gives it."""
    if dataset.pool is None or all(data.name != dataset.pool for data in parts):
        return training_split(parts) or parts[0]
    data = SplitData.of(dataset.training_part())
    check_geometry(data)
    return data


def _split_names(dataset: DetectionDataset, splits: Sequence[str]) -> list[str]:
    """The dataset's own names of the wanted splits, training first."""
    names = list(dataset.own_splits)
    if splits:
        found = {split: dataset.layout.own_split(split) for split in splits}
        unknown = [split for split, name in found.items() if name is None]
        if unknown:
            raise FileNotFoundError(f"{dataset.root}: no split {unknown[0]!r} of its own; there is {', '.join(names)}")
        names = [name for name in found.values() if name is not None]
    order = ("train", None, "val", "test")
    return sorted(dict.fromkeys(names), key=lambda name: (order.index(split_role(name)), name))
