"""The figures of `docs/inside.md`, from the detector that the demo trains.

python docs/inside_figures.py                        uses demo/run, and trains it first where there is none
python docs/inside_figures.py --weights runs/first --data my_data/val --image street.jpg --output figures
"""

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from deformable_detr import Detector, build_model
from deformable_detr.cli.__main__ import main as command_line
from deformable_detr.config import DataConfig
from deformable_detr.criterion.matcher import HungarianMatcher
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.images import read_image
from deformable_detr.data.loader import build_dataset
from deformable_detr.data.scenes import draw_scene
from deformable_detr.data.transforms import eval_transform
from deformable_detr.model.flatten import resize_padding_mask, valid_ratio
from deformable_detr.structures import ImageBatch
from deformable_detr.visualize import (
    Inside,
    look_inside,
    record_matching,
    view_assignment,
    view_journey,
    view_level_attention,
    view_matching,
    view_proposals,
    view_query_usage,
    view_refinement,
    view_sampling,
    view_weight_changes,
)
from deformable_detr.visualize.colors import LEVEL_COLORS
from deformable_detr.visualize.figures import new_figure
from deformable_detr.visualize.inside.canvas import show_image

SCENE, SCENE_SIZE = 5, 512
"""Which generated image is the example, and its side; the detector sees it at 128 pixels."""

LARGEST_FILE = 150_000
"""Bytes of a figure that keeps all its colours."""


def main() -> None:
    """Draw all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="demo/run", help="a run folder or a weights file")
    parser.add_argument("--image", help="the example; by default a generated scene")
    parser.add_argument(
        "--data", default="demo/data/val", help="a split of a dataset: images for the statistics, targets for the matching"
    )
    parser.add_argument("--output", default=str(Path(__file__).parent / "images" / "inside"), help="folder of the figures")
    options = parser.parse_args()
    if not Path(options.weights).exists() and command_line(["demo"]) != 0:
        sys.exit("the demo did not train a detector")
    detector = Detector.load(options.weights)
    image = read_image(options.image) if options.image else scene(SCENE)
    inside = look_inside(detector, image)
    for name, draw in figures(detector, inside, options.data).items():
        write(Path(options.output) / f"{name}.png", draw())


def scene(number: int, size: int = SCENE_SIZE) -> Tensor:
    """An image like those that the demo trains on, `[3, H, W]` uint8."""
    return torch.from_numpy(draw_scene(np.random.default_rng(number), size)[0]).permute(2, 0, 1)


def figures(detector: Detector, inside: Inside, data: str) -> dict[str, Callable[[], Figure]]:
    """Name → drawing, in the order of the tour."""
    best = inside.detections(top_k=1)[0]
    middle = ((best.box[0] + best.box[2]) / 2, (best.box[1] + best.box[3]) / 2)
    torch.manual_seed(0)
    fresh = build_model(detector.metadata.model, pretrained_backbone=False)
    fresh.metadata = detector.metadata
    stages = ("backbone", "neck", "positions", "sequence", "memory", "references", "boxes")
    drawings: dict[str, Callable[[], Figure]] = {
        stage: (lambda stage=stage: view_journey(inside, [stage]).figure) for stage in stages
    }
    return drawings | {
        "padding": lambda: draw_padding(detector, inside.image, scene(12, 384)[:, :, :220]),
        "untrained": lambda: (
            view_sampling(look_inside(fresh, inside.image), position=inside.position_at(*middle, 1), split="level").figure
        ),
        "encoder": lambda: view_sampling(inside, position=inside.position_at(*middle, 1), split="level").figure,
        "proposals": lambda: view_proposals(inside).figure,
        "layers": lambda: view_sampling(inside, best.query, zoom=True).figure,
        "heads": lambda: view_sampling(inside, best.query, split="head", zoom=True).figure,
        "refinement": lambda: view_refinement(inside, best.query).figure,
        "levels": lambda: view_level_attention(detector, data, limit=250).figure,
        "matching": lambda: draw_matching(detector, open_split(detector, data)),
        "matching_layers": lambda: draw_matching_of_layers(detector, open_split(detector, data)),
        "queries": lambda: view_query_usage(detector, data, limit=250, num_queries=10).figure,
        "changes": lambda: view_weight_changes(fresh, detector.model).figure,
    }


def open_split(detector: Detector, data: str) -> CocoDataset:
    """The dataset of a folder such as `demo/data/val`, at the size that the detector sees."""
    metadata = detector.metadata
    sizes = {"eval_short_side": metadata.eval_short_side, "max_long_side": metadata.max_long_side}
    config = DataConfig(**sizes, mean=metadata.mean, std=metadata.std)
    return build_dataset(Path(data).parent, Path(data).name, config, training=False, categories=metadata.categories)


def draw_matching(detector: Detector, dataset: CocoDataset) -> Figure:
    """The first image with six objects or more, else the first of those with the most."""
    index = int(np.argmax(dataset.objects_per_image().clip(max=6)))
    return view_assignment(look_inside(detector, dataset.image(index)), dataset.target(index)).figure


def draw_matching_of_layers(detector: Detector, dataset: CocoDataset) -> Figure:
    """Which query each target is given to by each decoder layer."""
    layers = range(detector.metadata.model.num_decoder_layers)
    matcher = HungarianMatcher()
    records = {f"layer {layer + 1}": record_matching(detector.model, dataset, matcher, limit=100, layer=layer) for layer in layers}
    return view_matching(records, num_targets=16).figure


def draw_padding(detector: Detector, *images: Tensor) -> Figure:
    """Two images in one batch: the canvas, and the padding mask of the second one on every level."""
    metadata = detector.metadata
    transform = eval_transform(metadata.eval_short_side, metadata.max_long_side, metadata.mean, metadata.std)
    batch = ImageBatch.from_images([transform(image, None)[0] for image in images])
    mean, std = (torch.tensor(values)[:, None, None] for values in (metadata.mean, metadata.std))
    canvas = ((batch.images * std + mean).clamp(0, 1) * 255 * ~batch.padding_mask[:, None]).byte()
    levels = [
        torch.empty(len(images), 1, -(-canvas.shape[2] // stride), -(-canvas.shape[3] // stride)) for stride in (8, 16, 32, 64)
    ]
    masks = resize_padding_mask(batch.padding_mask, levels)
    figure = new_figure(12, 2.9)
    axes = figure.subplots(1, 2 + len(masks))
    figure.suptitle("A batch of two images, and the padding masks of the second one", fontsize=12, fontweight="bold")
    for place, pixels in zip(axes, canvas, strict=False):
        show_image(place, pixels)
    axes[0].set_title(f"canvas {canvas.shape[2]} × {canvas.shape[3]}", fontsize=9.5)
    axes[1].set_title("image, and black padding", fontsize=9.5)
    for level, (place, mask) in enumerate(zip(axes[2:], masks, strict=True)):
        place.imshow(
            mask[1], cmap="Greys", vmin=0, vmax=1.3, extent=(0, canvas.shape[3], canvas.shape[2], 0), interpolation="nearest"
        )
        x, y = valid_ratio(mask)[1].tolist()
        place.set_title(f"level {level}: valid {x:.2f} × {y:.2f}", fontsize=9.5)
        place.set(xticks=[], yticks=[])
    return figure


def write(path: Path, figure: Figure, dpi: int = 80) -> None:
    """Write a figure as PNG; a large one with a palette, in which the colours of levels and boxes stay exactly as they are."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png")
    with Image.open(buffer) as image:
        pixels = image.convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels.save(path, optimize=True)
    if path.stat().st_size <= LARGEST_FILE:
        return
    kept = [round(255 * channel) for color in (*LEVEL_COLORS, "#7dff6a", "#ffffff", "#000000") for channel in to_rgb(color)]
    common = pixels.quantize(256 - len(kept) // 3, method=Image.Quantize.MAXCOVERAGE, kmeans=2).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette(kept + common[: 768 - len(kept)])
    pixels.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


if __name__ == "__main__":
    main()
