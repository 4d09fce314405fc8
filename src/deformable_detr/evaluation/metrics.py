"""How good a detector is: COCO's numbers, for all classes together and for each; as JSON, and as a table for the screen."""

import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

NOT_A_NUMBER = float("nan")


@dataclass(frozen=True)
class ClassMetrics:
    """The numbers of one class."""

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

    f1: float = NOT_A_NUMBER
    """The largest F1, the harmonic mean of precision and recall, at IoU .50; NaN for a class without objects."""

    threshold: float = NOT_A_NUMBER
    """The score threshold that gives `f1`."""


@dataclass(frozen=True)
class Metrics:
    """COCO's twelve numbers, each in [0, 1], or NaN where there is nothing to find; and the numbers of each class."""

    ap: float
    """Mean over the classes of the average precision at IoU .50, .55 … .95: the main number."""

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
    """Recall, averaged over classes and thresholds, with the best detection of each class in each image alone."""

    ar_10: float
    """The same with the ten best."""

    ar_100: float
    """The same with the hundred best."""

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
    """For each label of the model (not of the file) the score threshold that maximises its F1, for `Metadata.thresholds`. None:
    nothing right was detected. Not in :meth:`to_dict`, where each class has its own."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, NaN as None; without the curves of the classes."""
        record: dict[str, Any] = {
            item.name: _none_for_nan(getattr(self, item.name))
            for item in fields(self)
            if item.name not in ("per_class", "thresholds")
        }
        record["per_class"] = [
            {
                "name": entry.name,
                "ap": _none_for_nan(entry.ap),
                "ap50": _none_for_nan(entry.ap50),
                "f1": _none_for_nan(entry.f1),
                "threshold": _none_for_nan(entry.threshold),
                "num_objects": entry.num_objects,
            }
            for entry in self.per_class
        ]
        return record

    def save_json(self, path: str | Path) -> None:
        """Write :meth:`to_dict` to a file, whose folder is made where it is missing."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def table(self, per_class: bool = True) -> Group:
        """The numbers in percent, ready for `rich.print`.

        Args:
            per_class: with a row for each class.
        """
        precision = _row_table(
            f"Average precision on {self.num_images} images (%)",
            {
                "AP": self.ap,
                "AP50": self.ap50,
                "AP75": self.ap75,
                "AP small": self.ap_small,
                "AP medium": self.ap_medium,
                "AP large": self.ap_large,
            },
        )
        recall = _row_table(
            "Average recall (%)",
            {
                "AR 1": self.ar_1,
                "AR 10": self.ar_10,
                "AR 100": self.ar_100,
                "AR small": self.ar_small,
                "AR medium": self.ar_medium,
                "AR large": self.ar_large,
            },
        )
        return Group(precision, recall, *([self._class_table()] if per_class else []))

    def _class_table(self) -> Table:
        table = Table("class", title="Per class (%)", title_justify="left")
        for heading in ("AP", "AP50", "best F1", "at score", "objects"):
            table.add_column(heading, justify="right")
        for entry in self.per_class:
            threshold = "–" if math.isnan(entry.threshold) else f"{entry.threshold:.2f}"
            numbers = (_percent(entry.ap), _percent(entry.ap50), _percent(entry.f1), threshold, str(entry.num_objects))
            table.add_row(entry.name, *numbers)
        return table


def _row_table(title: str, values: dict[str, float]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in values:
        table.add_column(heading, justify="right")
    table.add_row(*(_percent(value) for value in values.values()))
    return table


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _none_for_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
