"""What files say beside their tensors (settings, classes, thresholds, image sizes), in the forms in which people store it."""

import argparse
import ast
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from torch import Tensor

from deformable_detr.categories import Categories
from deformable_detr.checkpoints.bookkeeping import Inert, NumpyValue
from deformable_detr.checkpoints.coco_classes import COCO_80, NO_CLASS, categories_of_names, is_coco_80
from deformable_detr.checkpoints.foreign_settings import is_bgr, refusals, resizing
from deformable_detr.checkpoints.weights import Weights
from deformable_detr.config import Metadata

METADATA_ENTRY = "deformable_detr_metadata"
"""Where all that we know travels beside the weights in the layouts of others; their code does not look there."""

TRAINING_STATE = ("optimizer", "lr_scheduler", "param_schedulers", "message_hub", "scheduler", "trainer", "optimizer_states")
TRAINING_STATE += ("lr_schedulers", "callbacks", "loops", "scaler", "amp", "rng_state", "random_state", "optim", "optimizers")

_SETTINGS = {
    "nheads": "num_heads",
    "num_heads": "num_heads",
    "n_heads": "num_heads",
    "enc_n_points": "num_encoder_points",
    "dec_n_points": "num_decoder_points",
    "num_encoder_points": "num_encoder_points",
    "num_decoder_points": "num_decoder_points",
    "dropout": "dropout",
    "dilation": "dilation",
    "backbone": "backbone",
    "num_queries": "num_queries",
    "num_queries_one2one": "num_queries",
    "num_queries_one2many": "one_to_many_queries",
    "look_forward_twice": "look_forward_twice",
    "num_select": "max_detections",
    "topk": "max_detections",
    "max_per_img": "max_detections",
    "drop_path_rate": "drop_path_rate",
    "pe_temperatureH": "position_temperature",
    "dn_number": "denoising_queries",
    "num_dn_queries": "denoising_queries",
    "dn_label_noise_ratio": "label_noise",
    "label_noise_scale": "label_noise",
    "dn_box_noise_scale": "box_noise",
    "box_noise_scale": "box_noise",
}
"""Their name → our setting, for those that the tensors do not show; `drop_path_rate` is an option of the backbone."""

_TRAINED_WITH = {"k_one2many": "loss.one_to_many_copies", "lambda_one2many": "loss.one_to_many_weight"}
"""Their name → our setting, for what a training that goes on should know."""

_SIZES = {
    **dict.fromkeys(("eval_short_side", "shortest_edge", "min_size_test", "MIN_SIZE_TEST", "short_side"), "eval_short_side"),
    **dict.fromkeys(("max_long_side", "longest_edge", "max_size_test", "MAX_SIZE_TEST", "long_side"), "max_long_side"),
}
_NORMALISATION = {
    **dict.fromkeys(("image_mean", "pixel_mean", "PIXEL_MEAN", "mean"), "mean"),
    **dict.fromkeys(("image_std", "pixel_std", "PIXEL_STD", "std"), "std"),
}
_OF_BYTES = ("data_preprocessor", "img_norm_cfg", "MODEL")
"""Records of mmdetection and detectron2, whose channels go from 0 to 255 whatever their numbers look like."""

_STEMS = ("backbone.body.conv1.weight", "backbone.body.patch_embed.proj.weight")
"""First convolutions of ResNets and Swin."""

_CLASSES = ("classes", "CLASSES", "class_names", "names", "thing_classes", "category_names", "categories", "labels", "label_names")
_CLASSES += ("id2label", "label2id", "idx_to_class", "class_to_idx", "id_to_name", "label_map", "cat2label", "class_map")
_THRESHOLDS = ("thresholds", "score_thresholds", "class_thresholds", "conf_thresholds", "score_threshold", "conf_threshold")

Entry = tuple[tuple[str, ...], Any]
"""(keys from the outermost to the innermost, value)."""


def read_side_records(weights: Weights, extras: Mapping[str, Any]) -> None:
    """Look through everything beside the weights; what the layout itself has said has precedence.

    Args:
        weights: gets settings and details, what is refused, lost and worth a note; or `metadata` where our own record is found.
        extras: the content of a checkpoint; dicts, lists, `argparse.Namespace`, JSON, YAML and Python config texts are looked into.
    """
    entries = [(path, _plain(value)) for path, value in _entries(extras)]
    for path, value in entries:
        if path[-1] == METADATA_ENTRY or _is_own_record(value):
            weights.metadata = Metadata.from_dict(value)
            return
    report, used = weights.report, set[str]()
    for path, value in sorted(entries, key=lambda entry: entry[0][-1] in _THRESHOLDS):  # those may be keyed by class
        weights.refused += refusals(path, value)
        if (difference := resizing(path, value)) and difference not in report.lossy:
            report.lossy.append(difference)
        if _use(weights, path, value):
            used.add(path[0])
    bgr = any(is_bgr(path, value) for path, value in entries)
    _normalise(weights, entries, bgr)
    if bgr:
        _turn_channels(weights)
    stale = [key for key in TRAINING_STATE if key in extras]
    bare = any(isinstance(value, Tensor) and value.ndim > 1 for value in extras.values())  # the weights themselves, biases too
    left = [
        str(key)
        for key, value in extras.items()
        if key not in used and key not in TRAINING_STATE and not _holds_tensors(value) and not (bare and isinstance(value, Tensor))
    ]
    if stale:
        report.notes.append(f"training state left behind: {', '.join(stale)}")
    if left:
        report.notes.append(f"beside the weights and not used: {', '.join(left)}")


def _normalise(weights: Weights, entries: Sequence[Entry], bgr: bool) -> None:
    """Mean and deviation of one record, for channels from 0 to 1 in the order red, green, blue."""
    records: dict[tuple[str, ...], dict[str, Sequence[float]]] = {}
    for path, value in entries:
        if path[-1] in _NORMALISATION and _numbers(value, 3):
            records.setdefault(path[:-1], {}).setdefault(_NORMALISATION[path[-1]], value)

    def rank(path: tuple[str, ...]) -> tuple[int, bool]:
        return -len(records[path]), any("train" in part for part in path)

    for path in sorted(records, key=rank)[:1]:  # the first that has both, of testing
        found = records[path]
        of_bytes = any(part in _OF_BYTES or "pipeline" in part for part in path)
        for name, values in found.items():
            bytewise = of_bytes or max(*values, *(found.get("mean", ()) if name == "std" else ())) > 3
            scaled = tuple(number / (255 if bytewise else 1) for number in values)
            weights.details.setdefault(name, scaled[::-1] if bgr else scaled)


def _turn_channels(weights: Weights) -> None:
    """Let a network that takes blue, green, red take red, green, blue: by its first convolution."""
    names = [name for name in _STEMS if name in weights.tensors]
    if not names:
        weights.refused.append("images are read as BGR there, and the first convolution of this backbone is not known")
    for name in names:
        weights.tensors[name] = weights.tensors[name].flip(1)
        weights.report.reshaped.append(f"{weights.named(name)} (BGR → RGB)")


def _entries(record: Any, path: tuple[str, ...] = ()) -> Iterator[Entry]:
    """Every key of nested records, outer ones before those in them."""
    if isinstance(record, list) and len(path) < 8:
        for item in record:
            yield from _entries(item, path)
    if not isinstance(record, Mapping) or len(path) > 8:
        return
    inner = {
        str(key): _parsed(value)
        for key, value in record.items()
        if (path or key not in TRAINING_STATE) and not _holds_tensors(value)
    }
    for key, value in inner.items():
        yield (*path, key), value
    for key, value in inner.items():
        yield from _entries(value, (*path, key))


def _parsed(value: Any) -> Any:
    """Namespaces and texts of JSON, YAML or a Python config as dicts; anything else as it is."""
    if isinstance(value, argparse.Namespace):
        return vars(value)
    if not isinstance(value, str) or len(value) > 300_000 or not any(mark in value for mark in "\n{[:="):
        return value
    for parse in (json.loads, yaml.safe_load, _python_config):  # YAML takes 1e-4 for a text, so JSON goes first
        try:
            content = parse(value)
        except (yaml.YAMLError, SyntaxError, ValueError, RecursionError):
            continue
        if isinstance(content, dict | list):
            return content
    return value


def _python_config(text: str) -> dict[str, Any]:
    """A config as mmengine stores it: `name = value` with literals and `dict(…)`; anything else in it is None."""

    def read(node: ast.expr) -> Any:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
            return {keyword.arg: read(keyword.value) for keyword in node.keywords if keyword.arg}
        if isinstance(node, ast.List | ast.Tuple):
            return [read(item) for item in node.elts]
        if isinstance(node, ast.Dict):
            return {read(key): read(item) for key, item in zip(node.keys, node.values, strict=True) if key}
        try:
            return ast.literal_eval(node)
        except ValueError:
            return None

    statements = [node for node in ast.parse(text).body if isinstance(node, ast.Assign)]
    return {node.targets[0].id: read(node.value) for node in statements if isinstance(node.targets[0], ast.Name)}


def _holds_tensors(value: Any) -> bool:
    """Whether a value is a state dict, or a record of some."""
    if isinstance(value, Tensor):
        return value.numel() > 10_000 or value.ndim > 1
    return isinstance(value, Mapping) and any(_holds_tensors(item) for item in value.values())


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.flatten().tolist() if value.numel() <= 10_000 else None
    if isinstance(value, NumpyValue):
        return value.value
    return None if isinstance(value, Inert) else value


def _is_own_record(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("model"), Mapping) and "num_feature_levels" in value["model"]


def _use(weights: Weights, path: tuple[str, ...], value: Any) -> bool:
    """Take one entry over, if it means something here; the first of each kind counts."""
    settings, details, notes, key = weights.settings, weights.details, weights.report.notes, path[-1]
    num_classes = len(weights.tensors.get("class_heads.0.bias", ()))
    if key in _SETTINGS and isinstance(value, str | int | float | bool):
        if key == "num_queries_one2one":  # its code may keep the sum of both kinds as `num_queries`
            settings["num_queries"] = value
        settings.setdefault(_SETTINGS[key], value)
    elif key in _SETTINGS and isinstance(value, list):
        notes.append(f"{key} not used: {value!r} is not one value")
        return False
    elif key in _TRAINED_WITH and _is_number(value):
        notes.append(f"trained with {_TRAINED_WITH[key]}={value!r}")
    elif key == "size" and value in ("r50ss", "r50ssdc5"):  # LibreYOLO's variants with one level, whose tensors look alike
        settings.setdefault("dilation", value == "r50ssdc5")
    elif key == "positional_encoding" and isinstance(value, Mapping):  # mmdetection's, offset negative
        settings.setdefault("position_temperature", value.get("temperature") or 10_000)
        settings.setdefault("position_offset", -value["offset"] if _is_number(value.get("offset")) else 0)
    elif key in _SIZES and _is_number(value) and value >= 1:
        details.setdefault(_SIZES[key], int(value))
    elif key in _NORMALISATION and _numbers(value, 3):
        return True  # with the others of its record, by `_normalise`
    elif key in ("scale", "img_scale") and any("test" in part for part in path) and _is_scale(value):  # mmdetection's Resize
        value = value if isinstance(value, Sequence) else (value, value)
        details.setdefault("eval_short_side", int(min(value)))
        details.setdefault("max_long_side", int(max(value)))
    elif key == "dataset_file" and value != "coco":
        details.setdefault("categories", None)  # then their number does not say that they are COCO's
    elif key in _CLASSES and details.get("categories") is None:
        categories = read_classes(value, num_classes)
        if isinstance(categories, str):
            notes.append(f"{key} not used: {categories}")
        elif categories is not None:
            details["categories"] = categories
        return isinstance(categories, Categories)
    elif key in _THRESHOLDS:
        thresholds = _read_thresholds(value, num_classes, details.get("categories"))
        if thresholds is None:
            notes.append(f"{key} not used: not one number in [0, 1] for each of the {num_classes} classes")
            return False
        details.setdefault("thresholds", thresholds)
    else:
        return False
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_scale(value: Any) -> bool:
    return (_is_number(value) and value >= 1) or (_numbers(value, 2) and min(value) >= 1)


def _numbers(value: Any, count: int) -> bool:
    return isinstance(value, Sequence) and len(value) == count and all(map(_is_number, value))


def read_classes(value: Any, num_classes: int) -> Categories | str | None:
    """Class names in any usual form.

    Args:
        value: a list of names or of dicts with `name` (and `id`), a dict from number to name or the other way, or one text with
            commas.
        num_classes: K, rows of the class heads.

    Returns:
        The classes; a sentence on why they cannot be used; None for something else than class names.
    """
    names = _numbered_names(value)
    if not names:
        return None
    in_order = [names[number] for number in sorted(names)]
    if num_classes == 91 and is_coco_80(in_order):  # rows of COCO's ids, however the names are numbered
        names = dict(zip(COCO_80.ids, in_order, strict=True))
    numbers = list(names)
    if all(0 <= number < num_classes for number in numbers):
        listed = tuple(names.get(label, NO_CLASS) for label in range(num_classes))
        if len(names) == num_classes or num_classes == 91 or numbers != list(range(len(numbers))):
            return categories_of_names(listed)
    elif len(names) == num_classes:  # numbered from 1, or with holes: the rows are in the order of the numbers
        return Categories(tuple(names[number] for number in sorted(names)), tuple(sorted(names)))
    return f"it names {len(names)} classes, but the heads have {num_classes} rows"


def _numbered_names(value: Any) -> dict[int, str]:
    """Number → name; empty where a value is nothing like that."""
    if isinstance(value, NumpyValue):
        value = value.value
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")] if "," in value else None
    if isinstance(value, list | tuple):
        if all(isinstance(item, str) for item in value):
            return dict(enumerate(value))
        if all(isinstance(item, Mapping) and isinstance(item.get("name"), str) for item in value):
            return _by_number([(item.get("id", place), item["name"]) for place, item in enumerate(value)])
    if isinstance(value, Mapping) and value:
        pairs = list(value.items())
        return _by_number(pairs) or _by_number([(number, name) for name, number in pairs])
    return {}


def _by_number(pairs: list[tuple[Any, Any]]) -> dict[int, str]:
    """(number, name) as a mapping; empty where they are something else, or a number stands twice."""
    if not all(isinstance(name, str) and _is_whole(number) for number, name in pairs):
        return {}
    names = {int(number): name for number, name in pairs}
    return names if len(names) == len(pairs) else {}


def _is_whole(value: Any) -> bool:
    digits = isinstance(value, str) and re.fullmatch("[0-9]+", value.strip()) is not None
    return digits or (isinstance(value, int) and not isinstance(value, bool))


def _read_thresholds(value: Any, num_classes: int, categories: Categories | None) -> tuple[float, ...] | None:
    """One number for all, one for each, or a dict by label or name."""
    value = _plain(value)
    if _is_number(value):
        value = [value] * num_classes
    if isinstance(value, Mapping):
        names = categories.names if categories else ()
        labels = {**{name: label for label, name in enumerate(names)}, **{str(label): label for label in range(num_classes)}}
        by_label = {labels[str(key)]: number for key, number in value.items() if str(key) in labels}
        silent = [label for label, name in enumerate(names) if name == NO_CLASS]
        value = [by_label.get(label, 1.0 if label in silent else None) for label in range(num_classes)]
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != num_classes:
        return None
    return tuple(map(float, value)) if all(_is_number(number) and 0 <= number <= 1 for number in value) else None


def own_record(metadata: Metadata) -> dict[str, str]:
    """The entry that keeps all we know in the files of others."""
    return {METADATA_ENTRY: json.dumps(metadata.to_dict())}
