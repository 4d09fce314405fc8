"""Files derived from a dataset: in `.deformable-detr` inside it, else in the user's cache; written whole or not at all."""

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

FOLDER = ".deformable-detr"


def user_cache() -> Path:
    """Our folder in this user's cache: below `~/.cache`, `~/Library/Caches` or `%LOCALAPPDATA%`."""
    if sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "deformable-detr"


def derived_folder(root: Path) -> Path:
    """The folder for files derived from a dataset; made where needed, in the user's cache where the dataset is read-only."""
    folder = root / FOLDER
    try:
        folder.mkdir(exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:  # a read-only disk, or no permission
        pass
    name = str(root.resolve())
    folder = user_cache() / "data" / f"{Path(name).name}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file so that other processes see all of it or nothing, whoever else writes it at the same time."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name + ".", suffix=".partial", delete=False) as partial:
        partial.write(content)
    Path(partial.name).chmod(0o644)
    return Path(partial.name).replace(path)


def fingerprint(files: Iterable[Path], *more: object) -> str:
    """Twelve letters that change when a file of these comes, goes, or has another size or time of change."""
    digest = hashlib.sha256(repr(more).encode())
    for path in sorted(files):
        state = path.stat()
        digest.update(f"{path}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]
