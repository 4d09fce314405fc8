"""The named variants: the five official ones, and small ones for tests and the demo."""

from dataclasses import replace
from typing import Any

from deformable_detr.config import ModelConfig

R50 = ModelConfig()
R50_REFINE = replace(R50, box_refinement=True)
R50_SINGLE_SCALE = replace(R50, num_feature_levels=1)

DEMO = ModelConfig(
    backbone="resnet18",
    backbone_options={"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256], "stem_width": 32},
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
    "r18": replace(R50, backbone="resnet18.tv_in1k"),
    "r18-two-stage": replace(R50_REFINE, backbone="resnet18.tv_in1k", two_stage=True),
    "demo": DEMO,
    "tiny": replace(DEMO, ffn_dim=64, num_decoder_layers=2, num_queries=10),
}


def model_preset(name: str, **overrides: Any) -> ModelConfig:
    """The settings of a named variant, with single values replaced.

    Raises:
        ValueError: an unknown preset or an unknown setting; the message lists the known ones.
    """
    if name not in MODEL_PRESETS:
        raise ValueError(f"unknown preset {name!r}; known are {', '.join(MODEL_PRESETS)}")
    return MODEL_PRESETS[name].replace(**overrides)
