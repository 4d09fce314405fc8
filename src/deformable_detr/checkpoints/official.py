"""The layout of the original code: `{'model': …, 'args': Namespace, …}` (fundamentalvision/Deformable-DETR), in and out."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deformable_detr.checkpoints.coco_classes import default_categories
from deformable_detr.checkpoints.files import TensorFile
from deformable_detr.checkpoints.keymap import KeyMap
from deformable_detr.checkpoints.prediction_heads import fold_heads, unfold_heads
from deformable_detr.checkpoints.report import Report
from deformable_detr.checkpoints.weights import Weights, translate
from deformable_detr.config import Metadata

NAME = "official"
METADATA_ENTRY = "deformable_detr_metadata"
"""Where our own settings and class names travel beside the weights; the original code does not look there."""

KEYS = KeyMap(
    [
        ("backbone.body.{rest}", "backbone.0.body.{rest}"),
        ("neck.projections.{l}.{rest}", "input_proj.{l}.{rest}"),
        ("flatten.level_embed", "transformer.level_embed"),
        ("query_source.query_embed.weight", "query_embed.weight"),
        ("query_source.reference_points.{rest}", "transformer.reference_points.{rest}"),
        ("query_source.memory_proj.{rest}", "transformer.enc_output.{rest}"),
        ("query_source.memory_norm.{rest}", "transformer.enc_output_norm.{rest}"),
        ("query_source.query_proj.{rest}", "transformer.pos_trans.{rest}"),
        ("query_source.query_norm.{rest}", "transformer.pos_trans_norm.{rest}"),
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
    ],
    copies=[
        ("decoder.box_heads.{p}.{rest}", "transformer.decoder.bbox_embed.{p}.{rest}"),
        ("class_heads.{p}.{rest}", "transformer.decoder.class_embed.{p}.{rest}"),
    ],
)

_ARGUMENTS = {
    "backbone": "backbone",
    "dilation": "dilation",
    "nheads": "num_heads",
    "enc_n_points": "num_encoder_points",
    "dec_n_points": "num_decoder_points",
    "dropout": "dropout",
    "num_queries": "num_queries",
}
"""Their argument → our setting, for those that the tensors do not show."""


def read(file: TensorFile) -> Weights:
    """Weights under our names.

    Raises:
        ValueError: copies that differ, or a network with parts that this one has not.
    """
    arguments = vars(file.extras["args"]) if isinstance(file.extras.get("args"), argparse.Namespace) else {}
    if arguments.get("position_embedding") == "learned":
        raise ValueError(
            f"{file.path} was trained with learned position embeddings (args.position_embedding); only sine ones are known"
        )
    weights = translate(file.tensors, KEYS, Report(NAME))
    copied = any(name.startswith("transformer.decoder.bbox_embed.") for name in file.tensors)
    fold_heads(weights, box_refinement=True if copied else None)
    weights.settings |= {ours: arguments[theirs] for theirs, ours in _ARGUMENTS.items() if _plain(arguments.get(theirs))}
    stored = file.extras.get(METADATA_ENTRY)
    if isinstance(stored, str):
        weights.metadata = Metadata.from_dict(json.loads(stored))
    if arguments.get("dataset_file", "coco") == "coco" and "class_heads.0.bias" in weights.tensors:
        weights.details["categories"] = default_categories(len(weights.tensors["class_heads.0.bias"]))
    return weights


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool)


def write(path: Path, tensors: dict[str, Tensor], metadata: Metadata, report: Report) -> None:
    """Write a checkpoint that the original `main.py --resume PATH --eval` loads.

    Args:
        path: the `.pth` file.
        tensors: under our names.
        metadata: of the network.
        report: is filled.
    """
    config = metadata.model
    state_dict: dict[str, Tensor] = {}
    for name, tensor in unfold_heads(tensors, config.num_decoder_layers).items():
        theirs, copy = KEYS.to_theirs(name), KEYS.copy_of(name)
        if theirs is None:
            raise ValueError(f"the official layout has no place for {name}")
        if name.endswith("num_batches_tracked"):
            report.dropped.append(name)
            continue
        state_dict[theirs] = tensor
        report.mapped += 1
        if copy and (config.two_stage or (config.box_refinement and name.startswith("decoder.box_heads."))):
            state_dict[copy] = tensor
    if not config.freeze_batch_norm:
        report.notes.append("the batch norms were trained; the original code keeps them fixed: the same in evaluation")
    content = {"model": state_dict, "args": _arguments(metadata), METADATA_ENTRY: json.dumps(metadata.to_dict())}
    torch.save(content, path)


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
    )
