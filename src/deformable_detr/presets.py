"""The named variants: the five official ones, and small ones for tests and the demo."""

from dataclasses import replace
from typing import Any

from deformable_detr.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig
from deformable_detr.schema import known

R50 = ModelConfig()
R50_REFINE = replace(R50, box_refinement=True)
R50_SINGLE_SCALE = replace(R50, num_feature_levels=1)

R50_PLUS = replace(R50_REFINE, two_stage=True, ffn_dim=2048, dropout=0.0, query_content="learned", look_forward_twice=True)
R50_HDETR = replace(R50_PLUS, one_to_many_queries=1500)
R50_DINO = replace(
    R50_PLUS,
    num_queries=900,
    position_temperature=20.0,
    position_offset=0.0,
    logit_eps=1e-3,
    query_position="reference",
    proposal_classes=True,
    proposal_loss="selected",
    decoder_norm=True,
    shared_heads=True,
    denoising_queries=100,
    max_detections=300,
)
_SWIN: dict[str, Any] = {"backbone_options": {"drop_path_rate": 0.2}, "backbone_norm": True, "frozen_backbone_stages": 0}
SWIN_L_DINO = replace(R50_DINO, backbone="swin_large_patch4_window12_384.ms_in22k", **_SWIN)

R50_FAST = replace(R50_REFINE, two_stage=True, dropout=0.0, denoising_queries=100, box_noise=0.4, suppressor=True)
"""For few steps: the layers learn one-to-many and by denoising, which are quick, and one layer after them who is to be silent."""

DEMO = ModelConfig(
    backbone="resnet18",
    backbone_options={"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256], "stem_type": "deep", "stem_width": 8},
    pretrained_backbone=False,
    frozen_backbone_stages=0,
    freeze_batch_norm=False,
    hidden_dim=64,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=3,
    ffn_dim=256,
    dropout=0.0,
    num_queries=20,
    box_refinement=True,
    two_stage=True,
)

MODEL_PRESETS: dict[str, ModelConfig] = {
    "r50": R50,
    "r50-refine": R50_REFINE,
    "r50-two-stage": replace(R50_REFINE, two_stage=True),
    "r50-single-scale": R50_SINGLE_SCALE,
    "r50-single-scale-dc5": replace(R50_SINGLE_SCALE, dilation=True),
    "r50-plus": R50_PLUS,
    "r50-hdetr": R50_HDETR,
    "r50-dino": R50_DINO,
    "r50-dino-5scale": replace(R50_DINO, num_feature_levels=5, backbone_levels=4),
    "swin-l-dino": SWIN_L_DINO,
    "swin-l-dino-5scale": replace(SWIN_L_DINO, num_feature_levels=5, backbone_levels=4),
    "swin-t-hdetr": replace(R50_HDETR, backbone="swin_tiny_patch4_window7_224.ms_in1k", **_SWIN),
    "swin-l-hdetr": replace(R50_HDETR, backbone="swin_large_patch4_window7_224.ms_in22k", num_queries=900, **_SWIN),
    "r50-fast": R50_FAST,
    "r18-fast": replace(R50_FAST, backbone="resnet18.tv_in1k"),
    "r18": replace(R50, backbone="resnet18.tv_in1k"),
    "r18-two-stage": replace(R50_REFINE, backbone="resnet18.tv_in1k", two_stage=True),
    "demo": DEMO,
    "demo-fast": replace(DEMO, denoising_queries=3, denoising_first_layer=1, box_noise=0.4, suppressor=True),  # six groups
    "tiny": replace(DEMO, ffn_dim=64, num_decoder_layers=2, num_queries=10),
}

_TWELVE_EPOCHS = {"train.epochs": 12, "optimizer.drop_at": 11 / 12}
_DINO_RUN = {**_TWELVE_EPOCHS, "optimizer.lr": 1e-4, "optimizer.sampling_lr_scale": 1.0}

RUN_SETTINGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("r50-plus", "r50-hdetr", "swin-t-hdetr", "swin-l-hdetr"), _TWELVE_EPOCHS),
    **dict.fromkeys(("r50-dino", "r50-dino-5scale", "swin-l-dino", "swin-l-dino-5scale"), _DINO_RUN),
}
"""Preset → settings of its published training that are not the defaults (16 images per step), by their full names."""


def model_preset(name: str, **overrides: Any) -> ModelConfig:
    """The settings of a named variant, with single values replaced.

    Raises:
        ValueError: an unknown preset or an unknown setting; the message lists the known ones.
    """
    return MODEL_PRESETS[known(name, "preset", MODEL_PRESETS)].replace(**overrides)


def demo_run(dataset: str, output_dir: str) -> RunConfig:
    """The run of `deformable-detr demo` (also `configs/demo.yaml`): minutes on two CPU cores, counted in steps."""
    return RunConfig(
        dataset=dataset,
        preset="demo-fast",
        output_dir=output_dir,
        model=MODEL_PRESETS["demo-fast"],
        data=DataConfig(
            train_short_sides=(128,),
            crop_short_sides=(),
            eval_short_side=128,
            max_long_side=128,
            pad_size_divisor=64,
            vertical_flip=0.5,
            transpose=0.5,
            num_workers=1,
        ),
        optimizer=OptimizerConfig(
            lr=1.4e-3, backbone_lr_scale=1.0, sampling_lr_scale=1.0, clip_grad_norm=0.5, schedule="cosine", warmup_steps=50
        ),
        train=TrainConfig(steps=900, batch_size=4),
    )
