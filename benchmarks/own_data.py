"""Training on one's own images beside transformers, in equal time: several datasets and seeds, one table.

python benchmarks/own_data.py bccd sizes large --seeds 0 1 2 --minutes 3 --pretrained-backbone resnet18.pth --output proof

For each dataset and seed: first ours, by `--recipe small-data --budget 3m` alone. Then each peer, with the images, sizes,
augmentation and batches of that run, the same backbone weights, width and number of layers, a plain loop with warm-up and cosine,
for as many steps as fit into the seconds that our training took. Time is CPU time of the training steps with reading the images,
evaluations left out, so start it with OMP_NUM_THREADS=1; other programs on the machine then do not count.

Lines in `proof/results.jsonl` are not computed again, so the command goes on where it stopped. `--lr` tries learning rates of
the peers: the table keeps the one with the best mean AP50 of each peer and dataset. Peers are measured with and without NMS, and
the better one counts.
"""

import argparse
import json
import math
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from deformable_detr.config import RunConfig
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.loader import build_dataset, build_loader
from deformable_detr.evaluation import evaluate
from deformable_detr.settings import read_config, run_config
from deformable_detr.structures import ImageBatch, Predictions, Target
from deformable_detr.training import Callback, train
from deformable_detr.training.budget import measure_speed
from deformable_detr.training.callbacks import Run, Step
from deformable_detr.training.recipe import complete_settings

CURVE = 4
"""Evaluations of a peer, evenly over its run."""

TIMED = 8
"""Steps of a peer that are timed before its run; a third of them warms up."""

PEERS = ("deformable-detr", "rt-detr")


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=3.0, help="budget of our recipe (CPU time)")
    parser.add_argument("--pretrained-backbone", type=Path, required=True, help="timm weights of a ResNet-18")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--lr", nargs="+", type=float, default=[2e-4], help="of the peers, all but the backbone (official: 2e-4)")
    parser.add_argument("--backbone-lr-scale", type=float, default=0.1, help="of the peers (official: 0.1)")
    parser.add_argument("--clip", type=float, default=0.1, help="largest gradient norm of the peers (official: 0.1)")
    parser.add_argument("--output", type=Path, default=Path("proof"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    results = Results(options.output / "results.jsonl")
    for seed in options.seeds:
        for dataset in options.datasets:
            ours = {"dataset": dataset.name, "system": "ours", "lr": None, "seed": seed, "minutes": options.minutes}
            folder = options.output / f"{dataset.name}-{options.minutes:g}m-{seed}"
            row = results.find(ours) or results.add(ours | run_ours(dataset, folder, seed, options))
            for system in options.peers:
                for lr in options.lr:
                    theirs = ours | {"system": system, "lr": lr}
                    if not results.find(theirs):
                        run = PeerRun(system, read_config(folder / "config.yaml"), lr, options.backbone_lr_scale, options.clip)
                        results.add(theirs | run.train(row["seconds"]))
    print(results.table())


class Results:
    """Rows of a file of JSON lines; a run is known by its dataset, system, learning rate, seed and budget."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The row of a run, if it was made."""
        return next((row for row in self.rows if key.items() <= row.items()), None)

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """Keep a row, and say it."""
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print({name: value for name, value in row.items() if name != "curve"}, flush=True)
        return row

    def table(self) -> str:
        """Mean ± standard deviation over the seeds, each system at its best learning rate."""
        runs = defaultdict(list)
        for row in self.rows:
            runs[row["dataset"], row["minutes"], row["system"], row["lr"]].append(row)
        best: dict[tuple, tuple] = {}
        for key, rows in runs.items():
            mean = statistics.mean(row["ap50"] for row in rows)
            if key[:3] not in best or mean > best[key[:3]][0]:
                best[key[:3]] = (mean, key[3], rows)
        lines = [
            "| dataset | CPU minutes | system | learning rate | seeds | steps | AP | AP50 |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for (dataset, minutes, system), (_, lr, rows) in sorted(best.items()):
            numbers = " | ".join(_spread([row[name] for row in rows]) for name in ("ap", "ap50"))
            steps = round(statistics.mean(row["steps"] for row in rows))
            lines.append(f"| {dataset} | {minutes:g} | {system} | {lr or 'recipe'} | {len(rows)} | {steps} | {numbers} |")
        return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


@dataclass
class Clock(Callback):
    """CPU seconds of the steps alone, and the curve over them."""

    seconds: float = 0.0
    curve: list[tuple[float, float, float]] = field(default_factory=list)
    _mark: float = 0.0

    def on_train_start(self, run: Run) -> None:
        """The first step begins."""
        self._mark = time.process_time()

    def on_step(self, run: Run, step: Step) -> None:
        """A step with its images has ended."""
        now = time.process_time()
        self.seconds += now - self._mark
        self._mark = now

    def on_evaluation(self, run: Run, metrics: Any) -> None:
        """The evaluation's own time does not count."""
        self.curve.append((round(self.seconds, 1), round(metrics.ap, 4), round(metrics.ap50, 4)))
        self._mark = time.process_time()


def run_ours(dataset: Path, folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The recipe as `deformable-detr train DATASET --recipe small-data --budget …` takes it, its budget counted in CPU time."""
    asked = {
        "dataset": str(dataset),
        "output_dir": str(folder),
        "recipe": "small-data",
        "train.budget": f"{60 * options.minutes:g}s",
        "train.seed": seed,
        "train.device": "cpu",
        "data.num_workers": 0,
        "model.pretrained_backbone": str(options.pretrained_backbone),
    }
    measure = partial(measure_speed, clock=time.process_time)
    config = run_config(asked, complete=partial(complete_settings, measure=measure))
    clock = Clock()
    result = train(config, callbacks=[clock], show_progress=False)
    ap, ap50 = (round(result.best_metrics[name] or 0.0, 4) for name in ("ap", "ap50"))
    return {"steps": result.steps, "seconds": round(clock.seconds, 1), "ap": ap, "ap50": ap50, "curve": clock.curve}


class PeerRun:
    """A training of one of transformers' models on the batches of a run of ours.

    Args:
        system: one of :data:`PEERS`.
        config: of our run.
        lr: at its highest, of all but the backbone.
        backbone_lr_scale: times that, of the backbone.
        clip: largest gradient norm.
    """

    def __init__(self, system: str, config: RunConfig, lr: float, backbone_lr_scale: float, clip: float) -> None:
        torch.manual_seed(config.train.seed)
        self.config, self.clip = config, clip
        self.data: list[CocoDataset] = [
            build_dataset(config.dataset, split, config.data, training=split == "train") for split in ("train", "val")
        ]
        self.loader = self._loader(training=True)
        self.peer = build_peer(system, config)
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, value in self.peer.model.named_parameters():
            if value.requires_grad:
                groups["backbone" in name].append(value)
        self.parameters = [*groups[True], *groups[False]]
        self.optimizer = torch.optim.AdamW(
            [{"params": groups[False], "lr": lr}, {"params": groups[True], "lr": lr * backbone_lr_scale}], weight_decay=1e-4
        )
        self.step, self.epoch = 0, 0

    def train(self, seconds: float) -> dict[str, Any]:
        """As many steps as fit into these CPU seconds, and what comes out."""
        steps = self._fitting(seconds)
        warmup = max(1, steps // 20)
        cosine = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * min(1, step / steps)))
        )
        due = {round(steps * part / CURVE) for part in range(1, CURVE + 1)}
        spent, curve, mark = 0.0, [], time.process_time()
        while self.step < steps:
            for images, targets in self._epoch():
                self._train_step(images, targets)
                cosine.step()
                spent += time.process_time() - mark
                if self.step in due:
                    curve.append((round(spent, 1), *self._measure()))
                if self.step == steps:
                    break
                mark = time.process_time()
        _, ap, ap50 = max(curve, key=lambda row: row[2])
        return {"steps": steps, "seconds": round(spent, 1), "ap": ap, "ap50": ap50, "curve": curve}

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
                marks.append(time.process_time())
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
        self.peer.model.train()
        return self.loader

    def _train_step(self, images: ImageBatch, targets: list[Target]) -> None:
        loss = self.peer.loss(images, targets)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.step += 1

    def _measure(self) -> tuple[float, float]:
        """AP and AP50, with NMS or without it, whichever is better."""
        loader, found = self._loader(training=False), []
        for nms_iou in (None, 0.7):
            metrics = evaluate(self.peer, loader, self.data[0].categories, self.data[1].ground_truth, nms_iou=nms_iou)
            found.append((round(metrics.ap or 0.0, 4), round(metrics.ap50 or 0.0, 4)))
        self.peer.model.train()
        return max(found, key=lambda numbers: numbers[1])

    def _loader(self, *, training: bool) -> DataLoader:
        train = self.config.train
        assert train.batch_size != "auto"
        divisor = self.config.data.pad_size_divisor
        data = self.data[0 if training else 1]
        return build_loader(data, training=training, batch_size=train.batch_size, seed=train.seed, pad_size_divisor=divisor)


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


if __name__ == "__main__":
    main()
