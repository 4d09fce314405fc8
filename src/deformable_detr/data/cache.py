"""Files derived from a dataset: in `.deformable-detr` inside it, else in the user's cache; written whole or not at all."""

import hashlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

logger = logging.getLogger(__name__)

FOLDER = ".deformable-detr"


def user_cache() -> Path:
    """Our folder in this user's cache: below `~/.cache`, `~/Library/Caches` or `%LOCALAPPDATA%`, made where needed.

    Where that cannot be written (containers with `--user`, read-only homes), it is a temporary folder, and a warning says so.

    Raises:
        OSError: there is no folder at all that can be written.
    """
    try:
        folder = _cache_root() / "deformable-detr"
        if _writable(folder):
            return folder
    except RuntimeError:  # a user without a home
        folder = Path("~/.cache/deformable-detr")
    temporary = _temporary()
    hint = "set XDG_CACHE_HOME (or HOME) to a folder that can be written"
    if not _writable(temporary, mode=0o700):
        raise OSError(f"neither the cache {folder} nor {temporary} can be written: {hint}")
    logger.warning("the cache %s cannot be written, so %s is used; to keep what lies there, %s", folder, temporary, hint)
    return temporary


def _writable(folder: Path, mode: int = 0o777) -> bool:
    try:
        folder.mkdir(mode, parents=True, exist_ok=True)
    except OSError:  # a read-only disk, or no permission
        return False
    return os.access(folder, os.W_OK)


def _temporary() -> Path:
    """This user's place among the temporary files."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    return Path(tempfile.gettempdir()) / f"deformable-detr-{user}"


def _cache_root() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def derived_folder(root: Path) -> Path:
    """The folder for files derived from a dataset; made where needed.

    Where the dataset is read-only it is in the user's cache, and where there is none of that either, in the temporary folder.

    Raises:
        PermissionError: none of them can be written to.
    """
    folder = root / FOLDER
    if root.is_dir() and _writable(folder):
        return folder
    name = str(root.resolve())
    part = f"{Path(name).name}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:12]}"
    places = (user_cache() / "data", _temporary())  # containers have no home
    for place in places:
        if _writable(place / part):
            return place / part
    raise PermissionError(
        f"{root}: the dataset is read-only, and so are {places[0]} and {places[1]}: name a folder that can be written to in "
        "XDG_CACHE_HOME"
    )


def fingerprint(files: Iterable[Path], *more: object) -> str:
    """Twelve letters that change when a file of these comes, goes, or has another size or time of change."""
    digest = hashlib.sha256(repr(more).encode())
    for path in sorted(files):
        state = path.stat()
        digest.update(os.fsencode(f"{path}\0{state.st_size}\0{state.st_mtime_ns}\n"))
    return digest.hexdigest()[:12]
