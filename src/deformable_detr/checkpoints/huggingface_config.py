"""`config.json` and `preprocessor_config.json` of transformers: each entry is understood, compared, or refused by name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import nn

from deformable_detr.categories import Categories
from deformable_detr.checkpoints.families import stages_of
from deformable_detr.checkpoints.side_records import read_classes
from deformable_detr.checkpoints.weights import Weights
from deformable_detr.config import IMAGENET_MEAN, IMAGENET_STD, Metadata, ModelConfig
from deformable_detr.model.skeleton import skeletons


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_COMPARED = {
    "d_model": "hidden_dim",
    "hidden_size": "hidden_dim",
    "encoder_layers": "num_encoder_layers",
    "num_hidden_layers": "num_encoder_layers",
    "decoder_layers": "num_decoder_layers",
    "encoder_attention_heads": "num_heads",
    "decoder_attention_heads": "num_heads",
    "num_attention_heads": "num_heads",
    "encoder_ffn_dim": "ffn_dim",
    "decoder_ffn_dim": "ffn_dim",
    "encoder_n_points": "num_encoder_points",
    "decoder_n_points": "num_decoder_points",
    "num_feature_levels": "num_feature_levels",
    "two_stage": "two_stage",
    "with_box_refine": "box_refinement",
    "num_labels": "num_classes",
    "dropout": "dropout",
}
"""Their entry → our setting, which must have its value in the model that is built."""

_SYNONYMS = _words("hidden_size num_hidden_layers num_attention_heads num_labels")
"""Those that say again what others say."""

_FIXED = {"activation_function": "relu", "position_embedding_type": "sine", "num_channels": 3, "auto_map": None}
_FIXED |= {"quantization_config": None, "is_encoder_decoder": True, "return_intermediate": True, "pruned_heads": None}
"""Entries with one value that this model can have."""

_ELSEWHERE = _words(
    """
    model_type architectures num_queries two_stage_num_proposals id2label label2id dilation backbone backbone_config
    backbone_kwargs use_timm_backbone use_pretrained_backbone
    """
)

_WITHOUT_EFFECT = _words(
    """
    attention_dropout activation_dropout encoder_layerdrop decoder_layerdrop init_std init_xavier_std class_cost bbox_cost
    giou_cost mask_loss_coefficient dice_loss_coefficient bbox_loss_coefficient giou_loss_coefficient cls_loss_coefficient
    eos_coefficient focal_alpha auxiliary_loss disable_custom_kernels max_position_embeddings tie_word_embeddings
    scale_embedding
    _name_or_path transformers_version torch_dtype dtype use_bfloat16 torchscript return_dict output_hidden_states
    output_attentions use_cache is_decoder add_cross_attention cross_attention_hidden_size tie_encoder_decoder
    tf_legacy_loss finetuning_task problem_type tokenizer_class prefix bos_token_id pad_token_id eos_token_id sep_token_id
    decoder_start_token_id task_specific_params max_length min_length do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences chunk_size_feed_forward output_scores
    return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty
    suppress_tokens begin_suppress_tokens _commit_hash _attn_implementation attn_implementation _attn_implementation_autoset
    license tags
    """
)
"""Entries that change nothing in the outputs of trained weights; most are in the config of every model, text generators too."""

_PROCESSOR = _words(
    """
    do_resize size max_size do_rescale rescale_factor do_normalize image_mean image_std resample do_center_crop crop_size
    do_pad pad_size size_divisor pad_and_return_pixel_mask
    image_processor_type feature_extractor_type processor_class format do_convert_annotations return_segmentation_masks
    masks_path do_convert_rgb data_format input_data_format default_to_square device return_tensors disable_grouping
    auto_map do_reduce_labels _valid_processor_keys
    """
)
_OBJECTS = ("id2label", "label2id", "backbone_config", "backbone_kwargs", "image_processor")
_FLAGS = _words("two_stage with_box_refine dilation use_timm_backbone do_resize do_rescale do_normalize do_center_crop")
_NUMBERS = {"size": (1, 2), "max_size": (), "rescale_factor": (), "image_mean": (3,), "image_std": (3,)}
"""Entries of numbers → how many there may be, where they stand in a list."""

_BACKBONE_OPTIONS = frozenset({"out_indices", "output_stride", "in_chans", "num_channels", "pretrained", "features_only"})
"""Those of `backbone_kwargs` that are understood."""

_BATCH_NORM_EPS = 1e-5
_FAR = 100_000
"""A long side that no image reaches: no limit."""


def read_folder(weights: Weights, folder: Path) -> None:
    """Read `config.json` and `preprocessor_config.json` (or `processor_config.json`), where they are.

    Args:
        weights: gets what they state, and what of it is refused or lost.
        folder: of the weights.

    Raises:
        ValueError: one of them is not JSON, an entry has a type that it cannot have, or the folder holds another kind of model.
    """
    config = _read_json(folder / "config.json")
    if config and "model_type" not in config and isinstance(config.get("model"), Mapping):
        config = {}  # the record of a saved detector of ours
    if config:
        _check_kinds(config, folder / "config.json")
        _read_config(config, folder, weights)
        weights.refused = [f"config.json: {reason}" for reason in weights.refused]
    path = folder / "preprocessor_config.json"
    processor = _read_json(path)
    if not processor:
        path = folder / "processor_config.json"
        processor = _read_json(path)
        _check_kinds(processor, path)
        processor = processor.get("image_processor") or {}
    _check_kinds(processor, path)
    _read_processor(processor, weights)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object with settings")
    return content


def _check_kinds(content: Mapping[str, Any], path: Path) -> None:
    """See that entries are of the types that they are read as: a text in the place of a number is true, or has no length."""
    for name, value in content.items():
        if value is None:
            continue
        if name in _OBJECTS and not isinstance(value, Mapping):
            raise ValueError(f"{path}: {name} must be an object, not {value!r}")
        if name in _FLAGS and not isinstance(value, int):  # 0 and 1, too
            raise ValueError(f"{path}: {name} must be true or false, not {value!r}")
        if name not in _NUMBERS:
            continue
        numbers: list[Any] = value if isinstance(value, list) else [value]
        if isinstance(value, Mapping) and name == "size":
            numbers = [side for side in value.values() if side is not None]
        if not numbers or not all(type(number) in (int, float) for number in numbers):
            raise ValueError(f"{path}: {name} must be made of numbers, not {value!r}")
        if isinstance(value, list) and len(value) not in _NUMBERS[name]:
            allowed = " or ".join(map(str, _NUMBERS[name] or (1,)))
            raise ValueError(f"{path}: {name} must have {allowed} numbers, not {value!r}")
        if name in ("size", "max_size", "rescale_factor") and min(numbers) <= 0:
            raise ValueError(f"{path}: {name} must be above 0, not {value!r}")


def _read_config(config: dict[str, Any], folder: Path, weights: Weights) -> None:
    model_type = config.get("model_type", "deformable_detr")
    if model_type != "deformable_detr":
        raise ValueError(f"{folder} holds a {model_type} model (config.json), not deformable_detr")
    _read_backbone(config, weights)
    two_stage = bool(config.get("two_stage"))
    if config.get("with_box_refine") is not None:
        weights.settings["box_refinement"] = config["with_box_refine"]
    queries = "two_stage_num_proposals" if two_stage else "num_queries"
    for theirs, ours in (_COMPARED | {queries: "num_queries"}).items():
        if config.get(theirs) is not None:
            weights.stated.append((theirs, ours, config[theirs]))
            if ours in ("num_heads", "dropout", "num_queries"):
                weights.settings.setdefault(ours, config[theirs])
    for name, value in _FIXED.items():
        if config.get(name) not in (None, {}, [], value):
            weights.refused.append(f"{name} is {config[name]!r}: only {value!r} is known" if value else f"{name} is set")
    known = {*_COMPARED, *_FIXED, *_ELSEWHERE, *_WITHOUT_EFFECT}
    weights.refused += [f"{name} ({config[name]!r}) means nothing here" for name in config if name not in known]
    weights.details["categories"] = _categories(config, weights)


def _read_backbone(config: dict[str, Any], weights: Weights) -> None:
    """The timm model, whether it is dilated, and whether transformers runs it as timm does."""
    record = dict(config.get("backbone_config") or {})
    kind = record.get("model_type", "timm_backbone" if config.get("use_timm_backbone", True) else "none of timm")
    if kind != "timm_backbone":
        weights.refused.append(f"the backbone is of type {kind}: only timm backbones are known")
        return
    options = record | (config.get("backbone_kwargs") or {})
    name = str(options.get("backbone") or config.get("backbone") or "resnet50")
    stride = options.get("output_stride", 16 if config.get("dilation") and not record else None)
    if stride not in (None, 16, 32):
        weights.refused.append(f"the backbone's output_stride is {stride}: only 32 and 16 (DC5) are known")
    if options.get("num_channels", options.get("in_chans", 3)) != 3:
        weights.refused.append(
            f"the backbone reads {options.get('num_channels', options.get('in_chans'))} channels: only 3 are known"
        )
    weights.settings |= {"backbone": name, "dilation": stride == 16}
    weights.stated.append(("backbone", "backbone", name))
    indices, names = options.get("out_indices", options.get("_out_indices")), options.get("out_features")
    if not (indices is None or (isinstance(indices, list) and all(type(index) is int for index in indices))):
        weights.refused.append(f"the backbone's out_indices are {indices!r}: only numbers of the last stages are known")
        indices = None
    if indices is None and names:
        weights.refused.append(f"the backbone's out_features are {names!r}: only out_indices are known")
    unknown = sorted(set(config.get("backbone_kwargs") or {}) - _BACKBONE_OPTIONS)
    weights.refused += [f"backbone_kwargs: {option} means nothing here" for option in unknown]
    weights.refused += backbone_problems(name, indices)


def backbone_problems(name: str, out_indices: list[int] | None = None) -> list[str]:
    """Why transformers computes something else with a timm backbone than timm does; empty: it does not.

    It replaces every `BatchNorm2d` by its frozen batch norm: activations inside a norm are lost, and eps becomes 1e-5.

    Args:
        name: the timm model.
        out_indices: the feature maps that are used; None: the usual ones.
    """
    try:
        with skeletons():
            body = timm.create_model(name, pretrained=False, features_only=True)
    except Exception as error:
        return [f"timm cannot build the backbone {name!r}: {error}"]
    norms = [module for module in body.modules() if isinstance(module, nn.BatchNorm2d)]
    problems = []
    if any(not isinstance(getattr(norm, "act", nn.Identity()), nn.Identity) for norm in norms):
        problems.append(f"the backbone {name!r} has activations in its batch norms, which transformers leaves out")
    if any(norm.eps != _BATCH_NORM_EPS for norm in norms):
        problems.append(f"the backbone {name!r} has batch norms with another eps than transformers' {_BATCH_NORM_EPS:g}")
    count = len(body.feature_info.channels())  # type: ignore[union-attr,operator]
    if out_indices is not None and [index % count for index in out_indices] != list(range(count - len(out_indices), count)):
        problems.append(f"the backbone's out_indices are {out_indices}: only the last stages are known")
    return problems


def _categories(config: dict[str, Any], weights: Weights) -> Categories | None:
    num_classes = len(weights.tensors.get("class_heads.0.bias", ()))
    names = config.get("id2label") or {str(label): name for name, label in (config.get("label2id") or {}).items()}
    if not names or all(name == f"LABEL_{label}" for label, name in names.items()):
        return None
    if sorted(map(str, names)) != sorted(map(str, range(num_classes))):
        weights.refused.append(
            f"id2label numbers {len(names)} classes ({', '.join(map(str, list(names)[:6]))}{', …' if len(names) > 6 else ''}), but "
            f"labels are the rows 0 to {num_classes - 1} of the class heads: number it so"
        )
        return None
    categories = read_classes(names, num_classes)
    if isinstance(categories, Categories):
        return categories
    weights.report.lossy.append(
        f"the class names of config.json are not used: id2label must map numbers to texts, not be {names!r:.200}"
    )
    return None


def _read_processor(processor: Mapping[str, Any], weights: Weights) -> None:
    lossy = weights.report.lossy
    _read_size(processor, weights)
    factor = float(processor.get("rescale_factor") or 1 / 255) if processor.get("do_rescale", True) else 1.0
    scale = 255 * factor  # what their images are multiplied by, where ours lie in [0, 1]
    normalised = processor.get("do_normalize", True)
    mean = (processor.get("image_mean") or IMAGENET_MEAN) if normalised else 0.0
    std = (processor.get("image_std") or IMAGENET_STD) if normalised else 1.0
    if {"do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"} & set(processor):
        weights.details |= {"mean": _per_channel(mean, scale), "std": _per_channel(std, scale)}
    if processor.get("resample", 2) not in (2, None):
        lossy.append(f"images are resized with PIL's filter {processor['resample']} there, bilinearly here")
    if processor.get("do_center_crop"):
        lossy.append("images are cropped to their centre there (do_center_crop), not here")
    if processor.get("pad_size") or processor.get("size_divisor"):
        lossy.append("images are padded to a fixed size there (pad_size, size_divisor), here as far as a batch needs")
    unknown = [name for name in processor if name not in _PROCESSOR]
    if unknown:
        lossy.append(f"entries of preprocessor_config.json without a meaning here: {', '.join(unknown)}")


def _per_channel(value: Any, scale: float) -> tuple[float, ...]:
    values = value if isinstance(value, list | tuple) else [value] * 3
    return tuple(float(number) / scale for number in values) if scale != 1 else tuple(map(float, values))


def _read_size(processor: Mapping[str, Any], weights: Weights) -> None:
    """All forms that `size` has had: a number with `max_size`, a pair, and four kinds of dicts."""
    details, lossy = weights.details, weights.report.lossy
    if not processor.get("do_resize", True):
        lossy.append("images are not resized there (do_resize), here their short side becomes 800 pixels")
        return
    size: Any = processor.get("size")
    if size is None:
        return
    if isinstance(size, int | float):
        size = {"shortest_edge": size, "longest_edge": processor.get("max_size", 1333)}
    elif isinstance(size, list | tuple):
        size = {"height": size[0], "width": size[-1]}
    if size.get("shortest_edge"):
        longest = size.get("longest_edge") or processor.get("max_size") or _FAR
        details |= {"eval_short_side": int(size["shortest_edge"]), "max_long_side": int(longest)}
        return
    sides = [int(size[name]) for name in ("max_height", "max_width", "height", "width", "longest_edge") if size.get(name)]
    if not sides:
        lossy.append(f"the size {size} of preprocessor_config.json means nothing here")
        return
    details |= {"eval_short_side": min(sides), "max_long_side": max(sides)}
    if "height" in size:
        lossy.append(
            f"images are stretched to {' × '.join(map(str, sides))} (height × width) there; here they keep their "
            f"form: short side at most {min(sides)}, long side at most {max(sides)}"
        )
    elif len(set(sides)) > 1:
        lossy.append(f"images are fitted into a height and width of {size} there, here into the same turned as they are")


def model_config(metadata: Metadata) -> dict[str, Any]:
    """The content of transformers' `config.json`."""
    config = metadata.model
    names = metadata.categories.names if metadata.categories else [f"LABEL_{label}" for label in range(config.num_classes)]
    return {
        "architectures": ["DeformableDetrForObjectDetection"],
        "model_type": "deformable_detr",
        **_backbone_entries(config),
        **{theirs: getattr(config, ours) for theirs, ours in _COMPARED.items() if theirs not in _SYNONYMS},
        "dilation": config.dilation,
        "attention_dropout": config.dropout,
        "activation_dropout": config.dropout,
        "num_queries": config.num_queries,
        "two_stage_num_proposals": config.num_queries,
        "auxiliary_loss": True,
        "position_embedding_type": "sine",
        "tie_word_embeddings": not config.box_refinement,
        "id2label": {str(label): name for label, name in enumerate(names)},
        "label2id": {name: label for label, name in enumerate(names)},
    }


def _backbone_entries(config: ModelConfig) -> dict[str, Any]:
    """The timm model; transformers counts on five feature maps, of which it takes the last three, unless told which."""
    name = config.backbone.split(".")[0]
    with skeletons():
        count = len(timm.create_model(name, features_only=True).feature_info.channels())  # type: ignore[union-attr,operator]
    if count == 5:
        return {"use_timm_backbone": True, "use_pretrained_backbone": False, "backbone": name}
    record = {
        "model_type": "timm_backbone",
        "backbone": name,
        "num_channels": 3,
        "features_only": True,
        "use_pretrained_backbone": False,
    }
    record |= {"out_indices": list(range(count - stages_of(config), count))}
    record |= {"output_stride": 16} if config.dilation else {}
    return {"use_timm_backbone": False, "backbone_config": record}


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
