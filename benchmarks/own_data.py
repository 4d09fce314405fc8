"""transformers' Deformable DETR trained like a run of ours: same network, images, augmentation, steps; its losses, a plain loop.

python benchmarks/own_data.py runs/first --lr 2e-4 --clip 0.1 --json peer.json
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

from deformable_detr.config import RunConfig
from deformable_detr.data.loader import build_dataset, build_loader
from deformable_detr.evaluation import evaluate
from deformable_detr.settings import read_config
from deformable_detr.structures import ImageBatch, Predictions


def main() -> None:
    """Train, evaluate as often as our run did, print a line each time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder of ours: its config.yaml says everything but the following")
    parser.add_argument("--lr", type=float, default=2e-4, help="of all but the backbone (official: 2e-4)")
    parser.add_argument("--backbone_lr", type=float, default=2e-5)
    parser.add_argument("--clip", type=float, default=0.1, help="largest gradient norm (official: 0.1)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = read_config(options.run / "config.yaml")
    torch.manual_seed(config.train.seed)
    data = [build_dataset(config.dataset, split, config.data, training=split == "train") for split in ("train", "val")]
    settings = {"num_workers": config.data.num_workers, "batch_size": config.train.batch_size, "seed": config.train.seed}
    train = build_loader(data[0], training=True, pad_size_divisor=config.data.pad_size_divisor, **settings)
    val = build_loader(data[1], training=False, **settings)
    model = build_peer(config)
    steps = config.train.steps or config.train.epochs * len(train)
    backbone = [value for name, value in model.named_parameters() if "backbone" in name and value.requires_grad]
    others = [value for name, value in model.named_parameters() if "backbone" not in name and value.requires_grad]
    groups = [{"params": others, "lr": options.lr}, {"params": backbone, "lr": options.backbone_lr}]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    warmup = config.optimizer.warmup_steps
    cosine = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / max(1, warmup)) * 0.5 * (1 + math.cos(math.pi * min(1, step / steps)))
    )
    began, step, rows = time.monotonic(), 0, []
    for epoch in range(-(-steps // len(train))):
        train.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        model.train()
        for images, targets in train:
            labels = [{"boxes": target.boxes, "class_labels": target.labels} for target in targets]
            loss = model(pixel_values=images.images, pixel_mask=(~images.padding_mask).long(), labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([*others, *backbone], options.clip)
            optimizer.step()
            cosine.step()
            step += 1
            if step % config.train.log_every == 0:
                print(f"step {step}/{steps} loss {loss.item():.2f} {time.monotonic() - began:.0f} s", flush=True)
            if step == steps:
                break
        if step == steps or (epoch + 1) % max(1, config.train.evaluate_every) == 0:
            metrics = evaluate(Wrapped(model), val, data[0].categories, data[1].ground_truth).to_dict()
            rows.append({"step": step, "seconds": round(time.monotonic() - began), "ap": metrics["ap"], "ap50": metrics["ap50"]})
            print(rows[-1], flush=True)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))


class Wrapped(nn.Module):
    """Their model, called as ours."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: ImageBatch) -> Predictions:
        """The last layer's answer."""
        found = self.model(pixel_values=batch.images, pixel_mask=(~batch.padding_mask).long())
        return Predictions(found.logits[None], found.pred_boxes[None])


def build_peer(config: RunConfig) -> nn.Module:
    """The same architecture, its backbone from the same file."""
    model = config.model
    built = DeformableDetrForObjectDetection(
        DeformableDetrConfig(
            backbone=model.backbone.split(".")[0],
            use_timm_backbone=True,
            use_pretrained_backbone=False,
            num_labels=model.num_classes,
            d_model=model.hidden_dim,
            encoder_layers=model.num_encoder_layers,
            decoder_layers=model.num_decoder_layers,
            encoder_attention_heads=model.num_heads,
            decoder_attention_heads=model.num_heads,
            encoder_ffn_dim=model.ffn_dim,
            decoder_ffn_dim=model.ffn_dim,
            num_queries=model.num_queries,
            two_stage_num_proposals=model.num_queries,
            two_stage=model.two_stage,
            with_box_refine=model.box_refinement,
            num_feature_levels=model.num_feature_levels,
            dropout=model.dropout,
            auxiliary_loss=True,
            disable_custom_kernels=True,
        )
    )
    if isinstance(model.pretrained_backbone, str):
        load_backbone(built, torch.load(model.pretrained_backbone, map_location="cpu", weights_only=True))
    return built


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
