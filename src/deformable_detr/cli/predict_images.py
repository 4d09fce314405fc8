"""`deformable-detr predict` on images: drawn, and as JSON in COCO's format."""

import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from rich.table import Table

from deformable_detr.categories import Categories
from deformable_detr.cli.predict import PredictOptions, check_drawings, detection_records
from deformable_detr.cli.screen import Finish, progress
from deformable_detr.data.images import is_address
from deformable_detr.data.writing import free_name
from deformable_detr.detector import join_processes
from deformable_detr.files import write_json
from deformable_detr.inference import Result
from deformable_detr.inference.predictor import choose_device
from deformable_detr.inference.sources import list_all
from deformable_detr.pipeline import OrderedPool
from deformable_detr.visualize.drawing.detections import draw_detections, save_drawing

DRAWING_THREADS = 2


def predict_images(options: PredictOptions) -> None:
    """Predict on all images, shared out over the processes; the first one writes the JSON and shows what was found."""
    if options.track or options.every != 1:
        raise ValueError(f"--{'track' if options.track else 'every'} is for videos, and {options.source[0]} is none")
    paths = list_all(options.source)
    targets = drawing_paths(paths, Path(options.output)) if options.draw else {}
    json_path = Path(options.json or Path(options.output) / "predictions.json")
    check_drawings(targets.items(), json_path)
    state = join_processes(choose_device(options.device))
    share = paths if state is None else paths[state.process_index :: state.num_processes]
    first = state is None or state.is_main_process
    detector = options.open()
    results = detector.iterate(share, options.threshold, on_error=options.on_error, **options.predict_settings())
    collected = CocoPredictions(detector.categories)
    began = time.perf_counter()
    with progress("predicting", hidden=not first) as bar, OrderedPool(DRAWING_THREADS, 4 * DRAWING_THREADS, name="draw") as pool:
        for result in bar.track(results, total=len(share)):
            collected.add(result)
            if (source := result.path or result.name) in targets:
                pool.submit(_draw, result, targets[source])
    if state is not None:
        collected.merge_processes([str(path) for path in paths])
    if first:
        with Finish() as finish:
            finish.show(collected.table(len(paths), time.perf_counter() - began))
            finish.show(*([f"images: {options.output}"] if options.draw else []))
            finish.write(json_path, lambda path: write_json(path, collected.record()))


def _draw(result: Result, path: Path) -> None:
    save_drawing(path, draw_detections(result.image, result.shown))


def drawing_paths(sources: Sequence[str | Path], output: Path) -> dict[str | Path, Path]:
    """Where each image is drawn: its own name in the output folder, with a number where several have the same."""
    targets: dict[str | Path, Path] = {}
    taken: set[str] = set()
    for source in dict.fromkeys(sources):
        path = source if isinstance(source, Path) else Path(urlsplit(source).path)
        suffix = ".jpg" if path.suffix.lower() in (".jpg", ".jpeg") else ".png"
        targets[source] = output / free_name(path.stem + suffix, taken)
    return targets


class CocoPredictions:
    """Collects detections in COCO's format."""

    def __init__(self, categories: Categories) -> None:
        self.categories = categories
        self.images: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []

    def add(self, result: Result) -> None:
        """Take in one image with its detections."""
        height, width = result.image_size
        left, top, right, bottom = result.detections.xyxy.astype(np.float64).T
        areas = ((right - left) * (bottom - top)).tolist()
        found = zip(detection_records(result.detections), areas, strict=True)
        annotations = [{**record, "area": round(area, 2), "iscrowd": 0} for record, area in found]
        self.images.append(({"file_name": result.name, "width": width, "height": height}, annotations))

    def merge_processes(self, names: Sequence[str]) -> None:
        """Share among all processes of `torch.distributed`; every process must call it. `names` gives the order."""
        from accelerate.utils import gather_object

        place = {name: index for index, name in enumerate(names)}
        self.images = sorted(gather_object(self.images), key=lambda entry: place[entry[0]["file_name"]])

    def record(self) -> dict[str, Any]:
        """Images, annotations (both numbered from 1) and categories, for JSON.

        File names are relative to `image_dir` of `info`: the folder that contains all images, directly or in subfolders. Addresses
        stay as they are.
        """
        names = [image["file_name"] for image, _ in self.images]
        files = {name: Path(name).absolute() for name in names if not is_address(name)}
        image_dir = Path(os.path.commonpath([path.parent for path in files.values()])) if files else Path.cwd()
        relative = {name: path.relative_to(image_dir).as_posix() for name, path in files.items()}
        images = [
            {"id": number, **image, "file_name": relative.get(name, name)}
            for number, (name, (image, _)) in enumerate(zip(names, self.images, strict=True), 1)
        ]
        found = [{"image_id": number, **entry} for number, (_, entries) in enumerate(self.images, 1) for entry in entries]
        annotations = [{"id": number, **entry} for number, entry in enumerate(found, 1)]
        categories = [{"id": i, "name": name} for i, name in zip(self.categories.ids, self.categories.names, strict=True)]
        return {"info": {"image_dir": str(image_dir)}, "images": images, "annotations": annotations, "categories": categories}

    def table(self, num_images: int, seconds: float) -> Table:
        """Objects and images per class, most frequent first; `num_images` counts the unreadable ones, too."""
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
