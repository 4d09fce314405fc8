"""The layout of transformers: a folder with `model.safetensors`, `config.json` and `preprocessor_config.json`, in and out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deformable_detr.categories import Categories
from deformable_detr.checkpoints.families import LABELS, check_family, level_problems
from deformable_detr.checkpoints.huggingface_config import backbone_problems, model_config, processor_config, read_folder
from deformable_detr.checkpoints.keymap import KeyMap, query_rules
from deformable_detr.checkpoints.native import write_tensors
from deformable_detr.checkpoints.prediction_heads import fold_heads, unfold_heads
from deformable_detr.checkpoints.report import Report
from deformable_detr.checkpoints.tensor_files import TensorFile
from deformable_detr.checkpoints.weights import Weights, leave_out, translate, translate_back
from deformable_detr.config import Metadata, ModelConfig
from deformable_detr.files import atomic_folder, write_json
from deformable_detr.model import DeformableDETR
from deformable_detr.structures import ImageBatch

METADATA_ENTRY = "deformable-detr"

_TOLERANCE = 1e-3
"""Largest difference of scores and boxes that rounding explains; a lost activation moves them by far more."""

KEYS = KeyMap(
    [
        ("backbone.body.{rest}", "model.backbone.conv_encoder.model.{rest}"),
        ("neck.projections.{l}.{rest}", "model.input_proj.{l}.{rest}"),
        ("flatten.level_embed", "model.level_embed"),
        ("query_source.query_embed.weight", "model.query_position_embeddings.weight"),
        *query_rules("model."),
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
        ValueError: another kind of model, or copies that differ.
    """
    weights = translate(file.tensors, KEYS, Report("huggingface"))
    _join_projections(weights)
    read_folder(weights, file.path.parent)
    fold_heads(weights, weights.settings.get("box_refinement"))
    if METADATA_ENTRY in file.header:
        try:
            own = Metadata.from_dict(json.loads(file.header[METADATA_ENTRY]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file.path}: our record in its header cannot be read ({type(error).__name__}: {error})") from error
        changed = {name: value for name, value in weights.details.items() if not _is_said(value, getattr(own, name))}
        weights.metadata = replace(own, **changed)
        if changed:
            weights.report.notes.append(f"the JSON files beside the weights were changed after writing: {', '.join(changed)}")
    return weights


def _is_said(value: Any, ours: Any) -> bool:
    """Whether what a JSON file states is what we wrote into it."""
    if isinstance(value, Categories) and isinstance(ours, Categories):
        return value.names == ours.names  # transformers has no ids
    if isinstance(value, tuple) and isinstance(ours, tuple):
        return np.allclose(value, ours)
    return value is None or value == ours


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


def write(folder: Path, model: DeformableDETR, report: Report) -> None:
    """Write a folder that `DeformableDetrForObjectDetection.from_pretrained` loads.

    Where transformers is installed, it runs the folder on an image of noise, and its boxes must be ours.

    Args:
        folder: is made; in one that exists, the three files are replaced.
        model: the detector.
        report: is filled.

    Raises:
        ValueError: a network that transformers cannot express, or computes otherwise; nothing is written then.
    """
    config = model.metadata.model
    _check_expressible(config)
    tensors = leave_out(model.state_dict(), report, "num_batches_tracked", LABELS)
    # one shared head is written once: transformers ties the others to it
    unfolded = unfold_heads(tensors, config.num_decoder_layers) if config.box_refinement else tensors
    split = _split_projections(unfolded, report)
    report.mapped = len(tensors) - len(report.reshaped)
    state_dict = translate_back(split, KEYS, config, "transformers")
    header = {"format": "pt", METADATA_ENTRY: json.dumps(model.metadata.to_dict())}
    with atomic_folder(folder, merge=True) as partial:
        write_tensors(partial / "model.safetensors", state_dict, header)
        write_json(partial / "config.json", model_config(model.metadata), indent=2)
        write_json(partial / "preprocessor_config.json", processor_config(model.metadata), indent=2)
        _compare_outputs(partial, model, report)


def _check_expressible(config: ModelConfig) -> None:
    check_family(config, "transformers", {"plain": {}})
    problems = [f"the backbone options {config.backbone_options}"] if config.backbone_options else []
    problems += level_problems(config) + backbone_problems(config.backbone.split(".")[0])
    if problems:
        raise ValueError(f"transformers cannot express this network: {'; '.join(problems)}")


def _compare_outputs(folder: Path, model: DeformableDETR, report: Report) -> None:
    """Let transformers run the folder.

    Near ties among proposals may swap two of them, so boxes are compared as a set, and one in twenty may be another one.
    """
    try:
        from transformers import DeformableDetrForObjectDetection
        from transformers.utils import logging as their_logging
    except ImportError:
        report.notes.append("not compared with transformers' own outputs: transformers is not installed")
        return
    verbosity, bars = their_logging.get_verbosity(), their_logging.is_progress_bar_enabled()
    their_logging.set_verbosity_error()
    their_logging.disable_progress_bar()
    try:
        theirs = DeformableDetrForObjectDetection.from_pretrained(folder).eval()
    except Exception as error:
        raise ValueError(f"transformers cannot load this network: {error}") from error
    finally:
        their_logging.set_verbosity(verbosity)
        if bars:
            their_logging.enable_progress_bar()
    difference = _largest_difference(theirs, model)
    if not difference < _TOLERANCE:
        raise ValueError(
            "transformers computes something else with this network: on an image of noise, scores or boxes differ by "
            f"{difference:.2g}"
        )
    report.notes.append(f"compared with transformers on an image of noise: scores and boxes differ by at most {difference:.1g}")


@torch.inference_mode()
def _largest_difference(theirs: nn.Module, model: DeformableDETR) -> float:
    """Distance to the nearest of the other's detections, for the worst but one in twenty; scores and shares of the image."""
    image = torch.randn(1, 3, 384, 512, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
    training, device = model.training, next(model.parameters()).device
    image = image.to(device)
    outputs, predictions = theirs.to(device)(image), model.eval()(ImageBatch.from_images(list(image)))
    model.train(training)
    their = torch.cat((outputs.logits[0].sigmoid(), outputs.pred_boxes[0]), dim=-1)
    ours = torch.cat((predictions.logits[-1, 0].sigmoid(), predictions.boxes[-1, 0]), dim=-1)
    distances = torch.cdist(their.double(), ours.double(), p=float("inf")).amin(1).nan_to_num(float("inf"))
    return float(distances.sort().values[int(0.95 * (len(distances) - 1))])


def _split_projections(tensors: dict[str, Tensor], report: Report) -> dict[str, Tensor]:
    """The inverse of :func:`_join_projections`."""
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".self_attn.in_proj_" in name:
            report.reshaped.append(f"{name} (split into q, k, v)")
            split |= {name.replace("in_proj_", f"{part}_proj."): rows for part, rows in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            split[name] = tensor
    return split
