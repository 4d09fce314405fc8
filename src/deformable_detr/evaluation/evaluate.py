"""Run a model over a split and measure how good its detections are."""

from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path

import torch
from torch import nn

from deformable_detr.categories import Categories
from deformable_detr.class_names import MatchBy
from deformable_detr.config import MAX_DETECTIONS
from deformable_detr.data.annotation_file import AnnotationFile
from deformable_detr.evaluation.coco_evaluator import CocoEvaluator
from deformable_detr.evaluation.metrics import Metrics
from deformable_detr.postprocessing import postprocess
from deformable_detr.precision import Precision, autocast
from deformable_detr.schema import plain_numbers
from deformable_detr.structures import ImageBatch, Target


def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[ImageBatch, Sequence[Target]]],
    categories: Categories,
    annotations: str | Path | AnnotationFile,
    *,
    device: torch.device | str | None = None,
    top_k: int = MAX_DETECTIONS,
    nms_iou: float | None = None,
    match_by: MatchBy = "name",
    precision: Precision = "fp32",
    results_file: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Metrics:
    """Detect in every image of a loader and compare with the annotations.

    With `torch.distributed`, every process must call this, each with its share of the images; all get the numbers of the whole.

    Args:
        model: takes an ImageBatch, gives Predictions. It runs in eval mode and is left in the mode that it came in.
        loader: batches of images and targets; of the targets only `image_id` and `image_size` are used. The images that it
            gives are the ones that are evaluated, be they all of the file or not.
        categories: what the labels of the model mean; need not be the file's own.
        annotations: of the split: COCO JSON, or what was read of it.
        device: where the model runs; None takes the device of its parameters.
        top_k: detections per image.
        nms_iou: see :func:`~deformable_detr.postprocessing.postprocess`.
        match_by: whether `categories` are matched with those of the file by `name` or by `id`.
        precision: arithmetic of the forward pass.
        results_file: write the detections there, in COCO's result format (the first process does).
        progress: called after each batch with the number of images that this process has done so far.

    Returns:
        AP and AR over all classes and per class.

    Raises:
        ValueError: an unknown precision, images without size or unknown to the file, categories that do not fit, no images, or
            `results_file` holds annotations.
        TypeError: `top_k` or `nms_iou` is no number.
        FileNotFoundError: no annotation file.
    """
    evaluator = detect(
        model,
        loader,
        categories,
        annotations,
        device=device,
        top_k=top_k,
        nms_iou=nms_iou,
        match_by=match_by,
        precision=precision,
        results_file=results_file,
        progress=progress,
    )
    return evaluator.compute()


def detect(
    model: nn.Module,
    loader: Iterable[tuple[ImageBatch, Sequence[Target]]],
    categories: Categories,
    annotations: str | Path | AnnotationFile,
    *,
    device: torch.device | str | None = None,
    top_k: int = MAX_DETECTIONS,
    nms_iou: float | None = None,
    match_by: MatchBy = "name",
    precision: Precision = "fp32",
    results_file: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> CocoEvaluator:
    """The first half of :func:`evaluate`, with the same arguments: the detections of all processes beside the ground truth."""
    (top_k,) = plain_numbers("a whole number", Integral, int, top_k=top_k)
    (nms_iou,) = plain_numbers("a number", Real, float, nms_iou=nms_iou)
    check_no_annotations(results_file)
    evaluator = CocoEvaluator(annotations, categories, match_by)
    device = torch.device(device or next((parameter.device for parameter in model.parameters()), "cpu"))
    context = autocast(precision, device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            done = 0
            for batch, targets in loader:
                with context:
                    predictions = model(batch.to(device, non_blocking=True))
                sizes = [_image_size(target) for target in targets]
                evaluator.update(targets, postprocess(predictions, sizes, top_k, nms_iou=nms_iou))
                done += len(targets)
                if progress is not None:
                    progress(done)
    finally:
        model.train(was_training)
    evaluator.merge_processes()
    if results_file is not None and _is_first_process():
        evaluator.save_results(results_file)
    return evaluator


def check_no_annotations(path: str | Path | None) -> None:
    """Refuse to write numbers or detections over a COCO file.

    Raises:
        ValueError: there is one.
    """
    if path is not None and Path(path).is_file() and b'"annotations"' in Path(path).read_bytes():
        raise ValueError(f"{path}: this file holds annotations, which would be lost; choose another name")


def _image_size(target: Target) -> tuple[int, int]:
    if target.image_size is None:
        raise ValueError(f"image {target.image_id!r}: its target has no image_size, so boxes in pixels cannot be computed")
    return target.image_size


def _is_first_process() -> bool:
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
