"""Train, val and test made from one set of images: stratified over the classes, seeded, written down, and kept."""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from deformable_detr.data.annotation_file import read_json
from deformable_detr.data.cache import derived_folder, fingerprint, write_whole

logger = logging.getLogger(__name__)

MADE_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SHARES = {"val": 0.1, "test": 0.1}
"""Of the images; the rest is for training."""

SEED = 0


def divide(root: Path, source: str, located: tuple[Path, Path], split: str, own: Collection[str] = ()) -> tuple[Path, Path]:
    """The annotation file and image folder of one part of a dataset that is divided by us.

    The division stands in `splits.json` among the derived files, image by image, and holds from then on: images that came
    later are added to it, and a hand may change it. Where the dataset has a test split of its own, only val is made.

    Args:
        root: the folder of the dataset.
        source: what is divided, as it is called in splits.json.
        located: annotation file and image folder of all the images.
        split: train, val or test.
        own: the splits that the dataset has itself.

    Raises:
        FileNotFoundError: too few images for a split of this name.
        ValueError: splits.json is damaged, or names an image twice.
    """
    whole, image_dir = located
    folder = derived_folder(root)
    written = folder / "splits.json"
    if written.is_file():
        part = _part_file(folder, whole, split, written)
        if part.is_file():
            return part, image_dir
    record = read_json(whole)
    names = [str(image.get("file_name")) for image in record.get("images", [])]
    shares = {name: share for name, share in SHARES.items() if not any(other.startswith(name) for other in own)}
    chosen = _assign(record, names, shares, written, source)
    parts = {name: _part_file(folder, whole, name, written) for name in ("train", *shares) if name in chosen}
    for name, path in parts.items():
        _write_part(record, names, chosen, name, path)
    if split not in parts:
        raise FileNotFoundError(f"{root}: no split {split!r}, and {len(names)} images are too few to make one")
    return parts[split], image_dir  # not asked for anew: another process may have written `whole` again meanwhile


def _part_file(folder: Path, whole: Path, split: str, written: Path) -> Path:
    key = hashlib.sha256(written.read_bytes()).hexdigest()
    return folder / f"{split}-{fingerprint([whole], key)}.json"


def _assign(record: dict, names: list[str], shares: dict[str, float], written: Path, source: str) -> list[str]:
    """The split of every image: as written down, the new ones divided, and all of it written down."""
    everything = read_json(written) if written.is_file() else {}
    before = _read_division(everything, source, written)
    fixed = {index: before[name] for index, name in enumerate(names) if name in before}
    chosen = stratify(_labels(record), split_sizes(len(names), shares), seed=SEED, fixed=fixed)
    if len(fixed) < len(names):
        images = {split: [n for n, c in zip(names, chosen, strict=True) if c == split] for split in ("train", *shares)}
        everything[source] = {"seed": SEED, "images": images}
        write_whole(written, json.dumps(everything, indent=1, ensure_ascii=False).encode())
        counts = ", ".join(f"{len(found)} {split}" for split, found in images.items())
        what = f"added {len(names) - len(fixed)} new images to the division" if fixed else "has no validation split, so divided"
        logger.info("%s: %s: %s (stratified by class, seed %d); written down in %s", source, what, counts, SEED, written)
    return chosen


def _read_division(everything: dict, source: str, written: Path) -> dict[str, str]:
    """Image → split, as written down for a source."""
    try:
        pairs = [(name, split) for split, found in everything.get(source, {"images": {}})["images"].items() for name in found]
    except (KeyError, AttributeError, TypeError):
        raise ValueError(f"{written}: {source!r} has no lists of images per split; correct the file, or delete it") from None
    division = dict(pairs)
    unknown = set(division.values()) - {"train", "val", "test"}
    if unknown or len(division) < len(pairs):
        twice = next((name for name, split in pairs if division[name] != split), None)
        what = f"unknown split {sorted(unknown)[0]!r}" if unknown else f"image {twice!r} stands in two lists" if twice else None
        if what:
            raise ValueError(f"{written}: {what}; correct the file, or delete it")
    return division


def _labels(record: dict) -> list[set[int]]:
    """The category ids in each image."""
    position = {image["id"]: index for index, image in enumerate(record["images"])}
    labels: list[set[int]] = [set() for _ in record["images"]]
    for entry in record.get("annotations", []):
        if entry.get("image_id") in position:
            labels[position[entry["image_id"]]].add(entry.get("category_id"))
    return labels


def _write_part(record: dict, names: list[str], chosen: list[str], split: str, path: Path) -> None:
    """The images of a split, with their annotations and all categories."""
    images = [image for image, found in zip(record["images"], chosen, strict=True) if found == split]
    ids = {image["id"] for image in images}
    annotations = [entry for entry in record.get("annotations", []) if entry.get("image_id") in ids]
    part = {"images": images, "annotations": annotations, "categories": record.get("categories", [])}
    write_whole(path, json.dumps(part).encode())


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

    Sechidis, Tsoumakas, Vlahavas, On the Stratification of Multi-Label Data, 2011. A split that has its number of images takes
    no more. The same input gives the same division.

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
