"""Tensors from files of either container: safetensors (memory-mapped), or PyTorch's pickle, of which nothing is executed."""

import argparse
import json
import pickle
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_BOOKKEEPING = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.WindowsPath",
)
"""Types that training code leaves in its checkpoints and that are of no use here: each is read as an empty object."""

_WRAPPERS = ("model", "state_dict", "model_state_dict", "module")
_PREFIXES = ("module.", "_orig_mod.")


class Inert:
    """Stands for an object of a checkpoint that is not needed; accepts anything and does nothing."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass
class TensorFile:
    """What a file holds."""

    path: Path
    """Where it is."""

    tensors: dict[str, Tensor]
    """The weights by the names that they have there."""

    header: dict[str, str] = field(default_factory=dict)
    """Text in the header of a safetensors file."""

    extras: dict[str, Any] = field(default_factory=dict)
    """What a pickled checkpoint holds beside the weights: `args`, `meta`, …"""


def read_tensors(path: str | Path) -> TensorFile:
    """Read a file of either container; its content decides, not its name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged or incomplete file, another kind of file, a pickle with foreign objects, or one without weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise ValueError(f"{path} is empty: was a download interrupted? Fetch it again")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer, not the weights themselves: run `git lfs pull` in that folder")
    if start.lstrip()[:1] == b"<" and not _is_safetensors(start):
        raise ValueError(f"{path} is a web page, not weights: the download link led to an HTML page. Fetch it again")
    if _is_safetensors(start):
        return _read_safetensors(path)
    if start[:1] == b"\x80" and start[1:2] != b"\x02":  # PyTorch's files are zip archives, or pickles of protocol 2
        raise ValueError(
            f"{path} is refused: a plain Python pickle, which could run code; nothing was executed. If it comes from a source that "
            "you trust, save its state_dict with torch.save or as safetensors"
        )
    return _read_pickle(path)


def _is_safetensors(start: bytes) -> bool:
    return start[8:9] == b"{"  # 8 bytes of length, then JSON


def _read_safetensors(path: Path) -> TensorFile:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is a damaged safetensors file ({error}){_incomplete(path)}") from error
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
        return ": its header is incomplete. Was a download or copy interrupted? Fetch it again"
    if size >= needed:
        return ""
    return f": it has {size:,} of {needed:,} bytes. Was a download or copy interrupted? Fetch it again"


def _read_pickle(path: Path) -> TensorFile:
    allowed = [argparse.Namespace, *((Inert, name) for name in _BOOKKEEPING)]
    try:
        with torch.serialization.safe_globals(allowed):  # type: ignore[arg-type]
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from error
    except Exception as error:  # damaged archives end in many kinds of errors
        raise ValueError(
            f"{path} is neither a safetensors file nor a whole PyTorch checkpoint ({type(error).__name__}: {_first_line(error)}). "
            "Was a download or copy interrupted? Fetch it again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint (a dict with the weights)")
    state_dict, extras = _unwrap(content)
    tensors = {_without_prefix(str(key)): value for key, value in state_dict.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors: expected weights, or a dict with them under {', '.join(_WRAPPERS)}")
    return TensorFile(path, tensors, extras=extras)


def _refusal(path: Path, message: str) -> str:
    foreign = next((line.strip() for line in message.splitlines() if "GLOBAL" in line or "Unsupported" in line), "")
    if foreign:
        return (
            f"{path} is refused: it holds Python objects that are not weights ({foreign}). Loading them would run code from the "
            "file, so nothing was executed. If it comes from a source that you trust, save its plain state_dict as safetensors"
        )
    return (
        f"{path} is no PyTorch checkpoint, or a damaged one ({message.splitlines()[0]}). Was a download interrupted? Fetch it again"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _unwrap(content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights, and what lies beside them."""
    for name in _WRAPPERS:
        inner = content.get(name)
        if isinstance(inner, dict) and any(isinstance(value, Tensor) for value in inner.values()):
            return inner, {key: value for key, value in content.items() if key != name}
    return content, {}


def _without_prefix(key: str) -> str:
    """Wrappers for several processes or compiled models leave theirs before every name."""
    while key.startswith(_PREFIXES):
        key = key[len(next(prefix for prefix in _PREFIXES if key.startswith(prefix))) :]
    return key
