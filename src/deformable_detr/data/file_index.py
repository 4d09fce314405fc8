"""All files of a dataset, listed once; and images found although their names are written otherwise."""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import unquote

from deformable_detr.data.images import IMAGE_SUFFIXES, UNREADABLE_SUFFIXES

ROLES = {
    **dict.fromkeys(("train", "training", "trainval", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "valset"), "val"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
}
"""Words in names of splits, folders and files, and what they mean."""

HASH_PREFIX = re.compile(r"[0-9a-f]{8}-")
"""What Label Studio puts before the name of an uploaded file."""


def split_role(name: str) -> str | None:
    """`train`, `val` or `test`, as a name says in any case or among other words (`Train`, `val_instances_default`); else None."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    roles = [ROLES[word] for word in words if word in ROLES]
    return "train" if "train" in roles else next(iter(roles), None)


def path_role(path: str | PurePosixPath) -> str | None:
    """The role of the first folder of a relative path that has one: `train` for `images/Train/a.jpg`."""
    return next((role for part in PurePosixPath(path).parts[:-1] if (role := split_role(part))), None)


def slashed(name: str) -> str:
    """A path with the separators of this system, whichever system wrote it."""
    return name.strip().strip("\"'").replace("\\", "/").removeprefix("./")


def fold_name(name: str) -> str:
    """What spellings of a file's name have in common: without %20 and the like, case, and the form of accents."""
    return unicodedata.normalize("NFC", unquote(name)).casefold()


def walk_files(folder: Path, suffixes: Iterable[str] | None = None) -> list[Path]:
    """All files below a folder (with one of these suffixes), sorted; links to folders are followed, hidden files left out."""
    wanted = None if suffixes is None else frozenset(suffixes)
    return [Path(path) for path in _walk(str(folder), set()) if wanted is None or os.path.splitext(path)[1].lower() in wanted]  # noqa: PTH122


def _walk(folder: str, entered: set[tuple[int, int]]) -> Iterator[str]:
    try:
        state = os.stat(folder)  # noqa: PTH116 (strings: a hundred thousand paths take a second)
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:  # no permission, or a link that leads nowhere
        return
    if (state.st_dev, state.st_ino) in entered:
        return
    entered.add((state.st_dev, state.st_ino))
    entries = [entry for entry in entries if not entry.name.startswith((".", "__MACOSX"))]
    yield from (entry.path for entry in entries if entry.is_file())
    for entry in entries:
        if entry.is_dir():
            yield from _walk(entry.path, entered)


class FileIndex:
    """The files below a folder, as they were when it was opened.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.normpath(root))
        self.files = [path.removeprefix("./") for path in _walk(str(self.root), set())]
        """Absolute or relative as `root`, folder by folder, sorted."""
        self.known = frozenset(self.files)

    def select(self, *suffixes: str) -> list[Path]:
        """The files with one of these suffixes."""
        return [Path(path) for path in self.files if path.lower().endswith(suffixes)]

    @cached_property
    def folders(self) -> list[Path]:
        """All folders with files, and those above them, the root first."""
        direct = {os.path.dirname(path) for path in self.files}  # noqa: PTH120
        parents = {parent for path in direct for parent in (Path(path), *Path(path).parents)}
        return sorted((path for path in parents if path.is_relative_to(self.root)), key=lambda path: (len(path.parts), path))

    @cached_property
    def images(self) -> list[str]:
        """The files that are images."""
        return [path for path in self.files if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES]  # noqa: PTH122

    def relative(self, path: str | Path) -> str:
        """A path relative to the root."""
        path = Path(path)
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def by_split(self, files: Iterable[Path]) -> dict[str, list[Path]]:
        """The files of each split that folders are named after. All others are one split, `all`, where there is none such."""
        parts: dict[str, list[Path]] = {}
        for path in files:
            parts.setdefault(path_role(self.relative(path)) or "all", []).append(path)
        if len(parts) > 1:
            parts.pop("all", None)  # listed among the files that are not used
        return parts

    def find_exactly(self, name: str, folders: Sequence[Path]) -> str | None:
        """The file of a name below one of some folders, the first that has it; case and slashes as they are."""
        outside = name.startswith(("/", ".."))
        for folder in folders:
            path = os.path.normpath(os.path.join(folder, name))  # noqa: PTH118
            if path in self.known or ((outside or not folder.is_relative_to(self.root)) and os.path.isfile(path)):  # noqa: PTH113
                return path
        return None

    def locate_images(
        self, names: Sequence[str], folders: Sequence[Path], role: str | None
    ) -> tuple[list[str], dict[int, str], dict[int, str]]:
        """Find images by their annotated names.

        A name that leads nowhere in `folders` is looked for in the whole dataset, but for the folders of other splits: by its last
        part, in another case or encoding, with another suffix, without Label Studio's prefix. What is not unique is not taken.

        Args:
            names: relative to one of the folders, absolute, or anything else.
            folders: where to look first, in this order.
            role: of the split.

        Returns:
            The path of each image, whether there is one or not; what was found elsewhere, by position: in words; and for images
            that are not there a word on why, where there is one.
        """
        paths, elsewhere, reasons = [], {}, {}
        nowhere = folders[0] if folders else self.root
        taken: dict[str, list[int]] = {}
        for index, name in enumerate(names):
            path = self.find_exactly(name, folders) or self.find_exactly(slashed(name), folders)
            paths.append(path or os.path.join(nowhere, slashed(name)))  # noqa: PTH118
            found = self._search(name, role) if path is None else []
            if len(found) == 1:
                taken.setdefault(found[0], []).append(index)
            elif found:
                reasons[index] = "several files have this name; give the path below the dataset's folder"
        exact = set(paths)
        for path, indices in taken.items():
            if len(indices) == 1 and path not in exact:
                paths[indices[0]] = path
                elsewhere[indices[0]] = f"{names[indices[0]]}: found as {self.relative(path)}"
            else:
                reasons |= dict.fromkeys(indices, f"could be {self.relative(path)}, but so could another one")
        return paths, elsewhere, reasons

    def _search(self, name: str, role: str | None) -> list[str]:
        """The images that a name can mean."""
        name = slashed(name)
        if "?d=" in name:  # Label Studio's local files
            name = name.partition("?d=")[2]
        base = fold_name(PurePosixPath(name.partition("?")[0]).name)
        for key in (base, _stem(base), HASH_PREFIX.sub("", base, 1), _stem(HASH_PREFIX.sub("", base, 1))):
            found = [path for path in self._by_name.get(key, ()) if role is None or path_role(self.relative(path)) in (None, role)]
            if found:
                return most_alike(name, found)
        return []

    def images_like(self, name: str) -> list[Path]:
        """The images of a name with or without their suffix, however it is spelled."""
        return [Path(path) for path in self._by_name.get(fold_name(name), ())]

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """Images by their folded names, with and without suffix."""
        found: dict[str, list[str]] = {}
        for path in self.images:
            base = fold_name(os.path.basename(path))  # noqa: PTH119
            found.setdefault(base, []).append(path)
            found.setdefault(_stem(base), []).append(path)
        return found


def _stem(name: str) -> str:
    """Without the suffix of an image: `frame.12` is a name as it is."""
    stem, _, suffix = name.rpartition(".")
    return stem if stem and f".{suffix}" in IMAGE_SUFFIXES | UNREADABLE_SUFFIXES else name


AnyPath = TypeVar("AnyPath", str, Path)


def most_alike(name: str, paths: list[AnyPath]) -> list[AnyPath]:
    """Those whose last folders are the most like those of a name."""

    wanted = fold_name(name).split("/")[-2::-1]

    def common(path: AnyPath) -> int:
        there = fold_name(slashed(str(path))).split("/")[-2::-1]
        return next((count for count, (one, other) in enumerate(zip(wanted, there, strict=False)) if one != other), len(wanted))

    best = max(map(common, paths))
    return [path for path in paths if common(path) == best]
