"""`deformable-detr predict`: objects in images and videos."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deformable_detr.cli.command import FOLDER, Command, needs
from deformable_detr.cli.detector_options import DetectorOptions

if TYPE_CHECKING:
    from collections.abc import Collection

    import supervision as sv

EXAMPLES = """\
  deformable-detr predict runs/first street.jpg                            drawn to runs/predict/street.jpg
  deformable-detr predict runs/first photos/ --batch-size 8                all images of a folder
  deformable-detr predict runs/first "photos/**/*.jpg" --threshold 0.3     a pattern, with subfolders
  deformable-detr predict runs/first a.jpg b.jpg --classes person dog --output found
  deformable-detr predict runs/first photos/ --no-draw                     the JSON alone
  deformable-detr predict detector.onnx photos/                            an exported file, in onnxruntime
  deformable-detr predict runs/first aerial.tif --tiles 640                small objects in a large image
  deformable-detr predict runs/first clip.mp4 --track                      a video: boxes, numbers, traces
  deformable-detr predict runs/first 0                                     a camera, until Ctrl-C; also rtsp://…
  torchrun --nproc-per-node 4 -m deformable_detr predict runs/first photos/     the images shared out over 4 GPUs
"""


@dataclass(frozen=True, kw_only=True)
class PredictOptions(DetectorOptions):
    """Detect objects in images. Each image is written with boxes and labels drawn on it, and predictions.json holds all
    detections in COCO's format: images, categories, and annotations with bbox (x, y, width, height in pixels) and score.

    Also in videos, cameras and network streams: drawn to NAME.mp4, with NAME.json beside it. Ctrl-C ends both properly.
    """

    source: list[str]
    """Images: files, folders, patterns in quotes. Or videos, camera numbers, addresses."""

    precision: Literal["fp32", "bf16", "fp16", "auto"] = "auto"
    """Arithmetic of the model; `auto` takes bf16 where a measurement shows it to be 1.2 times as fast, on a CPU only
    with AMX or AVX-512 BF16."""

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


def run(options: PredictOptions) -> None:
    """Predict on images or on videos."""
    from deformable_detr.inference.sources import is_video

    if any(is_video(source) for source in options.source):
        from deformable_detr.cli.predict_videos import predict_videos

        predict_videos(options)
    else:
        from deformable_detr.cli.predict_images import predict_images

        predict_images(options)


def check_drawings(drawings: "Collection[tuple[str | Path, Path]]", json_path: Path | None) -> None:
    """Refuse drawings (each beside the image or video that it is of) that would replace one of these, and JSON in place of one.

    Raises:
        ValueError: the message names what would be lost.
    """
    sources = {Path(source).resolve(): source for source, _ in drawings}
    for source, target in drawings:
        if target.resolve() in sources:
            raise ValueError(f"the drawing of {source} would replace {sources[target.resolve()]}; choose another --output")
    if json_path is not None and json_path.resolve() in {target.resolve() for _, target in drawings}:
        raise ValueError(f"the JSON would replace the drawing {json_path}; choose another --json")


def detection_records(found: "sv.Detections") -> list[dict[str, Any]]:
    """Category, box (left, top, width, height in pixels) and score of each detection, for JSON."""
    scores = found.confidence if found.confidence is not None else []
    return [
        {
            "category_id": int(category_id),
            "bbox": [round(value, 2) for value in (left, top, right - left, bottom - top)],
            "score": round(float(score), 5),
        }
        for (left, top, right, bottom), score, category_id in zip(
            found.xyxy.tolist(), scores, found.data["category_id"], strict=True
        )
    ]


COMMAND = Command("predict", PredictOptions, run, EXAMPLES)
