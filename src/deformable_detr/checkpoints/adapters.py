"""Folders of peft: adapters and newly trained layers alone, a few megabytes beside the weights that they belong to."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from deformable_detr.checkpoints.native import write_tensors
from deformable_detr.checkpoints.report import Report, shorten
from deformable_detr.checkpoints.tensor_files import read_tensors
from deformable_detr.checkpoints.weights import Weights, tensors_crc
from deformable_detr.config import Metadata
from deformable_detr.files import atomic_file
from deformable_detr.model import DeformableDETR
from deformable_detr.model.adapters import heads_of, merged

ADAPTER_NAME, CONFIG_NAME = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
"""What peft puts before the name of every tensor."""

BASE_ENTRY = "base_crc"
"""What is kept of the weights that the adapters were trained beside: another detector may take the place of their file."""


def save_adapter(folder: Path, model: DeformableDETR, metadata: Metadata, base: str) -> Path:
    """Write the adapters and heads of a model as peft does, with our metadata in the header.

    Args:
        folder: is made.
        model: with adapters of `add_adapters`.
        metadata: to be stored.
        base: the weights that the adapters were trained beside.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    base = str(Path(base).resolve()) if Path(base).exists() else base
    heads = heads_of(model)
    config = replace(model.peft_config["default"], base_model_name_or_path=base, modules_to_save=heads)  # pyright: ignore
    tensors = {
        PREFIX + name.replace(".default.", "."): tensor
        for name, tensor in model.state_dict().items()
        if ".lora_" in name or name.startswith(tuple(f"{head}." for head in heads))
    }
    config.save_pretrained(folder)
    with atomic_file(folder / ADAPTER_NAME) as partial:
        record = {"metadata": json.dumps(metadata.to_dict()), BASE_ENTRY: str(_base_crc(model))}
        write_tensors(partial, tensors, {"format": "pt"} | record)
    return folder


def _base_crc(model: DeformableDETR) -> int:
    """CRC-32 of the weights that adapters are trained beside: all but the adapters and the heads."""
    added = tuple(f"{head}." for head in heads_of(model))
    tensors = {name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if ".lora_" not in name}
    return tensors_crc({name: tensor.float() for name, tensor in tensors.items() if not name.startswith(added)})


def read_adapter(path: Path, load: Callable[..., DeformableDETR]) -> Weights:
    """The weights of a detector with the adapters of a folder merged into them; any kind of adapter that peft knows.

    Args:
        path: the `adapter_model.safetensors`, with `adapter_config.json` beside it.
        load: reads the weights that the folder names as its base, with the classes of the adapter.

    Raises:
        FileNotFoundError: the config or the base is missing.
        ImportError: peft is not installed.
        ValueError: the adapters do not fit.
    """
    try:
        from peft import PeftModel
        from peft.utils import get_peft_model_state_dict
    except ImportError as error:
        raise ImportError(f'{path.parent} is an adapter: reading it needs peft, pip install "deformable-detr[adapters]"') from error
    config = path.parent / CONFIG_NAME
    if not config.is_file():
        raise FileNotFoundError(f"{path} has no {CONFIG_NAME} beside it, which says what it is an adapter of")
    file = read_tensors(path)
    try:
        base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path") or ""
        metadata = Metadata.from_dict(json.loads(file.header["metadata"])) if file.header.get("metadata") else None
        if not isinstance(base, str):
            raise TypeError(f"base_model_name_or_path is {base!r}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path.parent}: {CONFIG_NAME}, or the record in {ADAPTER_NAME}, cannot be read ({reason})") from error
    try:
        model = load(base, classes=metadata and metadata.categories)
    except (FileNotFoundError, ConnectionError) as error:
        named = f"{path.parent} is an adapter of {base!r}, as base_model_name_or_path in {config} says"
        raise type(error)(f"{named}: {error}") from error
    if file.header.get(BASE_ENTRY) not in (None, str(_base_crc(model))):
        raise ValueError(f"{path.parent} was trained beside other weights than those that are in {base} now; put those back there")
    try:
        adapted = PeftModel.from_pretrained(model, str(path.parent))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path.parent} does not fit {base}: {error}") from error
    if other := sorted(
        get_peft_model_state_dict(adapted, save_embedding_layers=False).keys() ^ file.tensors.keys()
    ):  # peft passes over them
        raise ValueError(f"{path.parent}: {CONFIG_NAME} and the tensors of {ADAPTER_NAME} do not fit together: {shorten(other)}")
    weights = Weights(dict(merged(model).state_dict()), Report("peft"))
    weights.origin = {name: name for name in weights.tensors}
    weights.metadata = metadata or model.metadata
    return weights
