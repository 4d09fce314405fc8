"""The page that compares two detectors on the same images."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from deformable_detr.evaluation.comparison import Comparison, ImageChange, compare
from deformable_detr.evaluation.error_types import ErrorType
from deformable_detr.evaluation.metrics import percent
from deformable_detr.visualize.pages.error_images import caption, draw_errors
from deformable_detr.visualize.pages.page import embed_image, write_page
from deformable_detr.visualize.pages.report import ERROR_LEGEND, Report, span

VERDICTS = {
    "better": "is better: the whole interval of the difference of AP is above 0",
    "worse": "is worse: the whole interval of the difference of AP is below 0",
    "undecided": "is neither better nor worse for certain: the interval of the difference of AP holds 0",
}
METRICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar_100")


@dataclass(frozen=True, eq=False)
class ComparisonReport:
    """Two reports on the same images, side by side.

    ```python
    ComparisonReport(first.analyze("my_data"), second.analyze("my_data"), names=("first", "second")).save("comparison")
    ```
    """

    first: Report
    second: Report
    names: tuple[str, str]
    """What the two detectors are called."""

    shown: int = 6
    """How many images that got better are drawn, and how many that got worse."""

    @cached_property
    def comparison(self) -> Comparison:
        """The data."""
        return compare(self.first.analysis, self.second.analysis)

    def save(self, folder: str | Path) -> Path:
        """Write `compare.html` (complete in itself) and `compare.json`.

        Returns:
            The path of the page.

        Raises:
            ValueError: the reports are not about the same images and classes.
        """
        found = self.comparison
        found.save_json(Path(folder) / "compare.json")
        return write_page(
            Path(folder) / "compare.html",
            "comparison.html",
            title=f"{self.names[1]} compared with {self.names[0]}",
            lead=f"On {self.second.title}: {self.names[1]} {VERDICTS[found.verdict]}.",
            names=self.names,
            draws=len(found.difference.aps),
            metrics=list(self._metric_rows()),
            classes=list(self._class_rows()),
            errors=list(self._error_rows()),
            legend=ERROR_LEGEND,
            improved=list(self._images(found.improved[: self.shown])),
            worsened=list(self._images(found.worsened[: self.shown])),
            num_improved=len(found.improved),
            num_worsened=len(found.worsened),
        )

    def _metric_rows(self) -> Iterator[tuple[str, ...]]:
        first, second = self.first.analysis, self.second.analysis
        for name in METRICS:
            values = getattr(first.metrics, name), getattr(second.metrics, name)
            interval = span(getattr(self.comparison.difference, name)) if name in METRICS[:3] else ""
            yield (name[:2].upper() + name[2:].replace("_", " "), *_change(*values), interval)
        for name in ("precision", "recall", "f1"):
            yield (name.replace("f", "F"), *_change(getattr(first.point, name), getattr(second.point, name)), "")

    def _class_rows(self) -> Iterator[tuple[object, ...]]:
        first, second = self.first.analysis.metrics.per_class, self.second.analysis.metrics.per_class
        for one, other, interval in zip(first, second, self.comparison.difference.per_class, strict=True):
            yield (one.name, one.num_objects, *_change(one.ap, other.ap), span(interval))

    def _error_rows(self) -> Iterator[tuple[object, ...]]:
        first, second = self.first.analysis, self.second.analysis
        for kind in ErrorType:
            yield (str(kind), first.counts[kind], second.counts[kind], f"{second.counts[kind] - first.counts[kind]:+d}")
        for name in ("false_positives", "false_negatives"):
            one, other = getattr(first.point, name), getattr(second.point, name)
            yield (f"all {name.replace('_', ' ')}", one, other, f"{other - one:+d}")

    def _images(self, changes: Iterable[ImageChange]) -> Iterator[dict[str, Any]]:
        names = self.second.analysis.confusion.names
        for change in changes:
            pixels = self.second.read_image(change.image_id)
            sides = [draw_errors(errors, pixels, names) for errors in (change.first, change.second)]
            yield {
                "name": self.second.image_name(change.image_id),
                "change": f"{change.error_mass:+.2f}",
                "captions": [caption(errors) or "no errors" for errors in (change.first, change.second)],
                "drawings": [embed_image(side["predictions"], longest=620) for side in sides],
                "ground_truth": embed_image(sides[1]["ground_truth"], longest=620),
            }


def _change(first: float, second: float) -> tuple[str, str, str]:
    """Both values in percent and their difference in points."""
    difference = percent(second - first)
    return percent(first), percent(second), difference if difference.startswith(("–", "-")) else f"+{difference}"
