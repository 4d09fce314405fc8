"""The state of a run on disk, from which it goes on exactly: one file, written beside the old one and then renamed.

A file holds tensors and plain values only, so that it is read with `weights_only=True`.
"""

import logging
import os
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deformable_detr.files import atomic_file

PARTS = {"step", "position", "processes", "dataset", "config", "network", "optimizer", "ema", "scaler"}
PARTS |= {"random", "averages", "history"}
"""What the state of a run has."""

STATE_FILE = re.compile(r"step-(\d+)\.pt")


logger = logging.getLogger(__name__)


def random_state() -> dict[str, Any]:
    """States of this process's random generators (python, numpy, torch, cuda)."""
    _, numpy_keys, numpy_position, has_gauss, cached_gaussian = np.random.get_state(legacy=True)  # noqa: NPY002
    version, python_keys, python_gauss = random.getstate()
    return {
        "python": [version, list(python_keys), python_gauss],
        "numpy": [torch.from_numpy(np.asarray(numpy_keys).astype(np.int64)), numpy_position, has_gauss, cached_gaussian],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put this process's random generators where :func:`random_state` found them."""
    version, python_keys, python_gauss = state["python"]
    random.setstate((version, tuple(python_keys), python_gauss))
    numpy_keys, position, has_gauss, cached_gaussian = state["numpy"]
    np.random.set_state(("MT19937", numpy_keys.numpy().astype(np.uint32), position, has_gauss, cached_gaussian))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([item.cpu() for item in state["cuda"]])


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Let this process's random numbers go on afterwards as if nothing had been drawn within."""
    kept = random_state()
    try:
        yield
    finally:
        set_random_state(kept)


def save_state(folder: Path, step: int, state: dict[str, Any]) -> list[Path]:
    """Write a state as `step-<n>.pt`; the earlier ones are removed only when it is complete on disk.

    Where the disk is full or cannot be written, the earlier one stays, and an error line says so.

    Args:
        folder: the run's folder of states; made when missing.
        step: finished optimiser steps.
        state: tensors and plain values.

    Returns:
        The file that was written, or nothing.
    """
    path = folder / f"step-{step:08d}.pt"
    try:
        with atomic_file(path) as partial:
            torch.save(state, partial)
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as a RuntimeError
        kept = f"{there} is where it resumes" if (there := latest_state(folder)) else "all is lost"
        text = "the state of the run could not be written to %s: %s. Is the disk full? The run goes on; if it ends now, %s"
        logger.error(text, path, error, kept)
        return []
    _sync_folder(folder)
    for other in folder.iterdir():
        if other != path and (STATE_FILE.fullmatch(other.name) or other.name.endswith(".partial.pt")):  # of a run that was killed
            other.unlink()
    return [path]


def latest_state(folder: Path) -> Path | None:
    """The newest complete state of a run, or None."""
    if not folder.is_dir():
        return None
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := STATE_FILE.fullmatch(path.name))]
    return max(found)[1] if found else None


def load_latest_state(folder: Path) -> dict[str, Any]:
    """The newest state of a run, as :func:`load_state` reads it.

    Raises:
        FileNotFoundError: there is none.
    """
    if (path := latest_state(folder)) is None:
        raise FileNotFoundError(f"no saved state in {folder}: start the run without --resume, in an empty --output")
    return load_state(path)


def load_state(path: Path) -> dict[str, Any]:
    """Read a state onto the CPU.

    Raises:
        ValueError: the file is damaged or none of ours.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as the state of a run ({error}); delete it to start anew") from error
    if not isinstance(state, dict) or not state.keys() >= PARTS:
        raise ValueError(f"{path} is not the state of a run; delete it to start anew")
    return state


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system can (not on Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
