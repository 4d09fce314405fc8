"""Two detectors on the same images: which one is better, for which classes, on which images, and whether that may be chance."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deformable_detr.evaluation.analysis import Analysis
from deformable_detr.evaluation.bootstrap import Bootstrap
from deformable_detr.evaluation.error_types import ImageErrors
from deformable_detr.files import write_json
from deformable_detr.structures import ImageId

Verdict = Literal["better", "worse", "undecided"]


@dataclass(frozen=True, eq=False)
class ImageChange:
    """The errors of both detectors in one image."""

    first: ImageErrors
    second: ImageErrors

    @property
    def image_id(self) -> ImageId:
        """Of the image."""
        return self.first.image.image_id

    @property
    def error_mass(self) -> float:
        """Change of the error mass; below 0 the second detector is better here."""
        return self.second.error_mass - self.first.error_mass


@dataclass(frozen=True, eq=False)
class Comparison:
    """What :func:`compare` gives."""

    first: Analysis
    second: Analysis

    difference: Bootstrap
    """AP of the second less AP of the first, draw by draw of the same images."""

    images: tuple[ImageChange, ...]
    """All images, the one that has gained most first."""

    @property
    def verdict(self) -> Verdict:
        """Whether the second detector is better: `undecided` where the interval of the difference of AP holds 0."""
        low, high = self.difference.ap
        return "better" if low > 0 else "worse" if high < 0 else "undecided"

    @property
    def improved(self) -> tuple[ImageChange, ...]:
        """The images on which the second detector is better, the largest change first."""
        return tuple(image for image in self.images if image.error_mass < 0)

    @property
    def worsened(self) -> tuple[ImageChange, ...]:
        """The images on which it is worse, the largest change first."""
        return tuple(image for image in reversed(self.images) if image.error_mass > 0)

    def to_dict(self) -> dict[str, Any]:
        """A plain dict, for JSON; NaN becomes None."""
        both = [analysis.metrics.to_dict() for analysis in (self.first, self.second)]
        intervals = (interval.to_list() for interval in self.difference.per_class)
        return {
            "verdict": self.verdict,
            "first": both[0],
            "second": both[1],
            "difference": self.difference.to_dict(),
            "classes": [
                {"name": one["name"], "first": one["ap"], "second": other["ap"], "interval": interval}
                for one, other, interval in zip(both[0]["per_class"], both[1]["per_class"], intervals, strict=True)
            ],
            "images": [{"image_id": image.image_id, "error_mass": round(image.error_mass, 4)} for image in self.images],
        }

    def save_json(self, path: str | Path) -> None:
        """Write :meth:`to_dict` to a file."""
        write_json(path, self.to_dict(), indent=1)


def compare(first: Analysis, second: Analysis) -> Comparison:
    """Compare two detectors that were evaluated on the same images.

    Args:
        first: the one to compare with.
        second: the one that is judged.

    Raises:
        ValueError: not the same images or classes.
    """
    if first.confusion.names != second.confusion.names:
        raise ValueError("only detectors that were evaluated with the same annotation file can be compared: the classes differ")
    difference = second.bootstrap.minus(first.bootstrap)
    before = {errors.image.image_id: errors for errors in first.images}
    changes = [ImageChange(before[errors.image.image_id], errors) for errors in second.images]
    return Comparison(first, second, difference, tuple(sorted(changes, key=lambda image: image.error_mass)))
