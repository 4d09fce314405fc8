"""The layout of transformers: a folder with `model.safetensors`, `config.json` and `preprocessor_config.json`, in and out."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from deformable_detr.categories import Categories
from deformable_detr.checkpoints.coco_classes import categories_of_names
from deformable_detr.checkpoints.files import TensorFile
from deformable_detr.checkpoints.keymap import KeyMap
from deformable_detr.checkpoints.native import separate_memory, write_atomically
from deformable_detr.checkpoints.prediction_heads import fold_heads, unfold_heads
from deformable_detr.checkpoints.report import Report
from deformable_detr.checkpoints.weights import Weights, translate
from deformable_detr.config import Metadata, ModelConfig

NAME = "huggingface"
METADATA_ENTRY = "deformable-detr"

KEYS = KeyMap(
    [
        ("backbone.body.{rest}", "model.backbone.conv_encoder.model.{rest}"),
        ("neck.projections.{l}.{rest}", "model.input_proj.{l}.{rest}"),
        ("flatten.level_embed", "model.level_embed"),
        ("query_source.query_embed.weight", "model.query_position_embeddings.weight"),
        ("query_source.reference_points.{rest}", "model.reference_points.{rest}"),
        ("query_source.memory_proj.{rest}", "model.enc_output.{rest}"),
        ("query_source.memory_norm.{rest}", "model.enc_output_norm.{rest}"),
        ("query_source.query_proj.{rest}", "model.pos_trans.{rest}"),
        ("query_source.query_norm.{rest}", "model.pos_trans_norm.{rest}"),
        ("encoder.layers.{i}.self_attn_norm.{rest}", "model.encoder.layers.{i}.self_attn_layer_norm.{rest}"),
        ("encoder.layers.{i}.self_attn.{rest}", "model.encoder.layers.{i}.self_attn.{rest}"),
        ("encoder.layers.{i}.ffn.linear{n}.{rest}", "model.encoder.layers.{i}.fc{n}.{rest}"),
        ("encoder.layers.{i}.ffn_norm.{rest}", "model.encoder.layers.{i}.final_layer_norm.{rest}"),
        ("decoder.layers.{i}.self_attn_norm.{rest}", "model.decoder.layers.{i}.self_attn_layer_norm.{rest}"),
        ("decoder.layers.{i}.self_attn.{rest}", "model.decoder.layers.{i}.self_attn.{rest}"),
        ("decoder.layers.{i}.cross_attn_norm.{rest}", "model.decoder.layers.{i}.encoder_attn_layer_norm.{rest}"),
        ("decoder.layers.{i}.cross_attn.{rest}", "model.decoder.layers.{i}.encoder_attn.{rest}"),
        ("decoder.layers.{i}.ffn.linear{n}.{rest}", "model.decoder.layers.{i}.fc{n}.{rest}"),
        ("decoder.layers.{i}.ffn_norm.{rest}", "model.decoder.layers.{i}.final_layer_norm.{rest}"),
        ("class_heads.{p}.{rest}", "class_embed.{p}.{rest}"),
        ("decoder.box_heads.{p}.{rest}", "bbox_embed.{p}.{rest}"),
    ],
    copies=[
        ("decoder.box_heads.{p}.{rest}", "model.decoder.bbox_embed.{p}.{rest}"),
        ("class_heads.{p}.{rest}", "model.decoder.class_embed.{p}.{rest}"),
    ],
    aliases=[  # of a running model of transformers 5; its files have those above
        ("backbone.body.{rest}", "model.backbone.model.{rest}"),
        ("decoder.layers.{i}.self_attn.out_proj.{rest}", "model.decoder.layers.{i}.self_attn.o_proj.{rest}"),
        ("encoder.layers.{i}.ffn.linear{n}.{rest}", "model.encoder.layers.{i}.mlp.fc{n}.{rest}"),
        ("decoder.layers.{i}.ffn.linear{n}.{rest}", "model.decoder.layers.{i}.mlp.fc{n}.{rest}"),
    ],
)


def read(file: TensorFile) -> Weights:
    """Weights under our names, with what `config.json` and `preprocessor_config.json` beside them say.

    Raises:
        ValueError: a network with parts that this one has not, or copies that differ.
    """
    config = _read_json(file.path.parent / "config.json")
    _check_parts(config, file.path)
    weights = translate(file.tensors, KEYS, Report(NAME))
    _join_projections(weights)
    fold_heads(weights, config.get("with_box_refine"))
    weights.settings |= _settings(config)
    weights.details |= _preprocessing(_read_json(file.path.parent / "preprocessor_config.json"))
    weights.details["categories"] = _categories(config, len(weights.tensors.get("class_heads.0.bias", ())))
    if METADATA_ENTRY in file.header:
        weights.metadata = Metadata.from_dict(json.loads(file.header[METADATA_ENTRY]))
    return weights


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _check_parts(config: dict[str, Any], path: Path) -> None:
    model_type = config.get("model_type", "deformable_detr")
    if model_type != "deformable_detr":
        raise ValueError(f"{path.parent} holds a {model_type} model (config.json), not deformable_detr")
    backbone = config.get("backbone_config") or {}
    if backbone.get("model_type", "timm_backbone") != "timm_backbone":
        raise ValueError(
            f"{path.parent} has a backbone of type {backbone['model_type']} (config.json): only timm backbones are known"
        )
    if config.get("position_embedding_type", "sine") != "sine":
        raise ValueError(f"{path.parent} has learned position embeddings (config.json): only sine ones are known")


def _join_projections(weights: Weights) -> None:
    """Three projections of queries, keys and values → one tensor."""
    for name in [name for name in weights.tensors if ".self_attn.q_proj." in name]:
        parts = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        if all(part in weights.tensors for part in parts):
            joined = name.replace(".q_proj.", ".in_proj_")
            origin = weights.named(name).replace(".q_proj.", ".{q,k,v}_proj.")
            weights.tensors[joined] = torch.cat([weights.pop(part) for part in parts])
            weights.origin[joined] = origin
            weights.report.reshaped.append(f"{origin} (joined)")


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """Our settings, for those that the tensors do not show."""
    two_stage = config.get("two_stage", False)
    theirs = {
        "dilation": config.get("dilation"),
        "num_heads": config.get("encoder_attention_heads"),
        "dropout": config.get("dropout"),
        "backbone": config.get("backbone") or (config.get("backbone_config") or {}).get("backbone"),
        "num_queries": config.get("two_stage_num_proposals" if two_stage else "num_queries"),
    }
    return {name: value for name, value in theirs.items() if value is not None}


def _preprocessing(processor: dict[str, Any]) -> dict[str, Any]:
    size = processor.get("size") if isinstance(processor.get("size"), dict) else {}
    theirs = {
        "eval_short_side": size.get("shortest_edge"),  # type: ignore[union-attr]
        "max_long_side": size.get("longest_edge"),  # type: ignore[union-attr]
        "mean": tuple(processor["image_mean"]) if "image_mean" in processor else None,
        "std": tuple(processor["image_std"]) if "image_std" in processor else None,
    }
    return {name: value for name, value in theirs.items() if value is not None}


def _categories(config: dict[str, Any], num_classes: int) -> Categories | None:
    labels = {int(label): name for label, name in (config.get("id2label") or {}).items()}
    if not labels or all(name == f"LABEL_{label}" for label, name in labels.items()):
        return None
    return categories_of_names(tuple(labels.get(label, f"class {label}") for label in range(num_classes)), num_classes)


def write(folder: Path, tensors: dict[str, Tensor], metadata: Metadata, report: Report) -> None:
    """Write a folder that `DeformableDetrForObjectDetection.from_pretrained` loads.

    Args:
        folder: is made.
        tensors: under our names.
        metadata: of the network.
        report: is filled.

    Raises:
        ValueError: a network that transformers cannot express.
    """
    config = metadata.model
    if config.backbone_options:
        raise ValueError(f"transformers cannot express the backbone options {config.backbone_options}")
    if config.num_feature_levels == 2:
        raise ValueError("transformers has no Deformable DETR of 2 feature levels")
    state_dict: dict[str, Tensor] = {}
    for name, tensor in _unfold(tensors, config).items():
        if name.endswith("num_batches_tracked"):
            report.dropped.append(name)
            continue
        for ours, part in _split_projections(name, tensor, report).items():
            theirs, copy = KEYS.to_theirs(ours), KEYS.copy_of(ours)
            if theirs is None:
                raise ValueError(f"transformers' layout has no place for {ours}")
            state_dict[theirs] = part
            if copy and (config.two_stage or (config.box_refinement and ours.startswith("decoder.box_heads."))):
                state_dict[copy] = part
    report.mapped = len(tensors) - len(report.reshaped) - len(report.dropped)
    folder.mkdir(parents=True, exist_ok=True)
    header = {"format": "pt", METADATA_ENTRY: json.dumps(metadata.to_dict())}
    write_atomically(folder / "model.safetensors", lambda path: save_file(separate_memory(state_dict), path, header))
    for name, content in (("config.json", model_config(metadata)), ("preprocessor_config.json", processor_config(metadata))):
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _unfold(tensors: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """One shared head is written once: transformers ties the others to it."""
    return unfold_heads(tensors, config.num_decoder_layers) if config.box_refinement else tensors


def _split_projections(name: str, tensor: Tensor, report: Report) -> dict[str, Tensor]:
    if ".self_attn.in_proj_" not in name:
        return {name: tensor}
    report.reshaped.append(f"{name} (split into q, k, v)")
    return {name.replace("in_proj_", f"{part}_proj."): rows for part, rows in zip("qkv", tensor.chunk(3), strict=True)}


def model_config(metadata: Metadata) -> dict[str, Any]:
    """The content of transformers' `config.json`."""
    config = metadata.model
    names = metadata.categories.names if metadata.categories else [f"LABEL_{label}" for label in range(config.num_classes)]
    return {
        "architectures": ["DeformableDetrForObjectDetection"],
        "model_type": "deformable_detr",
        "use_timm_backbone": True,
        "use_pretrained_backbone": False,
        "backbone": config.backbone.split(".")[0],
        "dilation": config.dilation,
        "num_feature_levels": config.num_feature_levels,
        "d_model": config.hidden_dim,
        "encoder_layers": config.num_encoder_layers,
        "decoder_layers": config.num_decoder_layers,
        "encoder_attention_heads": config.num_heads,
        "decoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": config.ffn_dim,
        "decoder_ffn_dim": config.ffn_dim,
        "encoder_n_points": config.num_encoder_points,
        "decoder_n_points": config.num_decoder_points,
        "dropout": config.dropout,
        "attention_dropout": config.dropout,
        "activation_dropout": config.dropout,
        "num_queries": config.num_queries,
        "two_stage": config.two_stage,
        "two_stage_num_proposals": config.num_queries,
        "with_box_refine": config.box_refinement,
        "auxiliary_loss": True,
        "position_embedding_type": "sine",
        "tie_word_embeddings": not config.box_refinement,
        "id2label": {str(label): name for label, name in enumerate(names)},
        "label2id": {name: label for label, name in enumerate(names)},
    }


def processor_config(metadata: Metadata) -> dict[str, Any]:
    """The content of transformers' `preprocessor_config.json`."""
    return {
        "image_processor_type": "DeformableDetrImageProcessor",
        "format": "coco_detection",
        "do_resize": True,
        "size": {"shortest_edge": metadata.eval_short_side, "longest_edge": metadata.max_long_side},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(metadata.mean),
        "image_std": list(metadata.std),
        "do_pad": True,
    }
