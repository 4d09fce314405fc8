"""The report on an evaluation: an analysis, its figures, and the page that explains them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from deformable_detr.evaluation.advice import advise
from deformable_detr.evaluation.analysis import Analysis
from deformable_detr.evaluation.bootstrap import Interval
from deformable_detr.evaluation.error_types import ErrorType
from deformable_detr.evaluation.metrics import percent
from deformable_detr.files import short_stem
from deformable_detr.structures import ImageId
from deformable_detr.visualize.drawing.detections import draw_grid, save_drawing
from deformable_detr.visualize.figures import save_figure
from deformable_detr.visualize.pages.error_images import TRUE_COLOR, caption, draw_errors
from deformable_detr.visualize.pages.page import embed_figure, embed_image, write_page
from deformable_detr.visualize.pages.report_figures import (
    ERROR_COLORS,
    MOST_CLASSES,
    draw_calibration,
    draw_confusion,
    draw_error_types,
    draw_f1_curves,
    draw_pr_curves,
)

ORIGINS = {
    "given": "the thresholds stored with the weights, which predict uses",
    "found here": "the thresholds that maximise F1 on this very split (the weights have none of their own), so that precision, "
    "recall and F1 are slightly optimistic",
    "default": "a threshold of 0.5, since there is no true positive from which to derive a better one",
}
ERROR_LEGEND = [
    ("true positive, or detected object", TRUE_COLOR),
    *(("false negative" if kind is ErrorType.MISSED else str(kind), color) for kind, color in ERROR_COLORS.items()),
]
"""Colours of the drawings."""

CLASS_COLUMNS = ("class", "objects", "AP", "95 % interval", "AP50", "threshold", "precision", "recall", "F1", "TP", "FP", "FN")
ALT_TEXTS = {
    "pr_curves.png": "precision over recall at IoU .50, one curve per class; the numbers are in the table above and in report.json",
    "f1_curves.png": "F1 over the score threshold, one curve per class; the thresholds are in the table above",
    "calibration.png": "precision of the detections in each bin of scores, and their number; the numbers are in report.json",
    "confusion.png": "confusion matrix; the most frequent confusions are in the table below, all counts in report.json",
    "error_types.png": "bars: gain of AP50 and number of errors of each type; the numbers are in report.json",
}


@dataclass(frozen=True, eq=False)
class Report:
    """An analysis with what is needed to show it.

    ```python
    report = detector.analyze("path/to/dataset")
    report.analysis.point.f1, report.analysis.errors.gains   # the data
    report.save("report")                                    # report.html, report.json, the figures as PNG, worst/
    ```
    """

    analysis: Analysis
    """The data."""

    title: str
    """Heading of the page: what was evaluated on what."""

    read_image: Callable[[ImageId], Tensor]
    """Image id → `[3, H, W]` uint8 RGB, the pixels that the boxes refer to."""

    image_name: Callable[[ImageId], str]
    """Image id → the name of its file."""

    worst: int = 12
    """How many of the worst images to show."""

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """File name → figure."""
        return {
            "pr_curves.png": draw_pr_curves(self.analysis.metrics, self.analysis.points),
            "f1_curves.png": draw_f1_curves(self.analysis.curves, self.analysis.points),
            "calibration.png": draw_calibration(self.analysis.calibration),
            "confusion.png": draw_confusion(self.analysis.confusion),
            "error_types.png": draw_error_types(self.analysis),
        }

    def save(self, folder: str | Path) -> Path:
        """Write `report.html` (complete in itself), `report.json`, the figures, and the worst images under `worst/`.

        Those of an earlier report are replaced.

        Returns:
            The path of the page.
        """
        folder = Path(folder)
        self.analysis.save_json(folder / "report.json")
        for name, figure in self.figures.items():
            save_figure(figure, folder / name)
        names = "[0-9][0-9]-*.png", "[0-9][0-9][0-9]-*.png"
        old = {path for name in names for path in (folder / "worst").glob(name)}
        for number, (name, _, drawings) in enumerate(self.worst_images, 1):
            sheet = draw_grid(list(drawings.values()), 2, titles=("predictions", "ground truth"))
            old.discard(save_drawing(folder / "worst" / f"{number:02d}-{short_stem(name)}.png", sheet))
        for path in old:
            path.unlink()
        return self.save_html(folder / "report.html")

    def save_html(self, path: str | Path) -> Path:
        """Write the page; figures and images are inside it, and it opens without a network."""
        analysis, metrics = self.analysis, self.analysis.metrics
        total = len(analysis.confusion.names)
        return write_page(
            path,
            "report.html",
            title=self.title,
            lead=f"{metrics.num_images} images, {analysis.point.num_objects} objects, {len(metrics.per_class)} classes.",
            tiles=list(self._tiles()),
            thresholds_origin=ORIGINS[analysis.thresholds_from],
            advice=advise(analysis),
            class_columns=CLASS_COLUMNS,
            classes=list(self._class_rows()),
            draws=len(analysis.bootstrap.aps),
            calibration_error=percent(analysis.calibration.error),
            figures={name: embed_figure(figure, ALT_TEXTS[name]) for name, figure in self.figures.items()},
            left_out=total if total > MOST_CLASSES else 0,
            confusions=[
                (found.ground_truth, found.confused_with, found.count, percent(found.share))
                for found in analysis.confusion.confusions(15)
            ],
            legend=ERROR_LEGEND,
            worst_images=[
                {"name": name, "caption": text, **{side: embed_image(pixels, longest=760) for side, pixels in drawings.items()}}
                for name, text, drawings in self.worst_images
            ],
        )

    @cached_property
    def worst_images(self) -> list[tuple[str, str, dict[str, np.ndarray]]]:
        """Name, caption and drawings (see :func:`draw_errors`) of the images with the largest error mass."""
        names = self.analysis.confusion.names
        chosen = [image for image in self.analysis.images if image.error_mass > 0][: self.worst]
        ids = [image.image.image_id for image in chosen]
        return [
            (self.image_name(i), caption(image), draw_errors(image, self.read_image(i), names))
            for i, image in zip(ids, chosen, strict=True)
        ]

    def _tiles(self) -> Iterator[tuple[str, str, str]]:
        """Name, value and confidence interval of the main numbers."""
        metrics, point = self.analysis.metrics, self.analysis.point
        for name in ("ap", "ap50", "ap75"):
            yield name.upper(), percent(getattr(metrics, name)), span(getattr(self.analysis.bootstrap, name))
        yield from ((name, percent(getattr(point, name.lower())), "") for name in ("precision", "recall", "F1"))
        for name in ("ap_small", "ap_medium", "ap_large", "ar_1", "ar_10", "ar_100"):
            yield name[:2].upper() + name[2:].replace("_", " "), percent(getattr(metrics, name)), ""

    def _class_rows(self) -> Iterator[tuple[object, ...]]:
        analysis = self.analysis
        for entry, point, interval in zip(analysis.metrics.per_class, analysis.points, analysis.bootstrap.per_class, strict=True):
            yield (
                *(entry.name, entry.num_objects, percent(entry.ap), span(interval), percent(entry.ap50)),
                f"{point.threshold:.3f}",
                *(percent(value) for value in (point.precision, point.recall, point.f1)),
                *(point.true_positives, point.false_positives, point.false_negatives),
            )


def span(interval: Interval) -> str:
    """An interval in percent, such as `52.1 – 60.3`; a dash for NaN."""
    return "–" if np.isnan(interval.low) else f"{percent(interval.low)} – {percent(interval.high)}"
