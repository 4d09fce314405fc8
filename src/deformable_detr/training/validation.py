"""The evaluations of a run: when one is due, how it is made, what came out, and which was the best."""

import gc
from collections.abc import Callable
from typing import Any, cast

from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.data import DataLoader

from deformable_detr.acceleration.model import InferenceModel
from deformable_detr.categories import Categories
from deformable_detr.config import TrainConfig
from deformable_detr.data.coco import CocoDataset
from deformable_detr.evaluation.evaluate import evaluate
from deformable_detr.evaluation.metrics import Metrics
from deformable_detr.model import DeformableDETR

BEST_METRIC = "ap"


def _as_it_is(model: nn.Module) -> nn.Module:
    return model


class Validation:
    """Measures a model on the validation split, in the form in which `predict` runs it, and keeps the results.

    Args:
        loader: this process's share of the split; None where the dataset has none: then no evaluation is ever due.
        categories: what the model's labels mean.
        config: how often, with which precision, suppression and patience.
        accelerator: gives the device and the other processes.
    """

    def __init__(self, loader: DataLoader | None, categories: Categories, config: TrainConfig, accelerator: Accelerator) -> None:
        self.loader, self.categories, self.config, self.accelerator = loader, categories, config, accelerator
        self.ground_truth = None if loader is None else cast(CocoDataset, loader.dataset).ground_truth
        self.history: list[dict[str, Any]] = []

    def due(self, epoch: int, *, last: bool) -> bool:
        """Whether the model is to be evaluated after an epoch, counted from 0; after the last one in any case."""
        every = self.config.evaluate_every
        return self.loader is not None and (last or bool(every and (epoch + 1) % every == 0))

    def count(self, first: int, end: int) -> int:
        """How many evaluations are due after the epochs `first` … `end - 1` of a run of `end` epochs."""
        if self.loader is None or first >= end:
            return 0
        every = self.config.evaluate_every
        return end // every - first // every + (end % every > 0) if every else 1

    def measure(
        self, network: DeformableDETR, progress: Callable[[int, int], None], form: Callable[[nn.Module], nn.Module] = _as_it_is
    ) -> Metrics:
        """Evaluate a model; every process must call this, and all get the numbers of the whole.

        The model is used in its inference form, whose folded weights are freed at the end: the numbers are those of
        `deformable-detr evaluate`. Weights and modes stay as they are; buffers become those of the first process.

        Args:
            network: the model.
            progress: called after each batch with the images of this process, done and in all.
            form: puts something around the model, such as :class:`~.orientation.UpsideDown`.

        Raises:
            ValueError: there is no validation split.
        """
        if self.loader is None or self.ground_truth is None:
            raise ValueError("there is no validation split to evaluate on")
        if self.accelerator.num_processes > 1:
            for buffer in network.buffers():
                buffer.copy_(cast(Tensor, broadcast(buffer.detach().clone())))
        precision, total = self.config.precision, len(self.loader.sampler)  # type: ignore[arg-type]
        metrics = evaluate(
            form(InferenceModel(network, precision=precision)),
            self.loader,
            self.categories,
            self.ground_truth,
            device=self.accelerator.device,
            top_k=network.metadata.model.max_detections,
            nms_iou=self.config.nms_iou,
            precision=precision,
            progress=lambda done: progress(done, total),
        )
        gc.collect()  # reference cycles of torch.fx hold the folded weights, which would take up memory during the next steps
        return metrics

    def add(self, position: dict[str, Any], metrics: Metrics) -> None:
        """Keep a result.

        Args:
            position: step, epoch (from 1), lr and train_loss at the evaluation.
            metrics: what came out.
        """
        numbers = {name: value for name, value in metrics.to_dict().items() if name != "per_class"}
        self.history.append({**position, **numbers})

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the history with the highest AP, the earliest of equal ones; the last one where nothing can be measured."""
        measured = [row for row in self.history if row[BEST_METRIC] is not None]
        return max(measured, key=lambda row: row[BEST_METRIC], default=self.history[-1] if self.history else None)
