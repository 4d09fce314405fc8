"""Finds the weights in a file, under whatever wrappers and prefixes: by the names of the tensors below them."""

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deformable_detr.checkpoints.report import shorten
from deformable_detr.checkpoints.tensor_files import TensorFile
from deformable_detr.checkpoints.weights import same

MARKS: dict[str, tuple[str, ...]] = {
    "native": ("decoder.layers.0.cross_attn.sampling_offsets.", "neck.projections.", "query_source."),
    "mmdet 2.x": ("bbox_head.transformer.decoder.layers.0.attentions.1.sampling_offsets.", "neck."),
    "detrex": ("transformer.decoder.layers.0.attentions.1.sampling_offsets.", "neck."),
    "official": ("transformer.decoder.layers.0.cross_attn.sampling_offsets.", "input_proj.0.0."),
    "mmdet": ("decoder.layers.0.cross_attn.sampling_offsets.", "bbox_head."),
    "huggingface": ("model.decoder.layers.0.encoder_attn.sampling_offsets.", "model.input_proj.0.0."),
}
"""Layout → what names of its tensors begin with; all must be there, under the same prefix."""

_WRAPPERS = re.compile(r"(?<![^./])(?:_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module|module|base_layer)\.")
"""Parts of names that wrappers for several processes, compiled models, checkpointing and adapters put in anywhere."""

_REPLACED = re.compile(r"\.modules_to_save\.\w+\.")
"""Layers that an adapter has trained as a whole; the old ones are kept beside them as `original_module`."""

_AVERAGE = re.compile(r"(?<![a-z])(?:ema|avg|averaged?|swa|shadow|teacher|moving_average)(?![a-z])", re.IGNORECASE)
_OPTIMISER = re.compile(r"(?<![^./])(?:optim(?:izer)?s?(?:_states?)?(?:_dict)?|exp_avg\w*|\w*momentum_buffer|square_avg)[./]")
"""Where means of gradients are kept, by the names of the weights that they belong to."""

_USUAL = ("", "model/", "state_dict/", "model_state_dict/", "module/", "network/", "net/", "student.")


@dataclass(frozen=True)
class StateDict:
    """The weights of one model in a file."""

    prefix: str
    """Prefix of each of its names: nested dicts end in `/`, modules around the model in `.`."""

    layout: str
    """One of `MARKS`."""

    is_average: bool
    """Whether it holds EMA weights."""

    @property
    def name(self) -> str:
        """For messages."""
        return self.prefix.rstrip("./") or "the file itself"


def select_state_dict(file: TensorFile, ema: bool | None = None) -> tuple[TensorFile, str, list[str]]:
    """The weights of one model, without the prefixes of their names.

    Args:
        file: everything in a file.
        ema: True for EMA weights, False for those without averaging, None for what the file itself calls its model.

    Returns:
        The file with these tensors only, their layout, and what was left out, in sentences.

    Raises:
        ValueError: no layout that is known, or no weights of the kind that `ema` asks for.
    """
    tensors = _without_wrappers(file.tensors)
    found = _find(tensors, file)
    if not found:
        raise ValueError(f"{file.path}: {_what_it_may_be(list(tensors))}")
    fitting = [item for item in found if ema is None or item.is_average is ema]
    if not fitting:
        wanted, there = ("EMA weights", "without averaging") if ema else ("weights without averaging", "EMA weights")
        raise ValueError(f"{file.path} holds no {wanted} (ema={ema}): those under {found[0].name} are {there}")
    chosen = fitting[0]
    own = {name: tensor for name, tensor in tensors.items() if _owner(name, found) is chosen}
    _check_kinds(own, file)
    notes = _notes(chosen, found, tensors)
    return replace(file, tensors={name[len(chosen.prefix) :]: tensor for name, tensor in own.items()}), chosen.layout, notes


def _check_kinds(tensors: dict[str, Tensor], file: TensorFile) -> None:
    """Weights are plain numbers in memory."""
    tests = {
        "sparse": lambda tensor: tensor.layout != torch.strided,
        "without content (meta)": lambda tensor: tensor.is_meta,
        "quantised": lambda tensor: tensor.is_quantized,
        "complex": lambda tensor: tensor.is_complex(),
    }
    for kind, is_one in tests.items():
        if names := [name for name, tensor in tensors.items() if is_one(tensor)]:
            raise ValueError(f"{file.path}: {len(names)} tensors are {kind} ({shorten(names, 3)}): save plain weights, in floats")


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    cleaned: dict[str, Tensor] = {}
    adapters = [name for name in tensors if ".lora_" in name]
    if adapters:
        raise ValueError(
            f"the weights hold LoRA adapters beside the layers they change ({shorten(adapters, 2)}): join them first "
            "(merge_and_unload() of peft), and save the result"
        )
    short_of = {name: _REPLACED.sub(".", _WRAPPERS.sub("", name)) for name in tensors if ".original_module." not in name}
    for name in sorted(short_of, key=lambda name: (short_of[name] != name, name)):  # whatever stands first in the file
        short, tensor = short_of[name], tensors[name]
        if short not in cleaned:
            cleaned[short] = tensor
        elif not same(cleaned[short], tensor):
            cleaned[name] = tensor
    return cleaned


def _find(tensors: dict[str, Tensor], file: TensorFile) -> list[StateDict]:
    """Every model in the file, first those that its own code would load."""
    found: dict[str, StateDict] = {}
    for layout, (first, *others) in MARKS.items():
        pattern = re.compile(r"(?<![^./])" + re.escape(first))
        prefixes = dict.fromkeys(name[: match.start()] for name in tensors if (match := pattern.search(name)))
        for prefix in (prefix for prefix in prefixes if not _OPTIMISER.search(prefix)):
            if prefix not in found and all(any(name.startswith(prefix + mark) for name in tensors) for mark in others):
                found[prefix] = StateDict(prefix, layout, _is_average(prefix, file))
    return sorted(found.values(), key=lambda item: (bool(_AVERAGE.search(item.prefix)), _rank(item.prefix), len(item.prefix)))


def _rank(prefix: str) -> int:
    return next((place for place, usual in enumerate(_USUAL) if usual and prefix.startswith(usual)), len(_USUAL) if prefix else 0)


def _is_average(prefix: str, file: TensorFile) -> bool:
    """mmengine and Lightning save the average as the model, and the weights in training beside it: mmengine's under `ema`."""
    content = file.extras
    if "ema_state_dict" in content and ("message_hub" in content or "mmengine_version" in content.get("meta", ())):
        return prefix.startswith("state_dict/")
    if "averaging_state" in content and "current_model_state" in content:
        return prefix.startswith("state_dict/")
    return bool(_AVERAGE.search(prefix))


def _owner(name: str, found: list[StateDict]) -> StateDict | None:
    """The model with the longest prefix of a name."""
    return max((item for item in found if name.startswith(item.prefix)), key=lambda item: len(item.prefix), default=None)


def _notes(chosen: StateDict, found: list[StateDict], tensors: dict[str, Tensor]) -> list[str]:
    """What was taken, where there was a choice, and what else was in the same dict."""
    kind = "EMA weights" if chosen.is_average else "weights without averaging"
    notes = [f"read: the {kind} under {chosen.name}"] if chosen.is_average or len(found) > 1 else []
    for item in found:
        if item is not chosen:
            advice = f"; ema={item.is_average} takes them" if item.is_average is not chosen.is_average else ""
            notes.append(f"left: the {'EMA ' if item.is_average else ''}weights under {item.name}{advice}")
    container = chosen.prefix[: chosen.prefix.rfind("/") + 1]
    if container != chosen.prefix:
        others = [name[len(container) :] for name in tensors if name.startswith(container) and _owner(name, found) is None]
        if others:
            notes.append(f"left: {len(others)} tensors of other modules beside the detector: {shorten(others, 3)}")
    return notes


def _what_it_may_be(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    if any("sampling_offsets" in name for name in names):
        if any(name.endswith("decoder.layers.0.encoder_attn.sampling_offsets.weight") for name in names):
            return f"a DeformableDetrModel of transformers without its heads ({shown}, …): save DeformableDetrForObjectDetection"
        return f"a relative of Deformable DETR, or an incomplete file: no known layout has these names ({shown}, …)"
    if any("_flat_param" in name for name in names):
        return f"weights in FSDP's flat form ({shown}, …): save the full state dict (StateDictType.FULL_STATE_DICT)"
    if any("in_proj_weight" in name or "q_proj" in name for name in names):
        return f"a transformer, but not a Deformable DETR: there is no tensor named sampling_offsets ({shown}, …)"
    if any(name.startswith(("layer1.", "conv1.", "stages")) for name in names):
        return f"weights of a backbone alone ({shown}, …): pass them as pretrained_backbone when building a model"
    return f"not a Deformable DETR ({len(names)} tensors: {shown}, …)"
