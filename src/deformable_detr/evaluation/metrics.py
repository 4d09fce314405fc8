"""COCO's metrics, of all classes together and of each; as JSON, and as a table for the screen."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from deformable_detr.files import write_json


@dataclass(frozen=True)
class ClassMetrics:
    """The metrics of one class."""

    name: str
    """The name of the class."""

    ap: float
    """Average precision, averaged over the IoU thresholds .50, .55 … .95; NaN for a class without objects."""

    ap50: float
    """Average precision at IoU .50; NaN for a class without objects."""

    num_objects: int
    """Objects of this class in the evaluated images, crowd regions not counted."""

    precision: tuple[float, ...] = field(default=(), repr=False)
    """Precision at recall 0, .01 … 1 and IoU .50: the curve under which `ap50` is the area. Empty for a class without objects."""

    f1: float = math.nan
    """The largest F1, the harmonic mean of precision and recall, at IoU .50; NaN for a class without objects."""

    threshold: float = math.nan
    """The score threshold that gives `f1`."""


@dataclass(frozen=True)
class Metrics:
    """COCO's twelve metrics, each in [0, 1], or NaN without objects; and the metrics of each class."""

    ap: float
    """Mean over the classes of the average precision at IoU .50, .55 … .95: COCO's main metric."""

    ap50: float
    """The same at IoU .50."""

    ap75: float
    """The same at IoU .75."""

    ap_small: float
    """AP of objects below 32 x 32 pixels."""

    ap_medium: float
    """AP of objects from 32 x 32 to 96 x 96 pixels."""

    ap_large: float
    """AP of objects above 96 x 96 pixels."""

    ar_1: float
    """Recall, averaged over classes and IoU thresholds, with one detection per class and image: the highest-scored."""

    ar_10: float
    """The same with ten detections."""

    ar_100: float
    """The same with a hundred detections."""

    ar_small: float
    """`ar_100` of objects below 32 x 32 pixels."""

    ar_medium: float
    """`ar_100` of objects from 32 x 32 to 96 x 96 pixels."""

    ar_large: float
    """`ar_100` of objects above 96 x 96 pixels."""

    per_class: tuple[ClassMetrics, ...]
    """One entry for each category of the annotation file, in the order of the ids."""

    num_images: int
    """How many images were evaluated."""

    thresholds: tuple[float, ...] | None = field(default=None, repr=False)
    """The score threshold with the best F1 for each label of the model (not of the file), for `Metadata.thresholds`. None:
    there is no true positive. Left out by :meth:`to_dict`, where each class has its own."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, None for NaN; without the curves of the classes."""
        names = [item.name for item in fields(self) if item.name not in ("per_class", "thresholds")]
        of_class = ("name", "ap", "ap50", "f1", "threshold", "num_objects")
        return record_of(self, names) | {"per_class": [record_of(entry, of_class) for entry in self.per_class]}

    def save_json(self, path: str | Path) -> None:
        """Write :meth:`to_dict` to a file."""
        write_json(path, self.to_dict(), indent=2)

    def table(self, per_class: bool = True) -> Group:
        """The metrics in percent, ready for `rich.print`.

        Args:
            per_class: add a row for each class.
        """
        precision = self._row_table(f"Average precision on {self.num_images} images (%)", "ap", ("", "50", "75"))
        recall = self._row_table("Average recall (%)", "ar", ("_1", "_10", "_100"))
        return Group(precision, recall, *([self._class_table()] if per_class else []))

    def _row_table(self, title: str, kind: str, first: tuple[str, ...]) -> Table:
        names = [kind + suffix for suffix in (*first, "_small", "_medium", "_large")]
        table = Table(title=title, title_justify="left")
        for name in names:
            table.add_column(name[:2].upper() + name[2:].replace("_", " "), justify="right")
        table.add_row(*(percent(getattr(self, name)) for name in names))
        return table

    def _class_table(self) -> Table:
        table = Table("class", title="Per class (%)", title_justify="left")
        for heading in ("AP", "AP50", "best F1", "at score", "objects"):
            table.add_column(heading, justify="right")
        for entry in self.per_class:
            threshold = "–" if math.isnan(entry.threshold) else f"{entry.threshold:.2f}"
            numbers = (percent(entry.ap), percent(entry.ap50), percent(entry.f1), threshold, str(entry.num_objects))
            table.add_row(Text(entry.name), *numbers)  # as it is, whatever looks like markup in it
        return table


def percent(value: float) -> str:
    """`0.5` → `50.0`; a dash for NaN."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def record_of(item: object, names: Iterable[str]) -> dict[str, Any]:
    """Some attributes of an object, for JSON, see :func:`without_nan`."""
    return {name: without_nan(getattr(item, name)) for name in names}


def without_nan(value: Any) -> Any:
    """A number, an array, or dicts and sequences of them, for JSON, which has neither NaN nor infinity: None instead."""
    if isinstance(value, Mapping):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return without_nan(value.tolist())
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
