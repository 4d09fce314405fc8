"""Reads the settings of the network off the shapes of its tensors."""

import logging
import re
from typing import Any

from torch import Tensor

from deformable_detr.checkpoints.families import CONTENT, hidden_settings, is_dino, keep_queries
from deformable_detr.checkpoints.prediction_heads import count
from deformable_detr.checkpoints.report import shorten
from deformable_detr.checkpoints.swin import settings_of_swin
from deformable_detr.checkpoints.weights import Weights
from deformable_detr.config import ModelConfig
from deformable_detr.model.plain_backbone import is_plain
from deformable_detr.presets import MODEL_PRESETS

logger = logging.getLogger(__name__)

_USUAL_POINTS = 4
_RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18.tv_in1k",
    (False, (3, 4, 6, 3)): "resnet34.tv_in1k",
    (True, (3, 4, 6, 3)): "resnet50.tv_in1k",
    (True, (3, 4, 23, 3)): "resnet101.tv_in1k",
    (True, (3, 8, 36, 3)): "resnet152.tv_in1k",
}
"""(bottleneck blocks, blocks per stage) → timm's name."""

_LEARNED_WITH = (
    "dilation",
    "num_heads",
    "num_encoder_points",
    "num_decoder_points",
    "position_temperature",
    "position_offset",
    "logit_eps",
    "output_eps",
    "proposal_classes",
)
"""Settings that the tensors do not show, and with other values of which they would compute something else than they have learned:
where a record of ours says them, nothing is left to be chosen."""

_HIDDEN = (
    *_LEARNED_WITH,
    "dropout",
    "backbone",
    "backbone_options",
    "freeze_batch_norm",
    "frozen_backbone_stages",
    "pretrained_backbone",
    "original_padding",
    "max_detections",
    "proposal_loss",
    "look_forward_twice",
    "label_noise",
    "box_noise",
    "denoising_first_layer",
)
"""Settings that the tensors do not show."""

_QUERIES = ("num_queries", "one_to_many_queries", "denoising_queries")
"""Settings that may be chosen where queries come from proposals."""


def infer_config(weights: Weights, overrides: dict[str, Any]) -> ModelConfig:
    """The settings of the network that the tensors belong to.

    Args:
        weights: under our names, heads folded.
        overrides: what the user says; may only contradict what the file cannot show.

    Raises:
        ValueError: tensors are missing or contradict each other, or the user asks for another variant than the file holds.
    """
    stored = weights.metadata.model if weights.metadata is not None else _stored_config(weights, overrides)
    wanted = with_overrides(stored, overrides, weights)
    keep_queries(weights, stored, wanted)
    return wanted


def _stored_config(weights: Weights, overrides: dict[str, Any]) -> ModelConfig:
    """The settings of a file without our own record; `overrides` say what it cannot show."""
    seen = _seen_settings(weights)
    drop_path_rate = weights.settings.pop("drop_path_rate", None)
    backbone = settings_of_swin(weights.tensors, drop_path_rate) or _backbone_settings(weights)
    settings = {**hidden_settings(weights, overrides), **weights.settings, **backbone, **seen}
    settings |= {name: value for name, value in overrides.items() if name in _HIDDEN}
    plain = is_plain(settings.get("backbone", ModelConfig.backbone))  # those have a norm whatever this setting says
    settings["backbone_norm"] = "backbone.norms.0.weight" in weights.tensors and not plain
    settings |= _attention_settings(weights, settings)
    config = ModelConfig.from_dict({"pretrained_backbone": False, **settings})
    if config.num_feature_levels == 1 and "dilation" not in settings:
        note = "a single-scale network: pass dilation=True if it is the DC5 variant, the tensors cannot say"
        weights.report.notes.append(note)
        logger.warning("%s", note)
    return config


def with_overrides(config: ModelConfig, overrides: dict[str, Any], weights: Weights) -> ModelConfig:
    """The settings with those of the user, as far as the tensors leave a choice.

    Raises:
        ValueError: an unknown setting, or one that the tensors, or a record of ours, contradict.
    """
    free = {*_HIDDEN, *_QUERIES} if config.two_stage else {*_HIDDEN}
    if weights.metadata is not None:
        free -= {*_LEARNED_WITH}
    chosen = config.replace(**overrides)
    for name in overrides:
        if name not in free and getattr(chosen, name) != getattr(config, name):
            raise ValueError(
                f"{name}={overrides[name]!r} was asked for, but the {weights.report.source_format} checkpoint holds a network with "
                f"{name}={getattr(config, name)!r}"
            )
    return chosen


def variant_name(config: ModelConfig) -> str:
    """The preset that a network is like, for messages; its own width and classes may differ."""
    names = ("box_refinement", "two_stage", "num_feature_levels", "dilation", "query_content", "query_position")
    for name, preset in MODEL_PRESETS.items():
        same_backbone = preset.backbone.split(".")[0] == config.backbone.split(".")[0]
        same_branches = bool(preset.one_to_many_queries) == bool(config.one_to_many_queries)
        if same_backbone and same_branches and all(getattr(preset, key) == getattr(config, key) for key in names):
            return name
    return f"{config.backbone.split('.')[0]}, {config.num_feature_levels} levels"


def _seen_settings(weights: Weights) -> dict[str, Any]:
    tensors = weights.tensors
    two_stage = bool(weights.settings.get("two_stage"))
    seen = {
        "num_feature_levels": _shape(weights, "flatten.level_embed")[0],
        "hidden_dim": _shape(weights, "flatten.level_embed")[1],
        "num_classes": _shape(weights, "class_heads.0.bias")[0],
        "num_encoder_layers": count(tensors, r"encoder\.layers\.(\d+)\."),
        "num_decoder_layers": count(tensors, r"decoder\.layers\.(\d+)\."),
        "ffn_dim": _shape(weights, "decoder.layers.0.ffn.linear1.bias")[0],
        "two_stage": two_stage,
        "box_refinement": bool(weights.settings.get("box_refinement")),
        "shared_heads": bool(weights.settings.get("shared_heads")),
        "query_content": "learned" if CONTENT in tensors else "proposal",
        "query_position": "reference" if is_dino(weights) else "proposal",
        "decoder_norm": "decoder.norm.weight" in tensors,
        "relation_bias": "decoder.relation.proj.weight" in tensors,
        "suppressor": "suppressor.score_head.weight" in tensors,
        "backbone_levels": max(3, sum(_is_projection(name, tensor) for name, tensor in tensors.items())),
    }
    if not two_stage:
        seen["num_queries"] = _shape(weights, "query_source.query_embed.weight")[0]
    return seen


def _is_projection(name: str, tensor: Tensor) -> bool:
    """Whether a tensor makes a level out of a stage of the backbone: further levels have 3×3 kernels."""
    return bool(re.fullmatch(r"neck\.projections\.\d+\.0\.weight", name)) and tensor.shape[-1] == 1


def _shape(weights: Weights, name: str) -> tuple[int, ...]:
    if name not in weights.tensors:
        unknown = f"; not understood: {shorten(sorted(weights.unknown))}" if weights.unknown else ""
        raise ValueError(f"{weights.report.source_format} checkpoint without {weights.named(name)}{unknown}")
    return tuple(weights.tensors[name].shape)


def _attention_settings(weights: Weights, settings: dict[str, Any]) -> dict[str, Any]:
    """Heads and points: the tensors only show their product, so what is not stated is taken from 4 points or 8 heads."""
    levels, stated = settings["num_feature_levels"], "num_heads" in settings
    if stated and not (type(settings["num_heads"]) is int and settings["num_heads"] > 0):
        raise ValueError(f"num_heads must be a whole number of at least 1, not {settings['num_heads']!r}")
    products = {
        side: _shape(weights, name)[0] // levels
        for side, name in (
            ("num_encoder_points", "encoder.layers.0.self_attn.attention_weights.bias"),
            ("num_decoder_points", "decoder.layers.0.cross_attn.attention_weights.bias"),
        )
        if settings["num_encoder_layers"] or side == "num_decoder_points"
    }
    any_side, any_product = next(reversed(products.items()))
    num_heads = settings["num_heads"] if stated else any_product // settings.get(any_side, _USUAL_POINTS)
    num_heads = num_heads or 8
    found = {"num_heads": num_heads} | {side: product // num_heads for side, product in products.items()}
    for side, product in products.items():
        if product != found[side] * num_heads or settings["hidden_dim"] % num_heads:
            raise ValueError(
                f"{weights.report.source_format} checkpoint: {product} attention weights per level do not divide among {num_heads} "
                f"heads: pass num_heads={'another number' if stated else '…'}"
            )
    if not stated and num_heads != 8:
        note = f"{num_heads} heads of {found[any_side]} points assumed; pass num_heads if that is wrong, the tensors cannot say"
        weights.report.notes.append(note)
        logger.warning("%s", note)
    return found


def _backbone_settings(weights: Weights) -> dict[str, Any]:
    """The ResNet that the tensors belong to; nothing for other backbones."""
    tensors, prefix = weights.tensors, "backbone.body."
    blocks = tuple(count(tensors, rf"backbone\.body\.layer{stage}\.(\d+)\.") for stage in range(1, 5))
    if not all(blocks):
        return {"frozen_backbone_stages": 0} if any(name.startswith(prefix) for name in tensors) else {}
    bottleneck = any(re.match(r"backbone\.body\.layer1\.0\.conv3", name) for name in tensors)
    name = _RESNETS.get((bottleneck, blocks))
    firsts = [tensors.get(f"{prefix}layer{stage}.0.conv1.weight") for stage in range(1, 5)]
    channels = [0 if weight is None else weight.shape[0] for weight in firsts]
    settings: dict[str, Any] = {"backbone": name or ("resnet50" if bottleneck else "resnet18")}
    options: dict[str, Any] = {}
    if name is None:
        options["layers"] = list(blocks)
    if channels != [64, 128, 256, 512] and all(channels):
        options["channels"] = channels
    stated = weights.settings.get("backbone", settings["backbone"])
    if stated.split(".")[0] not in {known.split(".")[0] for known in _RESNETS.values()}:
        settings["backbone"] = stated  # a relative with the same blocks, such as resnet50d
    return settings | {"backbone_options": options}
