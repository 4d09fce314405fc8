"""Tensors from files of either container: safetensors (memory-mapped), or PyTorch's pickle, of which nothing is executed."""

import argparse
import json
import pickle
import struct
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deformable_detr.checkpoints.bookkeeping import SAFE_TYPES
from deformable_detr.checkpoints.foreign_files import AGAIN, describe_foreign_file, is_safetensors
from deformable_detr.checkpoints.weights import same

_READING = threading.Lock()

INDEX_SUFFIX = ".index.json"
"""Ending of the file that says which tensor is in which of several files."""


@dataclass
class TensorFile:
    """What a file holds."""

    path: Path
    """Where it is."""

    tensors: dict[str, Tensor]
    """All tensors; keys of nested dicts are joined by `/`, such as `model/transformer.level_embed`."""

    header: dict[str, str] = field(default_factory=dict)
    """Text in the header of a safetensors file."""

    extras: dict[str, Any] = field(default_factory=dict)
    """The whole content of a pickled checkpoint: `args`, `meta`, … beside the weights."""


def read_tensors(path: str | Path) -> TensorFile:
    """Read a file of either container; its content decides, not its name.

    Args:
        path: the file, or the index of weights in several files (`model.safetensors.index.json`), or one of these files.

    Raises:
        FileNotFoundError: no such file, or one of several is missing.
        ValueError: a damaged or incomplete file, another kind of file, a pickle with foreign objects, or one without weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    index = path if path.name.endswith(INDEX_SUFFIX) else _index_of(path)
    return _read_file(path) if index is None else _read_shards(index)


def _read_file(path: Path) -> TensorFile:
    foreign = describe_foreign_file(path)
    if foreign is not None:
        raise ValueError(f"{path} is {foreign}")
    with path.open("rb") as file:
        start = file.read(9)
    return _read_safetensors(path) if is_safetensors(start) else _read_pickle(path)


def _index_of(path: Path) -> Path | None:
    """The index beside one of several files, such as `model-00001-of-00003.safetensors`."""
    for index in path.parent.glob(f"*{INDEX_SUFFIX}"):
        with suppress(ValueError):  # another file of such a name
            if path.name in shard_names(index):
                return index
    return None


def shard_names(index: Path) -> list[str]:
    """The files that an index names.

    Raises:
        ValueError: it is no such index, or names files elsewhere.
    """
    try:
        names = list(dict.fromkeys(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of weights (no 'weight_map' with a file for each tensor): {error}") from error
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError(f"{index} names files outside of its folder: refused")
    return names


def _read_shards(index: Path) -> TensorFile:
    """All files that an index names, as one."""
    whole = TensorFile(index, {})
    for name in shard_names(index):
        path = index.parent / name
        if not path.is_file():
            raise FileNotFoundError(f"no {name} beside {index}: all files that the index names are needed")
        shard = _read_file(path)
        for key in whole.tensors.keys() & shard.tensors.keys():
            if not same(whole.tensors[key], shard.tensors[key]):
                raise ValueError(f"{key} has other values in {path} than in the files before it: are they of one model? {AGAIN}")
        whole.tensors |= shard.tensors
        whole.header |= shard.header
    return whole


def _read_safetensors(path: Path) -> TensorFile:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is a damaged safetensors file ({error}){_incomplete(path)}") from error
    if not tensors:
        raise ValueError(f"{path} holds no tensors")
    return TensorFile(path, tensors, header)


def _incomplete(path: Path) -> str:
    """How much is missing, where the header still says so."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            if size < 8 + length:
                raise ValueError("incomplete header")
            header = json.loads(file.read(length))
        needed = 8 + length + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError, struct.error):
        return f": its header is incomplete: {AGAIN}"
    return "" if size >= needed else f": it has {size:,} of {needed:,} bytes: {AGAIN}"


def _read_pickle(path: Path) -> TensorFile:
    allowed: list[Any] = [argparse.Namespace, *SAFE_TYPES]
    misnamed = path.suffix == ".safetensors"  # torch.load goes by the name, but not of an open file
    try:
        with _allowed_alone(allowed), path.open("rb") as file:
            mapped = zipfile.is_zipfile(path) and not misnamed
            content = torch.load(file if misnamed else path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from error
    except Exception as error:  # damaged archives end in many kinds of errors
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{path} is a damaged PyTorch checkpoint ({type(error).__name__}: {reason}): {AGAIN}") from error
    _check_records(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint (a dict with the weights)")
    tensors = dict(_leaves(content))
    if not tensors:
        raise ValueError(f"{path} holds no tensors: expected weights, or a dict with them under a name such as 'model'")
    return TensorFile(path, tensors, extras=dict(content))


@contextmanager
def _allowed_alone(types: list[Any]) -> Iterator[None]:
    """Let pickles hold these types. PyTorch's list is one for all threads, and what others have put there stays theirs."""
    with _READING:
        before = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(types)
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


def _check_records(path: Path) -> None:
    """Compare the checksums of an archive's records, which `torch.load` does not look at.

    Where all are wrong, the file was written without (`torch.serialization.set_crc32_options(False)`).
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        records = [entry for entry in archive.infolist() if entry.file_size]
        damaged = [entry.filename for entry in records if _is_damaged(archive, entry)]
    if damaged and len(damaged) < len(records):
        raise ValueError(f"{path} is a damaged PyTorch checkpoint (the checksum of {damaged[0]} does not fit its bytes): {AGAIN}")


def _is_damaged(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(entry) as record:
            while record.read(1 << 20):
                pass
    except zipfile.BadZipFile:
        return True
    return False


def _leaves(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dicts, each with its path."""
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping) and prefix.count("/") < 5:
            yield from _leaves(value, f"{prefix}{key}/")


def _refusal(path: Path, message: str) -> str:
    foreign = next((line.strip() for line in message.splitlines() if "GLOBAL" in line or "Unsupported" in line), "")
    if foreign:
        return (
            f"{path} is refused: it holds Python objects that are not weights ({foreign}). Loading them would run code from the "
            "file, so nothing was executed. If it comes from a source that you trust, save its plain state_dict as safetensors"
        )
    return f"{path} is a damaged PyTorch checkpoint ({message.splitlines()[0]}): {AGAIN}"
