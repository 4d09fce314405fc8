"""The layouts of mmdetection: 3.x in and out, 2.x in. Its neck has no bias unless `neck.bias=True` is configured."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deformable_detr.checkpoints.families import LABELS, check_family, fit_label_table, name_content, stages_of
from deformable_detr.checkpoints.keymap import KeyMap, Rules, query_rules
from deformable_detr.checkpoints.prediction_heads import count, fold_heads, unfold_heads
from deformable_detr.checkpoints.report import Report
from deformable_detr.checkpoints.side_records import own_record
from deformable_detr.checkpoints.swin import count_norms, position_indices, reorder_from_mmdet, reorder_to_mmdet
from deformable_detr.checkpoints.swin import rules as swin_rules
from deformable_detr.checkpoints.tensor_files import TensorFile
from deformable_detr.checkpoints.weights import Weights, leave_out, translate, translate_back
from deformable_detr.config import ModelConfig
from deformable_detr.files import atomic_file
from deformable_detr.model import DeformableDETR
from deformable_detr.structures import ImageBatch

_BACKBONE = "backbone."


def neck_rules(stages: int, norm: str) -> Rules:
    """The neck as two lists: levels from stages of the backbone, and further ones.

    Args:
        stages: how many stages of the backbone become levels.
        norm: what the layout calls the GroupNorm.
    """
    lists = [(level, f"convs.{level}") if level < stages else (level, f"extra_convs.{level - stages}") for level in range(8)]
    parts = (("0", "conv"), ("1", norm))
    return [(f"neck.projections.{n}.{ours}.{{rest}}", f"neck.{at}.{name}.{{rest}}") for n, at in lists for ours, name in parts]


def count_stages(tensors: dict[str, Tensor]) -> int:
    """How many stages of the backbone become levels, in a file of either of the two layouts."""
    return count(tensors, r"neck\.convs\.(\d+)\.")


def _layer_rules(prefix: str, self_attn: str, cross_attn: str, ffn: str) -> Rules:
    """The layers of encoder and decoder: what mmdetection calls their parts differs between its versions, norms are numbered."""
    parts = {
        "encoder": {"self_attn": self_attn, "self_attn_norm": "norms.0", "ffn_norm": "norms.1"},
        "decoder": {
            "self_attn": f"{self_attn}.attn",
            "self_attn_norm": "norms.0",
            "cross_attn": cross_attn,
            "cross_attn_norm": "norms.1",
            "ffn_norm": "norms.2",
        },
    }
    linear = {"ffn.linear1": f"{ffn}.layers.0.0", "ffn.linear2": f"{ffn}.layers.1"}
    return [
        (f"{side}.layers.{{i}}.{ours}.{{rest}}", f"{prefix}{side}.layers.{{i}}.{theirs}.{{rest}}")
        for side, names in parts.items()
        for ours, theirs in (names | linear).items()
    ]


_BACKBONE_HEADS: Rules = [
    ("backbone.body.{rest}", "backbone.{rest}"),
    ("class_heads.{p}.{rest}", "bbox_head.cls_branches.{p}.{rest}"),
    *((f"decoder.box_heads.{{p}}.layers.{k}.{{rest}}", f"bbox_head.reg_branches.{{p}}.{2 * k}.{{rest}}") for k in range(3)),
]

_RULES: Rules = [
    ("flatten.level_embed", "level_embed"),
    ("query_source.query_embed.weight", "query_embedding.weight"),
    ("query_source.reference_points.{rest}", "reference_points_fc.{rest}"),
    ("query_source.content_embed.weight", "query_embedding.weight"),
    ("decoder.norm.{rest}", "decoder.norm.{rest}"),
    ("decoder.position_mlp.{rest}", "decoder.ref_point_head.{rest}"),
    ("denoising.label_embed.weight", "dn_query_generator.label_embedding.weight"),
    ("query_source.memory_proj.{rest}", "memory_trans_fc.{rest}"),
    ("query_source.memory_norm.{rest}", "memory_trans_norm.{rest}"),
    ("query_source.query_proj.{rest}", "pos_trans_fc.{rest}"),
    ("query_source.query_norm.{rest}", "pos_trans_norm.{rest}"),
    *_layer_rules("", "self_attn", "cross_attn", "ffn"),
]


def key_map(stages: int, norms: int) -> KeyMap:
    """Names of mmdetection 3.x, for a backbone with this number of stages that become levels, and of norms on them."""
    return KeyMap([*swin_rules(_BACKBONE, norms, mmdet=True), *_BACKBONE_HEADS, *neck_rules(stages, "gn"), *_RULES])


def attention_list_rules(prefix: str) -> Rules:
    """The transformer where a layer is a list of attentions, norms and feed-forward networks (mmdetection 2.x, detrex)."""
    return [
        ("flatten.level_embed", f"{prefix}level_embeds"),
        ("query_source.content_embed.weight", f"{prefix}tgt_embed.weight"),
        ("decoder.norm.{rest}", f"{prefix}decoder.norm.{{rest}}"),
        ("decoder.position_mlp.{rest}", f"{prefix}decoder.ref_point_head.{{rest}}"),
        *query_rules(prefix),
        *_layer_rules(prefix, "attentions.0", "attentions.1", "ffns.0"),
    ]


def read(file: TensorFile) -> Weights:
    """A checkpoint of mmdetection 3.x under our names."""
    keys = key_map(count_stages(file.tensors), count_norms(file.tensors, _BACKBONE))
    return reorder_from_mmdet(finish(translate(file.tensors, keys, Report("mmdet"))))


def read_version_2(file: TensorFile) -> Weights:
    """A checkpoint of mmdetection 2.x under our names."""
    query_table = ("query_source.query_embed.weight", "bbox_head.query_embedding.weight")
    neck = neck_rules(count_stages(file.tensors), "gn")
    swin = swin_rules(_BACKBONE, count_norms(file.tensors, _BACKBONE), mmdet=True)
    keys = KeyMap([*swin, *_BACKBONE_HEADS, *neck, query_table, *attention_list_rules("bbox_head.transformer.")])
    return reorder_from_mmdet(finish(translate(file.tensors, keys, Report("mmdet 2.x"))))


def finish(weights: Weights, box_refinement: bool | None = None) -> Weights:
    """What the layouts with a neck of two lists have in common once their tensors have our names."""
    name_content(weights)
    fold_heads(weights, box_refinement)
    fit_label_table(weights)
    add_neck_biases(weights)
    return weights


def add_neck_biases(weights: Weights) -> None:
    """Convolutions without a bias get one of zeros: the same outputs."""
    for level in range(count(weights.tensors, r"neck\.projections\.(\d+)\.0\.weight")):
        weight, bias = f"neck.projections.{level}.0.weight", f"neck.projections.{level}.0.bias"
        if weight in weights.tensors and bias not in weights.tensors:
            weights.report.missing.append(f"{weights.named(bias)} (zeros: the same outputs)")
            weights.tensors[bias] = weights.tensors[weight].new_zeros(len(weights.tensors[weight]))


def write(path: Path, model: DeformableDETR, report: Report, *, neck_bias: bool = True) -> None:
    """Write a checkpoint that mmdetection 3.x loads.

    Args:
        path: the `.pth` file.
        model: the detector.
        report: is filled.
        neck_bias: keep the biases of the neck's convolutions, if there are any; then the config needs `neck.bias=True`. False drops
            them, and the report says how much the outputs change.

    Raises:
        ValueError: a backbone whose tensors have other names there.
    """
    metadata, config = model.metadata, model.metadata.model
    if not config.backbone.startswith(("resnet", "swin_")):
        raise ValueError(
            f"mmdetection names the tensors of the backbone {config.backbone!r} otherwise: only ResNets and Swin can be written"
        )
    family = check_family(config, "mmdetection", {"plain": {}, "dino": {}})
    if config.backbone_options and config.backbone.startswith("resnet"):
        report.notes.append(f"the backbone is a ResNet with {config.backbone_options}: mmdetection has no config for it")
    tensors = reorder_to_mmdet(unfold_heads(model.state_dict(), config.num_decoder_layers))
    biases = neck_bias_names(tensors)
    has_bias = any(tensors[name].any() for name in biases)
    if not (has_bias and neck_bias):
        report.dropped += [f"{name} ({'biases of the neck' if has_bias else 'zeros'})" for name in biases]
        tensors = {name: tensor for name, tensor in tensors.items() if name not in biases}
    if has_bias and not neck_bias:
        report.lossy.append(f"the biases of the neck are dropped: {_effect_of_neck_bias(model)}")
    if family != "dino":
        tensors = leave_out(tensors, report, LABELS)
    elif LABELS in tensors:
        tensors[LABELS] = tensors[LABELS][:-1].clone()  # the last row is never used
    report.mapped = len(tensors)
    stages = stages_of(config)
    keys = key_map(stages, stages if config.backbone_norm else 0)
    state_dict = translate_back(tensors, keys, config, "mmdetection")
    state_dict |= position_indices(state_dict)
    if family == "dino":
        report.notes += _dino_notes(config)
    if has_bias and neck_bias:
        report.notes.append("set model.neck.bias=True in mmdetection's config: these weights have biases there")
    report.notes.append(f"set model.bbox_head.num_classes={config.num_classes} and model.num_queries={config.num_queries}")
    meta: dict[str, Any] = dict(own_record(metadata))
    if metadata.categories:
        meta["dataset_meta"] = {"classes": metadata.categories.names}
    with atomic_file(path) as partial:
        torch.save({"state_dict": state_dict, "meta": meta}, partial)


def _dino_notes(config: ModelConfig) -> list[str]:
    position = f"dict(num_feats={config.hidden_dim // 2}, normalize=True, offset={-config.position_offset}, "
    return [
        f"set model.positional_encoding={position}temperature={config.position_temperature:g})",
        "mmdetection takes the logit of boxes within 1e-3 of the border more exactly in its outputs: those boxes may differ",
    ]


def neck_bias_names(tensors: dict[str, Tensor]) -> list[str]:
    """Our names of the biases of the neck's convolutions."""
    return [name for name in tensors if name.startswith("neck.projections.") and name.endswith(".0.bias")]


@torch.inference_mode()
def _effect_of_neck_bias(model: DeformableDETR) -> str:
    """How far the outputs move on an image of noise when the biases go."""
    image = torch.randn(1, 3, 256, 320, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
    batch = ImageBatch(image, torch.zeros(1, 256, 320, dtype=torch.bool, device="cpu"))
    other = copy.deepcopy(model).eval()
    before = other(batch)
    for name in neck_bias_names(other.state_dict()):
        other.get_parameter(name).data.zero_()
    after = other(batch)
    scores = (after.logits[-1].sigmoid() - before.logits[-1].sigmoid()).abs().max()
    boxes = (after.boxes[-1] - before.boxes[-1]).abs().max()
    return f"on an image of noise, scores change by up to {scores:.2g}, boxes by up to {100 * boxes:.2g} % of the image"
