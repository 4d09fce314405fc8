"""Two detectors of transformers, trained on the batches of a run of ours: what `own_data.py` compares with."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from deformable_detr.config import RunConfig
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.loader import build_dataset, build_loader
from deformable_detr.evaluation.coco_evaluator import CocoEvaluator
from deformable_detr.postprocessing import postprocess
from deformable_detr.structures import ImageBatch, Predictions, Target
from deformable_detr.training.ema import ExponentialMovingAverage

PEERS = ("deformable-detr", "rt-detr")

CURVE = 4
"""Evaluations of a peer, evenly over its run."""

TIMED = 8
"""Steps of a peer that are timed before its run; a third of them warms up."""

NMS = (None, 0.7)
"""Without suppression of overlaps and with it: whichever gives the better AP50 counts."""


def clock(device: str) -> Callable[[], float]:
    """Seconds of the CPU that this process has used; on a GPU seconds that have passed when its work is done."""

    def when_done() -> float:
        torch.cuda.synchronize()
        return time.monotonic()

    return time.process_time if device == "cpu" else when_done


class PeerRun:
    """A training of one of transformers' models with images, sizes, augmentation, batches and EMA weights of a run of ours.

    Args:
        system: one of :data:`PEERS`.
        config: of our run.
        lr: at its highest, of all but the backbone.
        backbone_lr_scale: times that, of the backbone.
        clip: largest gradient norm.
    """

    def __init__(self, system: str, config: RunConfig, lr: float, backbone_lr_scale: float, clip: float) -> None:
        torch.manual_seed(config.train.seed)
        self.config, self.clip, self.clock = config, clip, clock(config.train.device)
        self.data = {
            split: build_dataset(config.dataset, split, config.data, training=split == "train") for split in ("train", "val")
        }
        self.loader = self._loader(self.data["train"], training=True)
        self.peer = build_peer(system, config).to(config.train.device)
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, value in self.peer.model.named_parameters():
            if value.requires_grad:
                groups["backbone" in name].append(value)
        self.parameters = [*groups[True], *groups[False]]
        self.optimizer = torch.optim.AdamW(
            [{"params": groups[False], "lr": lr}, {"params": groups[True], "lr": lr * backbone_lr_scale}], weight_decay=1e-4
        )
        self.average = ExponentialMovingAverage(self.peer, config.train.ema_decay)
        self.step, self.epoch = 0, 0

    def train(self, *, steps: int | None = None, seconds: float | None = None) -> dict[str, Any]:
        """So many steps, or as many as fit into these seconds, and what comes out."""
        steps = steps or self._fitting(seconds or 0.0)
        warmup = max(1, steps // 20)
        cosine = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * min(1, step / steps)))
        )
        due = {round(steps * part / CURVE) for part in range(1, CURVE + 1)}
        times, curve, mark = [], [], self.clock()
        while self.step < steps:
            for images, targets in self._epoch():
                self._train_step(images, targets)
                cosine.step()
                self.average.update(self.peer)
                times.append(self.clock() - mark)
                if self.step in due:
                    curve.append((round(sum(times), 1), *self._measure(self.data["val"])))
                if self.step == steps:
                    break
                mark = self.clock()
        _, ap, ap50 = max(curve, key=lambda row: row[2])
        numbers = {"steps": steps, "seconds": round(sum(times), 1), "step_ms": round(1000 * statistics.median(times), 1)}
        return numbers | {"ap": ap, "ap50": ap50, **self._test(), "curve": curve}

    def _fitting(self, seconds: float) -> int:
        """Times some steps with no learning rate, so that they change no parameter."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        decays = [group["weight_decay"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"], group["weight_decay"] = 0.0, 0.0
        marks: list[float] = []
        while len(marks) < TIMED:
            for images, targets in self._epoch():
                self._train_step(images, targets)
                marks.append(self.clock())
                if len(marks) == TIMED:
                    break
        for group, lr, decay in zip(self.optimizer.param_groups, rates, decays, strict=True):
            group["lr"], group["weight_decay"] = lr, decay
        self.optimizer.state.clear()
        self.step, self.epoch = 0, 0
        first = TIMED // 3
        return max(CURVE, round(seconds / ((marks[-1] - marks[first]) / (TIMED - 1 - first))))

    def _epoch(self) -> DataLoader:
        self.loader.sampler.set_epoch(self.epoch)  # type: ignore[attr-defined]
        self.epoch += 1
        self.peer.train()
        return self.loader

    def _train_step(self, images: ImageBatch, targets: list[Target]) -> None:
        device = self.config.train.device
        loss = self.peer.loss(images.to(device), [target.to(device) for target in targets])
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.step += 1

    def _measure(self, data: CocoDataset) -> tuple[float, float]:
        """AP and AP50 of the EMA weights, with NMS or without it, whichever is better."""
        evaluators = [CocoEvaluator(data.ground_truth, self.data["train"].categories) for _ in NMS]
        with torch.inference_mode():
            for images, targets in self._loader(data, training=False):
                predictions = self.average.module(images.to(self.config.train.device))
                sizes = [target.image_size for target in targets if target.image_size is not None]
                for nms_iou, evaluator in zip(NMS, evaluators, strict=True):
                    evaluator.update(targets, postprocess(predictions, sizes, nms_iou=nms_iou))
        found = [evaluator.compute() for evaluator in evaluators]
        numbers = [(round(metrics.ap or 0.0, 4), round(metrics.ap50 or 0.0, 4)) for metrics in found]
        return max(numbers, key=lambda pair: pair[1])

    def _test(self) -> dict[str, float]:
        """The same on the split `test`, if there is one."""
        data = test_split(self.config, self.data["train"])
        return {} if data is None else dict(zip(("test_ap", "test_ap50"), self._measure(data), strict=True))

    def _loader(self, data: CocoDataset, *, training: bool) -> DataLoader:
        train = self.config.train
        assert train.batch_size != "auto"
        return build_loader(
            data,
            training=training,
            batch_size=train.batch_size,
            seed=train.seed,
            num_workers=self.config.data.num_workers,
            pad_size_divisor=self.config.data.pad_size_divisor,
        )


def test_split(config: RunConfig, train: CocoDataset) -> CocoDataset | None:
    """The images of the split `test`; None where there is none."""
    try:
        return build_dataset(config.dataset, "test", config.data, training=False, categories=train.categories)
    except FileNotFoundError:
        return None


class Peer(nn.Module):
    """A model of transformers that is called as ours is.

    Args:
        model: takes pixel values, mask and labels.
        whole_canvas: its boxes are relative to the padded canvas, not to the image.
    """

    def __init__(self, model: nn.Module, *, whole_canvas: bool) -> None:
        super().__init__()
        self.model, self.whole_canvas = model, whole_canvas

    def loss(self, images: ImageBatch, targets: list[Target]) -> Tensor:
        """Its own loss."""
        shares = self._shares(images)
        labels = [
            {"boxes": target.boxes * share, "class_labels": target.labels} for target, share in zip(targets, shares, strict=True)
        ]
        return self.model(pixel_values=images.images, pixel_mask=(~images.padding_mask).long(), labels=labels).loss

    def forward(self, images: ImageBatch) -> Predictions:
        """The last layer's answer."""
        found = self.model(pixel_values=images.images, pixel_mask=(~images.padding_mask).long())
        return Predictions(found.logits[None], (found.pred_boxes / self._shares(images)[:, None])[None])

    def _shares(self, images: ImageBatch) -> Tensor:
        """`[B, 4]`: by what boxes relative to the image are multiplied to be in the model's frame."""
        valid = ~images.padding_mask
        shares = torch.stack([valid[:, 0].float().mean(1), valid[:, :, 0].float().mean(1)], dim=1).repeat(1, 2)
        return shares if self.whole_canvas else torch.ones_like(shares)


def build_peer(system: str, config: RunConfig) -> Peer:
    """The same width and numbers of layers and queries as our run, the backbone from the same file."""
    from transformers import (
        DeformableDetrConfig,
        DeformableDetrForObjectDetection,
        RTDetrConfig,
        RTDetrForObjectDetection,
        TimmBackboneConfig,
    )

    model, width = config.model, config.model.hidden_dim
    backbone: dict[str, Any] = {
        "backbone": model.backbone.split(".")[0],
        "out_indices": [2, 3, 4],
        "use_pretrained_backbone": False,
    }
    shared: dict[str, Any] = {
        "backbone_config": TimmBackboneConfig(**backbone),
        "num_labels": model.num_classes,
        "d_model": width,
        "encoder_ffn_dim": model.ffn_dim,
        "decoder_ffn_dim": model.ffn_dim,
        "decoder_layers": model.num_decoder_layers,
        "num_queries": model.num_queries,
        "dropout": model.dropout,
    }
    if system == "deformable-detr":
        own: dict[str, Any] = {"encoder_layers": model.num_encoder_layers, "two_stage_num_proposals": model.num_queries}
        own |= {"two_stage": True, "with_box_refine": True, "auxiliary_loss": True, "disable_custom_kernels": True}
        built: nn.Module = DeformableDetrForObjectDetection(DeformableDetrConfig(**shared, **own))
    else:
        own = {"encoder_in_channels": [128, 256, 512], "decoder_in_channels": [width] * 3, "encoder_hidden_dim": width}
        own |= {"num_denoising": model.denoising_queries, "hidden_expansion": 0.5}
        built = RTDetrForObjectDetection(RTDetrConfig(**shared, **own))
    load_backbone(built, torch.load(str(model.pretrained_backbone), map_location="cpu", weights_only=True))
    return Peer(built, whole_canvas=system == "rt-detr")


def load_backbone(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put timm-named weights into their backbone, however deep it is nested; all but the classifier must fit."""
    own = {name: value for name, value in model.state_dict().items() if "backbone" in name}
    missing = []
    for name, value in own.items():
        fitting = [key for key in weights if name.endswith(f".{key}")]
        if fitting:
            value.copy_(weights[max(fitting, key=len)])  # layer1.0.conv1.weight also ends in conv1.weight
        else:
            missing.append(name)
    if [name for name in missing if not name.endswith("num_batches_tracked") and "fc." not in name]:
        raise ValueError(f"no weights for {missing[:5]}")
