"""`deformable-detr compare`: which of two detectors is better, where, and whether that may be chance."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deformable_detr.cli.command import FOLDER, POSITIONAL, Command
from deformable_detr.cli.detector_options import DetectorOptions
from deformable_detr.cli.screen import Finish, progress
from deformable_detr.schema import check_range

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deformable_detr.data.dataset import DetectionDataset
    from deformable_detr.detector import Detector

EXAMPLES = """\
  deformable-detr compare runs/first runs/second                            on the split `val` of the second run's dataset
  deformable-detr compare runs/first runs/second my_data --split test
  deformable-detr compare runs/first/weights/last.safetensors runs/first my_data --output last-and-best
"""


@dataclass(frozen=True, kw_only=True)
class CompareOptions(DetectorOptions):
    """Evaluate two detectors on the same images and compare them: AP with the confidence interval of the difference, each class,
    error types, and the images that got better or worse, drawn. Without DATASET the one that the second run was trained on is
    taken.
    """

    second: str
    """The detector that is judged: a run folder, or weights of any known format."""

    dataset: str | None = field(default=None, metadata=POSITIONAL)
    """The dataset, as for training. By default that of the second run."""

    split: str | None = None
    """Part of the dataset, as for `evaluate`."""

    num_workers: int = 2
    """Processes that read images. 0 reads in the main process."""

    shown: int = 6
    """How many images that got better are drawn, and how many that got worse."""

    output: str = field(default="runs/compare", metadata=FOLDER)
    """Folder of compare.html and compare.json."""


def run(options: CompareOptions) -> None:
    """Evaluate both, write the page, and show the result."""
    check_range(options, "shown")
    from deformable_detr.data.dataset import open_dataset
    from deformable_detr.evaluation.metrics import percent
    from deformable_detr.visualize.pages.comparison import ComparisonReport
    from deformable_detr.visualize.pages.report import span

    dataset, reports = open_dataset(options.dataset or dataset_of(options.second)), []
    detectors = {weights: replace(options, weights=weights).open() for weights in (options.weights, options.second)}
    check_comparable(detectors, dataset, options.split)
    for weights in (options.weights, options.second):
        detector = detectors[weights]
        with progress(f"evaluating {weights}") as bar:
            task = bar.add_task("", total=None)
            settings: dict[str, Any] = {name: getattr(options, name) for name in ("batch_size", "num_workers", "top_k")}
            settings["progress"] = lambda done, total, bar=bar, task=task: bar.update(task, completed=done, total=total)
            reports.append(detector.analyze(dataset, options.split, **settings))
    page = ComparisonReport(*reports, names=names_of(options.weights, options.second), shown=options.shown)
    found = page.comparison
    with Finish() as finish:
        finish.write(options.output, page.save)
        aps = [percent(analysis.metrics.ap) for analysis in (found.first, found.second)]
        finish.show(
            f"AP {aps[0]} → {aps[1]}, 95 % interval of the difference {span(found.difference.ap)} points: {found.verdict}",
            f"{len(found.improved)} images got better, {len(found.worsened)} got worse",
        )


def check_comparable(detectors: "Mapping[str, Detector]", dataset: "DetectionDataset", split: str | None) -> None:
    """Refuse before the evaluations, not after them, what cannot be compared.

    Raises:
        ValueError: one of them takes all classes of the dataset as one, and the other does not; or none of a detector's classes is
            in the dataset.
    """
    from deformable_detr.class_names import list_classes, match_classes
    from deformable_detr.data.loader import read_split

    single = {weights: detector.metadata.single_class for weights, detector in detectors.items()}
    if len({*single.values()}) > 1:
        one, other = sorted(single, key=lambda weights: not single[weights])
        raise ValueError(f"cannot compare: {one} was trained with all classes as one (single_class), {other} with each of them")
    data = next(iter(detectors.values())).metadata.evaluation_data()  # alike in what decides the classes
    there = read_split(dataset, split or dataset.evaluation_split(), data).annotations.categories
    for weights, detector in detectors.items():
        if not any(label is not None for label in match_classes(there, detector.categories)):
            own, others = (list_classes(zip(side.names, side.ids, strict=True)) for side in (detector.categories, there))
            raise ValueError(f"{weights} detects none of the classes of {dataset.path}: it knows {own}; the dataset has {others}")


def dataset_of(run_folder: str) -> str:
    """The dataset that a run was trained on.

    Raises:
        ValueError: the folder has no config.yaml.
    """
    from deformable_detr.settings import read_config

    config = Path(run_folder) / "config.yaml"
    if not config.is_file():
        raise ValueError(f"on which images? {run_folder} is no run folder that says so: give a dataset as the third argument")
    return read_config(config).dataset


def names_of(first: str, second: str) -> tuple[str, str]:
    """Short names of two paths that tell them apart."""
    names = Path(first).name, Path(second).name
    return names if names[0] != names[1] else (first, second)


COMMAND = Command("compare", CompareOptions, run, EXAMPLES)
