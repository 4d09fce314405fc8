"""The layout of the original code: `{'model': …, 'args': Namespace, …}` (fundamentalvision/Deformable-DETR), in and out."""

import argparse
from pathlib import Path
from typing import Any

import torch

from deformable_detr.checkpoints.families import (
    CONTENT,
    LABELS,
    QUERIES,
    check_family,
    family_of,
    fit_label_table,
    level_problems,
    name_content,
    stages_of,
)
from deformable_detr.checkpoints.keymap import KeyMap, query_rules
from deformable_detr.checkpoints.prediction_heads import fold_heads, unfold_heads
from deformable_detr.checkpoints.report import Report
from deformable_detr.checkpoints.side_records import own_record
from deformable_detr.checkpoints.swin import count_norms, position_indices
from deformable_detr.checkpoints.swin import rules as swin_rules
from deformable_detr.checkpoints.tensor_files import TensorFile
from deformable_detr.checkpoints.weights import Weights, leave_out, translate, translate_back
from deformable_detr.config import Metadata, ModelConfig
from deformable_detr.files import atomic_file
from deformable_detr.model import DeformableDETR

_RULES = [
    ("backbone.body.{rest}", "backbone.0.body.{rest}"),
    ("neck.projections.{l}.{rest}", "input_proj.{l}.{rest}"),
    ("flatten.level_embed", "transformer.level_embed"),
    ("query_source.query_embed.weight", "query_embed.weight"),
    *query_rules("transformer."),
    ("encoder.layers.{i}.self_attn.{rest}", "transformer.encoder.layers.{i}.self_attn.{rest}"),
    ("encoder.layers.{i}.self_attn_norm.{rest}", "transformer.encoder.layers.{i}.norm1.{rest}"),
    ("encoder.layers.{i}.ffn.linear{n}.{rest}", "transformer.encoder.layers.{i}.linear{n}.{rest}"),
    ("encoder.layers.{i}.ffn_norm.{rest}", "transformer.encoder.layers.{i}.norm2.{rest}"),
    ("decoder.layers.{i}.self_attn.{rest}", "transformer.decoder.layers.{i}.self_attn.{rest}"),
    ("decoder.layers.{i}.self_attn_norm.{rest}", "transformer.decoder.layers.{i}.norm2.{rest}"),
    ("decoder.layers.{i}.cross_attn.{rest}", "transformer.decoder.layers.{i}.cross_attn.{rest}"),
    ("decoder.layers.{i}.cross_attn_norm.{rest}", "transformer.decoder.layers.{i}.norm1.{rest}"),
    ("decoder.layers.{i}.ffn.linear{n}.{rest}", "transformer.decoder.layers.{i}.linear{n}.{rest}"),
    ("decoder.layers.{i}.ffn_norm.{rest}", "transformer.decoder.layers.{i}.norm3.{rest}"),
    ("class_heads.{p}.{rest}", "class_embed.{p}.{rest}"),
    ("decoder.box_heads.{p}.{rest}", "bbox_embed.{p}.{rest}"),
    ("query_source.content_embed.weight", "transformer.tgt_embed.weight"),
    ("query_source.class_head.{rest}", "transformer.enc_out_class_embed.{rest}"),
    ("query_source.box_head.{rest}", "transformer.enc_out_bbox_embed.{rest}"),
    ("decoder.norm.{rest}", "transformer.decoder.norm.{rest}"),
    ("decoder.position_mlp.{rest}", "transformer.decoder.ref_point_head.{rest}"),
    ("denoising.label_embed.weight", "label_enc.weight"),
]
COPIES = [
    ("decoder.box_heads.{p}.{rest}", "transformer.decoder.bbox_embed.{p}.{rest}"),
    ("class_heads.{p}.{rest}", "transformer.decoder.class_embed.{p}.{rest}"),
]
_SWIN_OF_DINO, _SWIN_OF_HDETR = "backbone.0.", "backbone.0.body."


def key_map(swin: str, norms: int) -> KeyMap:
    """The names; a Swin Transformer stands under the prefix `swin`, and this number of its outputs have norms."""
    return KeyMap([*swin_rules(swin, norms), *_RULES], COPIES)


def read(file: TensorFile) -> Weights:
    """Weights under our names.

    Raises:
        ValueError: copies that differ.
    """
    swin = _SWIN_OF_DINO if f"{_SWIN_OF_DINO}patch_embed.proj.weight" in file.tensors else _SWIN_OF_HDETR
    weights = translate(file.tensors, key_map(swin, count_norms(file.tensors, swin)), Report("official"))
    name_content(weights)
    fold_heads(weights, has_copies(file))
    fit_label_table(weights)
    return weights


def has_copies(file: TensorFile) -> bool | None:
    """Whether the heads stand in the decoder, too, as they do with box refinement; None where that says nothing."""
    return any(name.startswith("transformer.decoder.bbox_embed.") for name in file.tensors) or None


def write(path: Path, model: DeformableDETR, report: Report) -> None:
    """Write a checkpoint that the original `main.py --resume PATH --eval` loads.

    Args:
        path: the `.pth` file.
        model: the detector.
        report: is filled.

    Raises:
        ValueError: a network that the original code does not have.
    """
    config = model.metadata.model
    family = check_family(
        config,
        "the official layout",
        {"plain": {}, "hdetr": {}, "dino": {"position_offset": 0.0, "shared_heads": True}},
    )
    if problems := level_problems(config):
        raise ValueError(f"the official layout cannot express this network: {problems[0]}")
    tensors = unfold_heads(model.state_dict(), config.num_decoder_layers, proposals_last=family != "dino")
    tensors = leave_out(tensors, report, "num_batches_tracked", *(() if family == "dino" else (LABELS,)))
    if family == "hdetr" and CONTENT in tensors:  # the original calls both tables the same
        tensors[QUERIES] = tensors.pop(CONTENT)
    report.mapped = len(tensors)
    keys = key_map(_SWIN_OF_DINO if family == "dino" else _SWIN_OF_HDETR, stages_of(config) if config.backbone_norm else 0)
    state_dict = translate_back(tensors, keys, config, "the official layout")
    state_dict |= position_indices(state_dict)
    if not config.freeze_batch_norm:
        report.notes.append("the batch norms were trained; the original code keeps them fixed: the same in evaluation")
    with atomic_file(path) as partial:
        torch.save({"model": state_dict, "args": _arguments(model.metadata), **own_record(model.metadata)}, partial)


def _arguments(metadata: Metadata) -> argparse.Namespace:
    config = metadata.model
    return argparse.Namespace(
        backbone=config.backbone.split(".")[0],
        dilation=config.dilation,
        position_embedding="sine",
        num_feature_levels=config.num_feature_levels,
        enc_layers=config.num_encoder_layers,
        dec_layers=config.num_decoder_layers,
        dim_feedforward=config.ffn_dim,
        hidden_dim=config.hidden_dim,
        dropout=config.dropout,
        nheads=config.num_heads,
        num_queries=config.num_queries,
        enc_n_points=config.num_encoder_points,
        dec_n_points=config.num_decoder_points,
        with_box_refine=config.box_refinement,
        two_stage=config.two_stage,
        masks=False,
        dataset_file="coco",
        **_FURTHER_ARGUMENTS[family_of(config)](config),
    )


def _hybrid_arguments(config: ModelConfig) -> dict[str, Any]:
    return {
        "mixed_selection": config.query_content == "learned",
        "look_forward_twice": config.look_forward_twice,
        "num_queries_one2one": config.num_queries,
        "num_queries_one2many": config.one_to_many_queries,
        "topk": config.max_detections,
    }


def _dino_arguments(config: ModelConfig) -> dict[str, Any]:
    return {
        "num_classes": config.num_classes,
        "pe_temperatureH": config.position_temperature,
        "pe_temperatureW": config.position_temperature,
        "two_stage_type": "standard",
        "num_select": config.max_detections,
        "use_dn": config.denoising_queries > 0,
        "dn_number": config.denoising_queries,
        "dn_label_noise_ratio": config.label_noise,
        "dn_box_noise_scale": config.box_noise,
        "dn_labelbook_size": config.num_classes,
        "return_interm_indices": list(range(4 - stages_of(config), 4)),
    }


_FURTHER_ARGUMENTS = {"plain": lambda config: {}, "hdetr": _hybrid_arguments, "dino": _dino_arguments}
