"""How good is it, really: an analysis with its figures, and the page that explains them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from deformable_detr.evaluation.advice import advise
from deformable_detr.evaluation.analysis import Analysis
from deformable_detr.structures import ImageId
from deformable_detr.version import __version__
from deformable_detr.visualize.drawing.detections import draw_grid, save_drawing
from deformable_detr.visualize.figures import save_figure
from deformable_detr.visualize.pages.confusion_figure import MOST_CLASSES, draw_confusion
from deformable_detr.visualize.pages.curve_figures import draw_f1_curves, draw_pr_curves
from deformable_detr.visualize.pages.error_figure import ERROR_COLORS, draw_error_types
from deformable_detr.visualize.pages.error_images import RIGHT_COLOR, caption, draw_mistakes
from deformable_detr.visualize.pages.report_parts import (
    Tile,
    bullets,
    figure_image,
    image_pair,
    legend,
    paragraph,
    section,
    table,
    tiles,
    write_page,
)

ORIGINS = {
    "given": "the thresholds stored with the weights, which predict uses",
    "found here": "the thresholds that maximise F1 on this very split (the weights have none of their own), so precision, "
    "recall and F1 are a little too good",
    "default": "a threshold of 0.5, since nothing right was detected from which a better one could be found",
}


@dataclass(frozen=True, eq=False)
class Report:
    """An analysis, and what is needed to show it.

    ```python
    report = detector.analyze("path/to/dataset")
    report.analysis.point.f1, report.analysis.errors.gains   # the data
    report.save("report")                                    # report.html, report.json, the figures as PNG, worst/
    ```
    """

    analysis: Analysis
    """The data."""

    title: str
    """What was evaluated on what."""

    read_image: Callable[[ImageId], Tensor]
    """Image id → `[3, H, W]` uint8 RGB, the pixels that the boxes refer to."""

    image_name: Callable[[ImageId], str]
    """Image id → the name of its file."""

    worst: int = 12
    """How many of the worst images are shown."""

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """File name → figure."""
        return {
            "pr_curves.png": draw_pr_curves(self.analysis),
            "f1_curves.png": draw_f1_curves(self.analysis),
            "confusion.png": draw_confusion(self.analysis.confusion),
            "error_types.png": draw_error_types(self.analysis),
        }

    def save(self, folder: str | Path) -> Path:
        """Write `report.html` (complete in itself), `report.json`, the figures, and the worst images under `worst/`.

        Returns:
            The path of the page.
        """
        folder = Path(folder)
        self.analysis.save_json(folder / "report.json")
        for name, figure in self.figures.items():
            save_figure(figure, folder / name)
        for number, (name, _, drawings) in enumerate(self.worst_images, 1):
            sheet = draw_grid(drawings, 2, titles=("detected", "truth"))
            save_drawing(folder / "worst" / f"{number:02d}-{Path(name).stem}.png", sheet)
        return self.save_html(folder / "report.html")

    def save_html(self, path: str | Path) -> Path:
        """Write the page; figures and images are inside it, and it opens without a network."""
        metrics = self.analysis.metrics
        lead = f"{metrics.num_images} images, {self.analysis.point.num_objects} objects, {len(metrics.per_class)} classes."
        return write_page(Path(path), self.title, lead, list(self._sections()), f"deformable-detr {__version__}")

    @cached_property
    def worst_images(self) -> list[tuple[str, str, tuple[np.ndarray, np.ndarray]]]:
        """Name, caption and drawings of the images with the most error mass."""
        names = self.analysis.confusion.names
        chosen = [image for image in self.analysis.images if image.mass > 0][: self.worst]
        ids = [image.image.image_id for image in chosen]
        return [
            (self.image_name(i), caption(image), draw_mistakes(image, self.read_image(i), names))
            for i, image in zip(ids, chosen, strict=True)
        ]

    def _sections(self) -> Iterator[str]:
        analysis = self.analysis
        yield section("In short", self._tiles(), paragraph(_SHORT.format(origin=ORIGINS[analysis.thresholds_from])))
        yield section("What the numbers suggest", bullets(advise(analysis) or ("Nothing stands out.",)))
        yield section("Class by class", paragraph(_CLASSES), self._class_table())
        yield section("Precision over recall", self._figure("pr_curves.png"), paragraph(_PR), half=True)
        yield section("F1 over the threshold", self._figure("f1_curves.png"), paragraph(_F1), half=True)
        yield section("Kinds of mistakes", self._figure("error_types.png"), paragraph(_ERRORS))
        yield section(
            "What is taken for what", paragraph(_CONFUSION + self._left_out()), self._figure("confusion.png"), self._confusions()
        )
        yield section("The worst images", paragraph(_WORST), legend(_legend()), *(self._pairs()))

    def _figure(self, name: str) -> str:
        return figure_image(self.figures[name], name.removesuffix(".png").replace("_", " "))

    def _tiles(self) -> str:
        metrics, point = self.analysis.metrics, self.analysis.point
        first = [("AP", metrics.ap), ("AP50", metrics.ap50), ("AP75", metrics.ap75)]
        at_thresholds = [("precision", point.precision), ("recall", point.recall), ("F1", point.f1)]
        sizes = [("AP small", metrics.ap_small), ("AP medium", metrics.ap_medium), ("AP large", metrics.ap_large)]
        rows = [*first, *at_thresholds], [*sizes, ("AR 1", metrics.ar_1), ("AR 10", metrics.ar_10), ("AR 100", metrics.ar_100)]
        return "".join(tiles([Tile(_percent(value), name, main=name == "AP") for name, value in row]) for row in rows)

    def _class_table(self) -> str:
        columns = ("class", "objects", "AP", "AP50", "threshold", "precision", "recall", "F1", "right", "wrong", "not found")
        rows = [
            (
                *(entry.name, str(entry.num_objects), _percent(entry.ap), _percent(entry.ap50), f"{point.threshold:.3f}"),
                *(_percent(value) for value in (point.precision, point.recall, point.f1)),
                *(str(count) for count in (point.right, point.wrong, point.missed)),
            )
            for entry, point in zip(self.analysis.metrics.per_class, self.analysis.points, strict=True)
        ]
        return table(columns, rows, bars=(2, 3, 5, 6, 7))

    def _left_out(self) -> str:
        total = len(self.analysis.confusion.names)
        if total <= MOST_CLASSES:
            return ""
        return f" Of {total} classes those with the most mistakes are shown; what the others are taken for among themselves is not."

    def _confusions(self) -> str:
        rows = [
            (found.truth, found.detected, str(found.count), _percent(found.share))
            for found in self.analysis.confusion.confusions(15)
        ]
        if not rows:
            return paragraph("No object was taken for one of another class.")
        return table(("what is there", "taken for", "objects", "% of the class"), rows, bars=(3,))

    def _pairs(self) -> list[str]:
        pairs = [image_pair(name, text, *drawings) for name, text, drawings in self.worst_images]
        return pairs or [paragraph("There is no mistake at these thresholds.")]


def _percent(value: float) -> str:
    return "–" if np.isnan(value) else f"{100 * value:.1f}"


def _legend() -> list[tuple[str, str]]:
    return [("right, found", RIGHT_COLOR), *((str(kind), color) for kind, color in ERROR_COLORS.items())]


_SHORT = (
    "In percent. AP is COCO's main number: the area under precision over recall, averaged over the classes and over ten demands "
    "on the boxes (IoU .50 to .95). AP50 asks only for an overlap of half (IoU .50): how well objects are found; AP75 asks for "
    "well-placed boxes. AP needs no threshold. Precision (how many detections are right), recall (how many objects are found) "
    "and F1 (their harmonic mean) do; they are at IoU .50, for all classes counted together, with {origin}."
)
_CLASSES = (
    "AP and AP50 look at all detections; everything from the threshold on counts only detections whose score reaches it. "
    "“Wrong” are detections without an object of their class, duplicates included. A click on a heading sorts."
)
_PR = (
    "Each point of a line is a threshold: to the right more objects are found, upwards fewer detections are wrong. The area "
    "under the line is AP50; the dot is where the threshold lies. A line that ends before recall 1 means that the rest is not "
    "found at any score; a line that falls early means that some confident detections are wrong."
)
_F1 = (
    "The threshold of a class (dot) sits in the middle of the range where F1 is practically at its highest. A broad top means that "
    "the threshold hardly matters; a narrow one that it has to be chosen with care."
)
_ERRORS = (
    "Left: by how many points AP50 would rise if all mistakes of one kind were put right and nothing else (the kinds of TIDE, "
    "Bolya et al. 2020). Classification: good box, wrong name. Localisation: right name, loose box (IoU .1 to .5). Both: loose "
    "box, wrong name. Duplicate: the object was found already. Background: nothing is there. Missed: an object that nothing "
    "comes near. The gains do not add up. Middle: the gain without any wrong detection, and without any object that was not "
    "found. Right: how many there are among the detections that reach their threshold."
)
_CONFUSION = (
    "Rows are what is there, columns what it was taken for; each object is matched with at most one detection, whatever its class. "
    "Green is right. The last column are objects that were not detected, the last row detections where nothing is. The colour "
    "is the share of the row, in the last row that of the column."
)
_WORST = (
    "Left what was detected, right what is there. The order is by error mass: the scores of all wrong detections, and 1 for "
    "each object that was not found. Confident mistakes come first; not a few of them are mistakes of the annotation."
)
