"""`deformable-detr predict`: objects in images, drawn and as COCO-format JSON; in videos, see `predict_video`."""

import json
import os
import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from deformable_detr.cli.options import DetectorOptions, log_to_screen, parse_options

if TYPE_CHECKING:
    from deformable_detr.categories import Categories
    from deformable_detr.inference import Predictor, Result

DESCRIPTION = """\
Find objects in images. Each image is written with boxes and labels drawn on it, and predictions.json holds all
detections in COCO's format: images, categories, and annotations with bbox (x, y, width, height in pixels) and score.

Also in videos, cameras and network streams: drawn to NAME.mp4, with NAME.json beside it. Ctrl-C ends both properly."""

EXAMPLES = """\
examples:
  deformable-detr predict runs/first street.jpg                            drawn to runs/predict/street.jpg
  deformable-detr predict runs/first photos/ --batch_size 8                all images of a folder
  deformable-detr predict runs/first "photos/**/*.jpg" --threshold 0.3     a pattern, with subfolders
  deformable-detr predict runs/first a.jpg b.jpg --classes person dog --output found
  deformable-detr predict runs/first photos/ --draw false                  the JSON alone
  deformable-detr predict detector.onnx photos/ --runtime onnx             an exported file, in onnxruntime
  deformable-detr predict runs/first aerial.tif --tiles 640                small objects in a large image
  deformable-detr predict runs/first clip.mp4 --track                      a video: boxes, numbers, traces
  deformable-detr predict runs/first 0                                     a camera, until Ctrl-C; also rtsp://…
  torchrun --nproc-per-node 4 -m deformable_detr predict runs/first photos/     the images shared out over 4 GPUs
"""


@dataclass(frozen=True)
class PredictOptions(DetectorOptions):
    """Options of the command."""

    weights: str = ""
    """The detector."""

    runtime: Literal["torch", "pt2", "onnx", "openvino"] = "torch"
    """What runs the network. All but `torch` take a file of `deformable-detr export`, and build no PyTorch model."""

    source: list[str] = field(default_factory=list)
    """The images."""

    threshold: float | None = None
    """Smallest score of a detection, in [0, 1]; lower finds more, and more that is wrong. Left out: for each class the one that is
    stored with the weights (the best F1 of the last evaluation in training, or of `evaluate --save_thresholds`), else 0.5."""

    classes: list[str] | None = None
    """Only objects of these classes: their names, one after the other."""

    output: str = "runs/predict"
    """Folder for the drawn images and predictions.json; what stands there under the same names is replaced."""

    json: str | None = None
    """The JSON file, if it is not to be predictions.json in the output folder."""

    draw: bool = True
    """Write the images with boxes. `false`: the JSON alone."""

    on_error: Literal["raise", "skip"] = "raise"
    """What an unreadable image does: end with an error that names it, or be left out with a warning."""

    tiles: int | None = None
    """For images far larger than the network's input: divide them into squares of so many pixels and merge what is found."""

    tile_overlap: float = 0.2
    """Share of a tile's side that neighbouring tiles have in common."""

    every: int = 1
    """Videos: take every so many frames."""

    track: bool = False
    """Videos: follow the objects: each gets a number, and a trace of where it came from."""

    def predict_settings(self) -> dict[str, Any]:
        """Keywords for `Detector.iterate`."""
        names = ("batch_size", "top_k", "classes", "tiles", "tile_overlap")
        return {name: getattr(self, name) for name in names}


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: what follows `deformable-detr predict`.

    Returns:
        The exit status.
    """
    options = parse_predict_options(argv)

    from deformable_detr.detector import join_processes
    from deformable_detr.inference.predictor import choose_device
    from deformable_detr.inference.sources import list_images
    from deformable_detr.inference.video import is_video

    log_to_screen()
    if any(is_video(source) for source in options.source):
        from deformable_detr.cli.predict_video import predict_videos

        return predict_videos(options)
    paths = [path for source in options.source for path in list_images(source)]
    targets = drawing_paths(paths, Path(options.output)) if options.draw else {}
    state = join_processes(choose_device(options.device))
    share = paths if state is None else paths[state.process_index :: state.num_processes]
    detector = load_detector(options)
    results = detector.iterate(share, options.threshold, on_error=options.on_error, **options.predict_settings())
    collected = CocoPredictions(detector.categories)
    first = state is None or state.is_main_process
    began = time.perf_counter()
    bar = Progress(
        TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True, disable=not first
    )
    with bar, Drawing() as drawing:
        for result in bar.track(results, total=len(share)):
            collected.add(result)
            if result.path in targets:
                drawing.draw(result, targets[result.path])
    if state is not None:
        collected.merge_processes([str(path) for path in paths])
    if first:
        _finish(options, collected, len(paths), time.perf_counter() - began)
    return 0


def load_detector(options: PredictOptions) -> "Predictor":
    """What the weights and the runtime ask for."""
    from deformable_detr.detector import Detector
    from deformable_detr.export import load_exported

    if options.runtime == "torch":
        return options.set_up(Detector.load(options.weights, **options.load_settings()))
    return options.set_up(load_exported(options.weights, options.runtime))


def _finish(options: PredictOptions, collected: "CocoPredictions", num_images: int, seconds: float) -> None:
    """Write the JSON, and say what was found and where everything is."""
    json_path = Path(options.json) if options.json else Path(options.output) / "predictions.json"
    collected.save(json_path)
    console = Console()
    console.print(collected.table(num_images, seconds))
    written = [f"images: {options.output}"] if options.draw else []
    console.print("\n".join([*written, f"detections: {json_path}"]), highlight=False, soft_wrap=True, markup=False)


def parse_predict_options(argv: Sequence[str]) -> PredictOptions:
    """The options of the command line; see :func:`~deformable_detr.cli.options.parse_options`."""
    return parse_options(
        PredictOptions,
        argv,
        command="predict",
        usage="WEIGHTS SOURCE [SOURCE ...] [--threshold SCORE] [--output FOLDER] [options]",
        description=DESCRIPTION,
        examples=EXAMPLES,
        arguments={
            "weights": {"help": "A run folder (its best weights), a weights file of any known format, or an exported file."},
            "source": {
                "nargs": "+",
                "help": "Files, folders (the images directly in them), patterns in quotes; or videos, camera numbers, addresses.",
            },
            "--track": {"action": "store_true", "help": "Videos: give each object a number, and draw where it came from."},
            "--classes": {"nargs": "+", "default": None, "help": "Only objects of these classes: their names."},
        },
    )


def drawing_paths(paths: Sequence[Path], output: Path) -> dict[Path, Path]:
    """Where each image is drawn: its own name in the output folder, with a number where several have the same.

    Raises:
        ValueError: a drawing would replace one of the images themselves.
    """
    originals = {path.resolve() for path in paths}
    targets: dict[Path, Path] = {}
    taken: set[str] = set()
    for path in dict.fromkeys(paths):
        suffix = ".jpg" if path.suffix.lower() in (".jpg", ".jpeg") else ".png"
        name, number = path.stem + suffix, 1
        while name.casefold() in taken:
            number += 1
            name = f"{path.stem}-{number}{suffix}"
        taken.add(name.casefold())
        targets[path] = output / name
        if targets[path].resolve() in originals:
            raise ValueError(f"the drawing of {path} would replace an image in {output}; choose another --output")
    return targets


class CocoPredictions:
    """Collects detections in COCO's format."""

    def __init__(self, categories: "Categories") -> None:
        self.categories = categories
        self.images: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []

    def add(self, result: "Result") -> None:
        """Take in one image with its detections."""
        height, width = result.image_size
        found = result.detections
        scores = found.confidence if found.confidence is not None else []
        annotations = [
            {
                "category_id": int(category_id),
                "bbox": [round(value, 2) for value in (left, top, right - left, bottom - top)],
                "area": round((right - left) * (bottom - top), 2),
                "iscrowd": 0,
                "score": round(float(score), 5),
            }
            for (left, top, right, bottom), score, category_id in zip(
                found.xyxy.tolist(), scores, found.data["category_id"], strict=True
            )
        ]
        self.images.append(({"file_name": result.name, "width": width, "height": height}, annotations))

    def merge_processes(self, names: Sequence[str]) -> None:
        """Share among all processes of `torch.distributed`; every process must call it. `names` gives the order."""
        from accelerate.utils import gather_object

        place = {name: index for index, name in enumerate(names)}
        self.images = sorted(gather_object(self.images), key=lambda entry: place[entry[0]["file_name"]])

    def record(self) -> dict[str, Any]:
        """Images, annotations (both numbered from 1) and categories, for JSON.

        File names are relative to `image_dir` of `info`: the folder that all images lie in, here or deeper.
        """
        paths = [Path(image["file_name"]).absolute() for image, _ in self.images]
        image_dir = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path.cwd()
        images = [
            {"id": number, **image, "file_name": path.relative_to(image_dir).as_posix()}
            for number, (path, (image, _)) in enumerate(zip(paths, self.images, strict=True), 1)
        ]
        found = [{"image_id": number, **entry} for number, (_, entries) in enumerate(self.images, 1) for entry in entries]
        annotations = [{"id": number, **entry} for number, entry in enumerate(found, 1)]
        categories = [{"id": i, "name": name} for i, name in zip(self.categories.ids, self.categories.names, strict=True)]
        return {"info": {"image_dir": str(image_dir)}, "images": images, "annotations": annotations, "categories": categories}

    def save(self, path: Path) -> None:
        """Write the JSON, making the folder where needed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.record(), ensure_ascii=False) + "\n", encoding="utf-8")

    def table(self, num_images: int, seconds: float) -> Table:
        """Objects and images per class, most frequent first.

        Args:
            num_images: how many there were, the unreadable ones too.
            seconds: how long it took.
        """
        names = dict(zip(self.categories.ids, self.categories.names, strict=True))
        objects = Counter(entry["category_id"] for _, entries in self.images for entry in entries)
        images = Counter(i for _, entries in self.images for i in {entry["category_id"] for entry in entries})
        skipped = num_images - len(self.images)
        title = f"{len(self.images)} images" + (f" ({skipped} skipped)" if skipped else "")
        table = Table(title=f"{title}, {len(self.images) / seconds:.1f} per second", title_justify="left", show_footer=True)
        table.add_column("class", "all")
        table.add_column("objects", str(objects.total()), justify="right")
        table.add_column("in images", str(sum(bool(entries) for _, entries in self.images)), justify="right")
        for category_id, count in objects.most_common():
            table.add_row(names[category_id], str(count), str(images[category_id]))
        return table


class Drawing:
    """Draws and writes images in threads while the network goes on; a few wait at most."""

    def __init__(self, num_threads: int = 2) -> None:
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="draw")
        self._pending: deque[Future[Path]] = deque()
        self._most_pending = 4 * num_threads

    def __enter__(self) -> "Drawing":
        return self

    def __exit__(self, *error: object) -> None:
        """Wait for all images, and raise what went wrong with one."""
        with self._pool:
            while self._pending and error[0] is None:
                self._pending.popleft().result()
            self._pool.shutdown(cancel_futures=True)

    def draw(self, result: "Result", path: Path) -> None:
        """Draw the detections of an image and write it to `path`."""
        from deformable_detr.visualize.drawing.detections import draw_detections, save_drawing

        self._pending.append(self._pool.submit(lambda: save_drawing(path, draw_detections(result.image, result.detections))))
        if len(self._pending) > self._most_pending:
            self._pending.popleft().result()
