"""The same image twice, in one split or in two: by the file's digest, and by a perceptual hash for what was saved anew."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from deformable_detr.data.doctor.images import ImageFacts
from deformable_detr.data.doctor.split_data import SplitData

FARTHEST = 4
"""Bits of 64 in which the hashes of two similar images may differ."""

LARGEST_DIFFERENCE = 3.0
"""Mean difference of their thumbnails, in grey levels of 255. Images without texture have similar hashes, but differ in this."""

MOST_ALIKE = 50
"""Images like one image; of more, only the first is compared with the rest, so that thousands of blank ones take no hours."""

BANDS = FARTHEST + 1  # hashes that differ in 4 bits agree in at least one of 5 bands


def check_duplicates(splits: Sequence[SplitData], facts: Sequence[Mapping[int, ImageFacts]]) -> None:
    """Note copies and look-alikes; between splits they count for the one that is trained on, else for the earlier one."""
    places = [(part, image) for part, found in enumerate(facts) for image in found]
    read = [facts[part][image] for part, image in places]
    noted: set[tuple[str, int, int]] = set()
    for first, second in sorted(_like_pairs(read)):
        (part, image), (other_part, other_image) = places[first], places[second]
        same = read[first].digest == read[second].digest
        code = "image-leak" if part != other_part else "image-copy" if same else "image-alike"
        if part == other_part:
            image, other_image = other_image, image  # the earlier one stays
        if (code, part, image) not in noted:
            noted.add((code, part, image))
            other = splits[other_part]
            where = other.file_name(other_image) + (f" of {other.name}" if part != other_part else "")
            text = f"the same file as {where}" if same else f"looks like {where}"
            splits[part].found.add(code, splits[part].image_item(image, text, value=(other.name, other_image)))


def check_shared_files(splits: Sequence[SplitData]) -> None:
    """Note images that two splits share under one name, be it through a link: what can be told without reading them."""
    paths = [[data.path(image) for image in range(len(data.image_ids))] for data in splits]
    names = [{path.name for path in found} for found in paths]
    for number, other in enumerate(splits):
        for before, data in enumerate(splits[:number]):
            shared = names[before] & names[number]  # few or none, so that few files are asked for what they are
            places = {_identity(path): image for image, path in reversed([*enumerate(paths[number])]) if path.name in shared}
            for image, path in enumerate(paths[before]):
                there = places.get(_identity(path)) if path.name in shared else None
                if there is not None:
                    text = f"the same file as {other.file_name(there)} of {other.name}"
                    data.found.add("image-leak", data.image_item(image, text, value=(other.name, there)))


def _identity(path: Path) -> object:
    """What two paths of one file have in common."""
    try:
        state = path.stat()
    except OSError:  # not there: said elsewhere
        return path
    return state.st_dev, state.st_ino


def _like_pairs(read: Sequence[ImageFacts]) -> set[tuple[int, int]]:
    """Pairs (earlier, later) of like images; of files with the same content, each is paired with the first of them."""
    if not read:
        return set()
    thumbnails = np.array([facts.thumbnail for facts in read], dtype=np.int16).reshape(len(read), -1)
    hashes = np.array([facts.difference_hash for facts in read], dtype=np.uint64)
    pairs: set[tuple[int, int]] = set()
    by_digest: dict[bytes, int] = {}
    for index, facts in enumerate(read):
        first = by_digest.setdefault(facts.digest, index)
        if first != index:
            pairs.add((first, index))
    unique = np.array(sorted(by_digest.values()), dtype=np.int64)
    for bucket in _buckets(hashes[unique]):
        members = unique[bucket]
        while len(members) > 1:
            first, members = members[0], members[1:]
            near = np.bitwise_count(hashes[members] ^ hashes[first]) <= FARTHEST
            close = members[near]
            alike = close[np.abs(thumbnails[close] - thumbnails[first]).mean(axis=1) <= LARGEST_DIFFERENCE]
            pairs |= {(int(first), int(index)) for index in alike}
            if len(alike) > MOST_ALIKE:
                members = members[~np.isin(members, alike)]
    return pairs


def _buckets(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Groups of positions whose hashes agree in one band of bits; all hashes within FARTHEST bits share a group."""
    width = -(-64 // BANDS)
    for band in range(BANDS):
        keys = (hashes >> np.uint64(band * width)) & np.uint64((1 << width) - 1)
        order = np.argsort(keys, kind="stable")
        edges = np.flatnonzero(np.diff(keys[order])) + 1
        yield from (np.sort(group) for group in np.split(order, edges) if len(group) > 1)
