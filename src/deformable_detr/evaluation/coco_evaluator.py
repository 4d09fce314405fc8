"""COCO's evaluation of boxes, over any number of processes; the counting itself is faster-coco-eval's."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, distributed

from deformable_detr.boxes import xyxy_to_xywh
from deformable_detr.categories import Categories
from deformable_detr.class_names import MatchBy, list_classes, match_classes
from deformable_detr.data.annotation_file import AnnotationFile
from deformable_detr.data.annotation_reader import read_annotation_file
from deformable_detr.evaluation.matches import EvaluatedImage
from deformable_detr.evaluation.metrics import ClassMetrics, Metrics
from deformable_detr.evaluation.thresholds import ScoreCurve, class_thresholds, joint_curve, score_curves
from deformable_detr.files import write_json
from deformable_detr.structures import ImageId, Target

logger = logging.getLogger(__name__)

MOST_PER_CLASS = 100
"""Largest number of detections of a class in one image that count (the largest maxDets of COCO)."""


@dataclass(frozen=True)
class ImageDetections:
    """The detections of one image that are of categories of the annotation file; D is their number."""

    scores: np.ndarray
    """`[D]` float64, best first."""

    labels: np.ndarray
    """`[D]` int64, positions in the categories of the annotation file."""

    boxes: np.ndarray
    """`[D, 4]` float64 xywh in pixels."""


class CocoEvaluator:
    """Collects the detections of a split batch by batch, then compares them with the annotations."""

    def __init__(self, annotations: str | Path | AnnotationFile, categories: Categories, match_by: MatchBy = "name") -> None:
        """Read the annotations and match the classes of the model with them.

        Args:
            annotations: of the split: COCO JSON, or what was read of it.
            categories: what the labels of the detections mean: the classes of the model, which may be others than the file's
                (see :func:`match_categories`).
            match_by: what makes a class of the model and a category of the file the same: `name` or `id`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: no annotation file with boxes, or one with errors; or no class of the model is in it.
        """
        file = annotations if isinstance(annotations, AnnotationFile) else read_annotation_file(annotations)
        self.ground_truth = file.check(boxes_required=True, but=("file-name-missing",))
        self.categories = categories
        order = np.argsort(file.images, kind="stable")
        parts = np.split(order, np.searchsorted(file.images[order], np.arange(1, len(file.image_ids))))
        self._truth_rows: dict[ImageId, np.ndarray] = dict(zip(file.image_ids, parts, strict=False))  # no image: one empty part
        """Image id → the positions of its annotations in the file; crowd regions count, too."""
        self._columns = np.full(len(categories), -1, dtype=np.int64)
        for label, column in match_categories(categories, self.ground_truth.categories, match_by).items():
            self._columns[label] = column
        self._detections: dict[ImageId, ImageDetections] = {}

    @property
    def image_ids(self) -> tuple[ImageId, ...]:
        """The images that were seen so far: those that count."""
        return tuple(self._detections)

    def update(self, images: Sequence[Target | ImageId], results: Sequence[Mapping[str, Tensor]]) -> None:
        """Add the detections of some images. An image that is added again replaces its earlier detections.

        Args:
            images: the targets of a batch, or only the ids.
            results: for each image `scores` `[D]`, `labels` `[D]` and `boxes` `[D, 4]` (xyxy, pixels of the original image).

        Raises:
            ValueError: an image without id or unknown to the annotation file, labels beyond the classes, or not one score,
                label and box for each detection.
            TypeError: `scores`, `labels` or `boxes` are missing, or no tensors.
            FloatingPointError: scores or boxes with NaN or infinity.
        """
        ids = [image.image_id if isinstance(image, Target) else image for image in images]
        for index, (image_id, result) in enumerate(zip(ids, results, strict=True)):
            if image_id is None:
                raise ValueError(f"image {index} of the batch has no image_id, so its annotations cannot be found")
            if image_id not in self._truth_rows:
                raise ValueError(
                    f"{self.ground_truth.path}: the evaluated image {image_id!r} is not in this annotation file: predictions and "
                    "annotations must be of the same split"
                )
            self._detections[image_id] = self._detections_of(image_id, result)

    def merge_processes(self) -> None:
        """Share the detections among all processes of `torch.distributed`; afterwards each process has those of all.

        An image that several processes saw (samplers repeat some to give each process equally many) counts once. Does nothing
        where there is only one process. Every process must call it.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        shares: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(shares, self._detections)
        together = {image_id: found for share in shares for image_id, found in share.items()}
        self._detections = {image_id: together[image_id] for image_id in self._truth_rows if image_id in together}

    def compute(self) -> Metrics:
        """Evaluate the images seen so far.

        Returns:
            The numbers; AP 0 where nothing was detected, NaN where there was nothing to detect.

        Raises:
            ValueError: no image was seen.
        """
        if not self._detections:
            raise ValueError("no image was evaluated: the loader gave none")
        evaluation = self._count()
        names, precision = self.ground_truth.categories.names, evaluation.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, class]
        rows = np.concatenate([self._truth_rows[image_id] for image_id in self._detections])
        rows = rows[~self.ground_truth.crowd[rows]]
        num_objects = np.bincount(self.ground_truth.labels[rows], minlength=len(names)).tolist()
        per_class = tuple(
            ClassMetrics(
                name=name,
                ap=_mean(precision[:, :, column]),
                ap50=_mean(precision[0, :, column]),
                num_objects=num_objects[column],
                precision=tuple(precision[0, :, column].tolist()) if num_objects[column] else (),
            )
            for column, name in enumerate(names)
        )
        twelve = np.where(evaluation.stats < 0, np.nan, evaluation.stats).tolist()  # in the order of the fields of Metrics
        metrics = Metrics(*twelve, per_class=per_class, num_images=len(self._detections))
        return self._with_thresholds(metrics, score_curves(self.images(), names))

    def images(self) -> list[EvaluatedImage]:
        """Detections and objects of the images seen so far, for a closer look than :meth:`compute` takes."""
        return [self._evaluated(image_id, found) for image_id, found in self._detections.items()]

    def columns(self) -> list[int | None]:
        """For each label of the model the index of its category in the file; None where the file does not have it."""
        return [None if column < 0 else column for column in self._columns.tolist()]

    def results(self) -> list[dict[str, Any]]:
        """All detections in COCO's result format: image_id, category_id, bbox (xywh in pixels), score; in the order of the file."""
        ids = self.ground_truth.categories.ids
        return [
            {"image_id": image_id, "category_id": ids[label], "bbox": [round(x, 3) for x in box], "score": round(score, 6)}
            for image_id in self._truth_rows
            if image_id in self._detections
            for label, box, score in _rows(self._detections[image_id])
        ]

    def save_results(self, path: str | Path) -> None:
        """Write :meth:`results` as JSON, as COCO's evaluation server takes it; the folder is made where it is missing."""
        write_json(path, self.results())

    def _evaluated(self, image_id: ImageId, found: ImageDetections) -> EvaluatedImage:
        kept = _rank_in_class(found.labels) < MOST_PER_CLASS
        file, rows = self.ground_truth, self._truth_rows[image_id]
        labels, boxes, crowd = file.labels[rows], _to_xyxy(file.boxes[rows]), file.crowd[rows]
        return EvaluatedImage(
            image_id=image_id,
            scores=found.scores[kept],
            labels=found.labels[kept],
            boxes=_to_xyxy(found.boxes[kept]),
            true_labels=labels[~crowd],
            true_boxes=boxes[~crowd],
            crowd_labels=labels[crowd],
            crowd_boxes=boxes[crowd],
        )

    def _count(self) -> Any:
        """faster-coco-eval's evaluation, with `stats` and `eval`.

        It counts with ids of its own: images as 1, 2 … (so that they may have any ids), annotations likewise (id 0 would mean "not
        matched" to it), and categories by their index. Images are numbered in the order of their ids, as pycocotools sorts them:
        that decides between equal scores of different images.
        """
        from faster_coco_eval import COCO, COCOeval_faster

        file = self.ground_truth
        numbered = list(enumerate(sorted(self._detections, key=lambda image_id: (isinstance(image_id, str), image_id)), 1))
        shared = {
            "images": [{"id": number} for number, _ in numbered],
            "categories": [{"id": label, "name": name} for label, name in enumerate(file.categories.names)],
        }
        labels, boxes, areas, crowd = (column.tolist() for column in (file.labels, file.boxes, file.areas, file.crowd))
        objects = [
            {"image_id": number, "category_id": labels[i], "bbox": boxes[i], "area": areas[i], "iscrowd": int(crowd[i])}
            for number, image_id in numbered
            for i in self._truth_rows[image_id].tolist()
        ]
        found = [
            {"image_id": number, "category_id": label, "bbox": box, "area": box[2] * box[3], "score": score, "iscrowd": 0}
            for number, image_id in numbered
            for label, box, score in _rows(self._detections[image_id])
        ]
        sides = []
        for entries in (objects, found):
            for number, entry in enumerate(entries, 1):
                entry["id"] = number
            side = COCO(print_function=logger.debug)
            side.dataset = shared | {"annotations": entries}
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval_faster(*sides, iouType="bbox", print_function=logger.debug)
        evaluation.run()
        return evaluation

    def _with_thresholds(self, metrics: Metrics, curves: Sequence[ScoreCurve]) -> Metrics:
        """The metrics with the thresholds of the file's classes, and of the model's labels."""
        common, thresholds = joint_curve(curves).best_threshold(), class_thresholds(curves)
        if common is None or thresholds is None:
            return metrics
        points = [curve.at(threshold) for curve, threshold in zip(curves, thresholds, strict=True)]
        per_class = tuple(
            replace(entry, f1=point.f1, threshold=point.threshold) if entry.num_objects else entry
            for entry, point in zip(metrics.per_class, points, strict=True)
        )
        of_labels = tuple(common if column is None else thresholds[column] for column in self.columns())
        return replace(metrics, per_class=per_class, thresholds=of_labels)

    def _detections_of(self, image_id: ImageId, result: Mapping[str, Tensor]) -> ImageDetections:
        given = {name: result.get(name) for name in ("scores", "labels", "boxes")}
        found: dict[str, Tensor] = {}
        for name, tensor in given.items():
            if not isinstance(tensor, Tensor):
                raise TypeError(f"image {image_id!r}: {name!r} of its detections must be a tensor, not {type(tensor).__name__}")
            found[name] = tensor.detach().cpu()
        shapes = {name: list(tensor.shape) for name, tensor in found.items()}
        count = shapes["scores"][:1]
        if shapes != {"scores": count, "labels": count, "boxes": [*count, 4]}:
            raise ValueError(f"image {image_id!r}: scores [D], labels [D] and boxes [D, 4] are wanted, not of the shapes {shapes}")
        labels = found["labels"].numpy()
        if labels.dtype.kind not in "iu":
            raise ValueError(f"image {image_id!r}: labels are whole numbers, not {labels.dtype}")
        if len(labels) and (labels.min() < 0 or labels.max() >= len(self.categories)):
            raise ValueError(
                f"image {image_id!r}: detections have labels from {labels.min()} to {labels.max()}, but there are "
                f"{len(self.categories)} classes; are these the categories of this model?"
            )
        columns = self._columns[labels]
        kept = columns >= 0
        scores = found["scores"].double().numpy()[kept]
        boxes = xyxy_to_xywh(found["boxes"].double()).numpy()[kept]
        if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
            raise FloatingPointError(f"image {image_id!r}: detections have NaN or infinite scores or boxes; is the model broken?")
        order = np.argsort(-scores, kind="stable")
        return ImageDetections(scores[order], columns[kept][order], boxes[order])


def match_categories(model: Categories, dataset: Categories, by: MatchBy = "name") -> dict[int, int]:
    """Match labels of the model with categories of the dataset (:func:`~deformable_detr.class_names.match_classes`).

    Classes of the model that the dataset does not have are left out: detections of them are not evaluated.

    Args:
        model: the classes that labels of predictions mean.
        dataset: the categories of the annotation file.
        by: what must be equal: names, or category ids.

    Returns:
        Label → position in `dataset`. Categories that no label leads to are logged: they count as never detected.

    Raises:
        ValueError: nothing fits; the message lists both sides.
    """
    found = match_classes(dataset, model, by=by, what="annotations and model")
    listed = list(zip(dataset.names, dataset.ids, strict=True))
    if all(label is None for label in found):
        hint = "" if by == "id" else "; if equal ids mean the same classes, match classes by id (--match-by id)"
        raise ValueError(
            f"the classes of the model have no {by} in common with the categories of the annotation file: the model detects "
            f"{list_classes(zip(model.names, model.ids, strict=True))}; the file has {list_classes(listed)}{hint}"
        )
    if missing := [entry for entry, label in zip(listed, found, strict=True) if label is None]:
        logger.warning("the model cannot detect these categories of the annotation file: %s", list_classes(missing))
    return {label: position for position, label in enumerate(found) if label is not None}


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    """`[D]` how many of the same class come before each."""
    return (np.tril(labels[:, None] == labels, -1)).sum(axis=1)


def _to_xyxy(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)


def _rows(found: ImageDetections) -> Iterable[tuple[int, list[float], float]]:
    return zip(found.labels.tolist(), found.boxes.tolist(), found.scores.tolist(), strict=True)


def _mean(values: np.ndarray) -> float:
    """The mean of what is there; -1 marks classes without objects (of this size)."""
    there = values[values > -1]
    return float(there.mean()) if len(there) else math.nan
