"""Train, val and test made from one set of images: stratified over the classes, seeded, written down, and kept."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deformable_detr.data.annotation_file import AnnotationFile
from deformable_detr.data.cache import FOLDER, derived_folder
from deformable_detr.data.file_index import slashed
from deformable_detr.data.text import read_json
from deformable_detr.files import is_file, write_json

logger = logging.getLogger(__name__)

MADE_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""What the splits are called, and which is meant."""

SHARES = {"val": 0.1, "test": 0.1}
"""Of the images; the rest is for training."""

SEED = 0
WRITTEN = "splits.json"


def divide(root: Path, source: str, whole: AnnotationFile, paths: list[str], *, make_test: bool, keep: bool = True) -> list[str]:
    """Divide the images of a dataset that has no splits.

    The division is written to `splits.json` among the derived files, image by image, and holds from then on: images that came
    later are added to it, and the file may be edited. One that lies in a dataset which is read-only here holds, too.

    Args:
        root: the folder of the dataset.
        source: what is divided, as it is called in splits.json.
        whole: all the images.
        paths: their files; images of one file, which may be listed again, go together.
        keep: whether a new division is written down.
        make_test: False where the dataset has a test split of its own: then only val is made.

    Returns:
        `train`, `val` or `test` for each image.

    Raises:
        ValueError: splits.json is damaged, or names an image twice.
    """
    before = read_division(root, source)
    names = list(map(slashed, whole.file_names.tolist()))
    paths = list(map(os.path.abspath, paths))
    files = list(dict.fromkeys(paths))
    known = {path: before[name] for path, name in zip(paths, names, strict=True) if name in before}
    fixed = {index: known[path] for index, path in enumerate(files) if path in known}
    shares = {name: share for name, share in SHARES.items() if make_test or name != "test"}
    stratified = stratify(_labels(whole, paths), split_sizes(len(files), shares), seed=SEED, fixed=fixed)
    split_of = dict(zip(files, stratified, strict=True))
    chosen = [split_of[path] for path in paths]
    if keep and len(fixed) < len(files):
        of_names = before | dict(zip(names, chosen, strict=True))  # also of images that are not here today
        written = derived_folder(root) / WRITTEN
        images = write_division(written, source, of_names, ("train", *shares))
        counts = ", ".join(f"{len(found)} {split}" for split, found in images.items())
        what = f"added {len(files) - len(fixed)} new images to the division" if fixed else "has no validation split, so divided"
        kept = "" if make_test else "; its own test split is for testing only"
        text = "%s: %s: %s (stratified by class, seed %d); written down in %s%s"
        logger.info(text, source, what, counts, SEED, written, kept)
    return chosen


def read_division(root: Path, source: str) -> dict[str, str]:
    """Image → split, as written down for a source; empty where nothing is.

    Raises:
        ValueError: splits.json is damaged, or names an image twice.
    """
    found: dict[str, str] = {}
    for place in dict.fromkeys((derived_folder(root) / WRITTEN, root / FOLDER / WRITTEN)):  # its own, which holds, is the last
        if is_file(place):
            found |= _read_division(read_json(place), source, place)
    return found


def write_division(file: Path, source: str, split_of: Mapping[str, str], splits: Sequence[str] = ()) -> dict[str, list[str]]:
    """Write down the split of each image of a source, beside what the file says of others.

    Args:
        file: the splits.json.
        source: what is divided.
        split_of: image → split.
        splits: those that are listed first, also if they are empty.

    Returns:
        The images of each split.
    """
    images = {split: [] for split in splits}
    for name, split in split_of.items():
        images.setdefault(split, []).append(name)
    everything = read_json(file) if file.is_file() else {}
    write_json(file, everything | {source: {"seed": SEED, "images": images}}, indent=1)
    return images


def _read_division(everything: dict, source: str, written: Path) -> dict[str, str]:
    """Image → split, as written down for a source."""
    entry = everything.get(source, {"images": {}})
    lists = entry.get("images") if isinstance(entry, dict) else None
    if not isinstance(lists, dict) or not all(map(_is_list_of_names, lists.values())):
        raise ValueError(f"{written}: {source!r} has no lists of images per split; correct the file, or delete it")
    pairs = [(slashed(name), split) for split, found in lists.items() for name in found]
    division = dict(pairs)
    unknown = set(division.values()) - {"train", "val", "test"}
    if unknown or len(division) < len(pairs):
        twice = next((name for name, split in pairs if division[name] != split), None)
        what = f"unknown split {sorted(unknown)[0]!r}" if unknown else f"image {twice!r} stands in two lists" if twice else None
        if what:
            raise ValueError(f"{written}: {what}; correct the file, or delete it")
    return division


def _is_list_of_names(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(name, str) for name in found)


def _labels(whole: AnnotationFile, paths: list[str]) -> list[set[int]]:
    """The classes in each file, in the order of the files."""
    labels: dict[str, set[int]] = {path: set() for path in paths}
    for image, label in zip(whole.images.tolist(), whole.labels.tolist(), strict=True):
        labels[paths[image]].add(label)
    return list(labels.values())


def split_sizes(count: int, shares: Mapping[str, float]) -> dict[str, int]:
    """How many of `count` images go where: the rounded share but at least one, as long as training keeps one; train the rest."""
    sizes, left = {}, count
    for name, share in shares.items():
        sizes[name] = min(max(1, round(share * count)), max(left - 1, 0))
        left -= sizes[name]
    return {"train": left} | sizes


def stratify(
    labels: Sequence[set[int]], sizes: Mapping[str, int], *, seed: int = 0, fixed: Mapping[int, str] | None = None
) -> list[str]:
    """Divide images so that every split has its share of every class: iterative stratification, the rarest class first.

    Sechidis, Tsoumakas, Vlahavas, On the Stratification of Multi-Label Data, 2011. An image has several classes, so the classes
    cannot be divided independently: placing an image for one class places its others, too. The rarest class goes first because
    it has the fewest images to choose from, while frequent classes can still be balanced with what remains; an image
    goes to the split that lacks most images of the class. A split that has its number of images takes no more. The same
    input gives the same division.

    Args:
        labels: the classes in each image.
        sizes: images per split; their sum is the number of images.
        seed: of the order in which images are taken.
        fixed: images, by position, whose split is decided.

    Returns:
        The split of each image.
    """
    splits = list(sizes)
    room = {split: float(sizes[split]) for split in splits}
    members: dict[int, list[int]] = {}
    for index in np.random.default_rng(seed).permutation(len(labels)).tolist():
        for label in labels[index]:
            members.setdefault(label, []).append(index)
    share = {split: sizes[split] / max(len(labels), 1) for split in splits}
    wanted = {label: {split: share[split] * len(found) for split in splits} for label, found in members.items()}
    remaining = {label: len(found) for label, found in members.items()}
    chosen: dict[int, str] = {}

    def put(index: int, split: str) -> None:
        chosen[index] = split
        room[split] = room.get(split, 0) - 1
        for label in labels[index]:
            remaining[label] -= 1
            wanted[label][split] = wanted[label].get(split, 0) - 1

    def best(label: int | None) -> str:
        open_splits = [split for split in splits if room[split] >= 1] or splits
        return max(open_splits, key=lambda split: (wanted[label][split] if label is not None else 0, room[split]))

    for index, split in (fixed or {}).items():
        put(index, split)
    while waiting := [label for label in members if remaining[label] > 0]:
        rarest = min(waiting, key=lambda label: (remaining[label], label))
        for index in members[rarest]:
            if index not in chosen:
                put(index, best(rarest))
    for index in np.random.default_rng(seed).permutation(len(labels)).tolist():
        if index not in chosen:
            put(index, best(None))
    return [chosen[index] for index in range(len(labels))]
