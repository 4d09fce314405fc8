"""The options of `deformable-detr predict`, for images and for videos."""

from dataclasses import dataclass, field
from typing import Any, Literal

from deformable_detr.cli.command import FOLDER, needs
from deformable_detr.cli.detector_options import DetectorOptions


@dataclass(frozen=True, kw_only=True)
class PredictOptions(DetectorOptions):
    """Options of the command."""

    source: list[str]
    """Images: files, folders, patterns in quotes. Or videos, camera numbers, addresses."""

    precision: Literal["fp32", "bf16", "fp16", "auto"] = "auto"
    """Arithmetic of the model; `auto` takes bf16 where a measurement shows it to be 1.2 times as fast, on a CPU only with AMX."""

    threshold: float | None = None
    """Smallest score of a detection, in [0, 1]; lower finds more, and more that is wrong. Left out: for each class the one that is
    stored with the weights (the best F1 of the last evaluation in training, or of `evaluate --save-thresholds`), else 0.5."""

    classes: list[str] | None = None
    """Only objects of these classes: their names, one after the other."""

    output: str = field(default="runs/predict", metadata=FOLDER)
    """Folder for the drawn images and predictions.json; files of the same names are replaced."""

    json: str | None = None
    """The JSON file, if it is not to be predictions.json in the output folder."""

    draw: bool = True
    """Write the images with boxes, not the JSON alone."""

    on_error: Literal["raise", "skip"] = "raise"
    """What an unreadable image does: end with an error that names it, or be left out with a warning."""

    tiles: int | None = None
    """For images far larger than the model's input: divide them into squares of this many pixels and merge the detections."""

    tile_overlap: float | None = field(default=None, metadata=needs("tiles"))
    """Share of a tile's side that neighbouring tiles have in common. Default: 0.2."""

    every: int = 1
    """Videos: take every N-th frame."""

    track: bool = False
    """Videos: follow the objects: each gets a number, and a trace of where it came from."""

    def predict_settings(self) -> dict[str, Any]:
        """Keywords for `Detector.iterate`."""
        names = ("batch_size", "top_k", "classes", "tiles", "tile_overlap")
        return {name: getattr(self, name) for name in names}
