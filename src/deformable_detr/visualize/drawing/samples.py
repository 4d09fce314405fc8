"""Sample sheets of a detector: predictions beside the ground truth, for some images of a dataset."""

from pathlib import Path

from torch import nn

from deformable_detr.data.coco import CocoDataset
from deformable_detr.files import short_stem
from deformable_detr.inference.predictor import Predictor
from deformable_detr.visualize.drawing.detections import draw_detections, draw_grid, save_drawing, truth_detections


def draw_samples(
    model: nn.Module, dataset: CocoDataset, output_dir: str | Path, *, count: int = 8, threshold: float = 0.35
) -> None:
    """Predict on some images and draw the predictions beside the ground truth.

    Args:
        model: a detector with `.metadata`; stays on its device, and is left in evaluation mode.
        dataset: images with ground truth; `count` of them are taken, evenly spread, the same ones every time.
        output_dir: gets a drawing of each sample, named after its file, and `overview.png` with all of them.
        count: number of images.
        threshold: smallest score that is drawn; models that have learned for minutes are seldom surer.
    """
    predictor = Predictor(model, device=next(model.parameters()).device)
    count = min(len(dataset), count)
    indices = [position * len(dataset) // count for position in range(count)]
    images = [dataset.image(index) for index in indices]
    found = predictor.predict(images, threshold)
    titles = (f"prediction (score ≥ {threshold:g})", "ground truth")
    cells = []
    for index, image, detections in zip(indices, images, found, strict=True):
        ground_truth = truth_detections(dataset.target(index), dataset.categories)
        pair = [draw_detections(image, detections), draw_detections(image, ground_truth)]
        cells += pair
        name = f"{index:05d}-{short_stem(dataset.image_path(index))}.png"
        save_drawing(Path(output_dir) / name, draw_grid(pair, 2, titles=titles))
    columns = 4 if len(cells) > 2 else 2
    sheet = draw_grid(cells, columns, titles=titles * (columns // 2), cell_width=400)
    save_drawing(Path(output_dir) / "overview.png", sheet)
