"""Images far larger than the model's input: prediction tile by tile, and the detections of all tiles merged.

Neighbouring tiles overlap, so both contain a strip of the image. Two of their detections are the same object if their boxes,
clipped to that strip, agree. NMS over whole boxes would miss objects that a tile's edge cuts: one tile has the whole object, the
other a part of it, and the IoU of the two boxes is small although both are right.
"""

import logging
import math
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import supervision as sv
from torch import Tensor

from deformable_detr.data.images import ImageTooLargeError
from deformable_detr.inference.large_images import PillowImage, VipsImage, Window, open_large_image, overview
from deformable_detr.inference.sources import InputImage
from deformable_detr.pipeline import ordered_map

logger = logging.getLogger(__name__)

SAME_IOU = 0.5
"""Least IoU of two detections of one object, with both boxes cut to the area that both tiles contain."""

PART_SHARE = 0.7
"""Least share of a cut box's area inside another tile's whole box that makes it a part of that object. The clipped boxes of
such a pair can differ where the model had to guess how an object goes on beyond the tile."""

EDGE = 0.02
"""A box is regarded as cut if it comes nearer than this share of the tile's side to an edge of the tile inside the image."""


@dataclass(frozen=True)
class Tiling:
    """How an image is divided.

    Raises:
        ValueError: tiles smaller than 32 pixels, or an overlap outside [0, 0.9].
    """

    size: int
    """Side of a tile in pixels of the image."""

    overlap: float = 0.2
    """Share of a tile's side that its neighbour sees too, at least."""

    def __post_init__(self) -> None:
        if self.size < 32:
            raise ValueError(f"tiles must have at least 32 pixels a side, not {self.size}")
        if not 0 <= self.overlap <= 0.9:
            raise ValueError(f"tile_overlap must lie in [0, 0.9], not {self.overlap}")

    def windows(self, height: int, width: int) -> list[Window]:
        """The tiles of an image, row by row; before them the image as a whole, for objects larger than a tile."""
        tiles = [
            (left, top, min(left + self.size, width), min(top + self.size, height))
            for top in self._starts(height)
            for left in self._starts(width)
        ]
        return [(0, 0, width, height), *tiles] if len(tiles) > 1 else tiles

    def _starts(self, side: int) -> list[int]:
        """Where tiles begin along a side: evenly spread, the last one ending with the image."""
        room = side - self.size
        if room <= 0:
            return [0]
        count = math.ceil(room / (self.size * (1 - self.overlap))) + 1
        return [round(index * room / (count - 1)) for index in range(count)]


def iterate_tiled(
    iterate: Callable[[Iterator[InputImage]], Generator[Any, None, None]],
    images: Iterable[InputImage],
    tiling: Tiling,
    *,
    on_error: str,
    top_k: int,
) -> Generator[Any, None, None]:
    """Predict on images tile by tile.

    Args:
        iterate: gives one `Result` per tile, such as `Predictor.iterate`, which batches them and prepares the next ones meanwhile.
        images: what to predict on.
        tiling: how they are divided.
        on_error: `raise` or `skip` unreadable images.
        top_k: most detections per image.

    Yields:
        One `Result` per image.
    """
    waiting: deque[tuple[InputImage, Tensor, list[Window]]] = deque()

    def views() -> Iterator[InputImage]:
        for image in images:
            try:
                pixels, large = _open(image)
            except (OSError, ValueError) as error:
                if on_error == "raise":
                    raise
                logger.warning("skipped %s: %s", image.name, error)
                continue
            windows = tiling.windows(*(large.size if large else pixels.shape[1:]))
            waiting.append((image, pixels, windows))
            if large is None:
                for left, top, right, bottom in windows:
                    yield InputImage(image.name, pixels[:, top:bottom, left:right])
                continue
            yield InputImage(image.name, pixels)  # as a whole, reduced
            for _, future in ordered_map(large.read, windows[1:], num_threads=2, limit=2, name="window"):
                yield InputImage(image.name, future.result())

    with closing(iterate(views())) as results:
        for first in results:
            image, pixels, windows = waiting.popleft()
            parts = [first, *islice(results, len(windows) - 1)]
            _, _, width, height = windows[0]  # the image as a whole, be it looked at in a reduced form
            scale = np.tile((width / pixels.shape[2], height / pixels.shape[1]), 2)
            whole = replace(first.detections, xyxy=first.detections.xyxy * scale)
            found: Any = merge_tiles([whole, *(part.detections for part in parts[1:])], windows)[:top_k]
            if image.path:
                found.metadata = {"path": str(image.path), "image_size": (height, width)}
            yield replace(first, pixels=pixels, detections=found, path=image.path, full_size=(height, width))


def _open(image: InputImage) -> tuple[Tensor, VipsImage | PillowImage | None]:
    """The pixels; of a file that is too large for that a reduced form, and what reads its windows."""
    try:
        return image.read(), None
    except ImageTooLargeError:
        if image.path is None:
            raise
        large = open_large_image(image.path, image.bit_depth)
        return overview(large), large


def merge_tiles(parts: Sequence[sv.Detections], windows: Sequence[Window]) -> sv.Detections:
    """Detections of tiles → detections of the image, each object once.

    An object that some tile contains whole keeps the whole box with the highest score. One that every tile cuts gets the box
    around its parts. Only detections of the same class and of different tiles are compared.

    Args:
        parts: of each tile, in pixels of the tile.
        windows: the tiles' position in the image.

    Returns:
        Highest score first, in pixels of the image.
    """
    boxes = np.concatenate([part.xyxy + np.tile(window[:2], 2) for part, window in zip(parts, windows, strict=True)])
    tile = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    scores, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("confidence", "class_id"))
    data = {name: np.concatenate([part.data[name] for part in parts]) for name in parts[0].data}
    cut = _is_cut(boxes, np.array(windows, dtype=float)[tile], windows)
    pairs = _same_objects(boxes, labels, cut, tile, np.array(windows, dtype=float))
    kept = _best_whole(pairs, scores, cut)
    for group in _fragments(pairs, cut):
        best = group[np.argmax(scores[group])]
        boxes[best] = np.concatenate((boxes[group, :2].min(axis=0), boxes[group, 2:].max(axis=0)))
        kept.append(int(best))
    order = np.array(sorted(kept, key=lambda index: -scores[index]), dtype=int)
    return sv.Detections(
        xyxy=boxes[order].astype(np.float32).reshape(-1, 4),
        confidence=scores[order],
        class_id=labels[order],
        data={name: values[order] for name, values in data.items()},
    )


def _same_objects(boxes: np.ndarray, labels: np.ndarray, cut: np.ndarray, tile: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """`[P, 2]` pairs of detections that are the same object, seen by two tiles."""
    members = {int(number): np.flatnonzero(tile == number) for number in np.unique(tile)}
    numbers = np.array(list(members), dtype=int)
    pairs = [np.zeros((0, 2), dtype=int)]
    for position, first in enumerate(numbers):
        others = numbers[position + 1 :]
        common = np.concatenate(
            (np.maximum(windows[first, :2], windows[others, :2]), np.minimum(windows[first, 2:], windows[others, 2:])), axis=1
        )
        touching = (common[:, 2:] > common[:, :2]).all(axis=1)  # of thousands of tiles, a few are neighbours
        for second, strip in zip(others[touching].tolist(), common[touching], strict=True):
            a, b = members[int(first)], members[second]
            same = sv.box_iou_batch(_cut_to(boxes[a], strip), _cut_to(boxes[b], strip)) >= SAME_IOU
            same |= (_share_inside(boxes[a], boxes[b]) >= PART_SHARE) & cut[a, None] & ~cut[b]
            same |= (_share_inside(boxes[b], boxes[a]).T >= PART_SHARE) & ~cut[a, None] & cut[b]
            rows, columns = np.nonzero(same & (labels[a, None] == labels[b]))
            pairs.append(np.stack((a[rows], b[columns]), axis=1))
    return np.concatenate(pairs)


def _share_inside(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """`[N, M]` the share of each box's area inside each of the others."""
    low, high = np.maximum(boxes[:, None, :2], others[:, :2]), np.minimum(boxes[:, None, 2:], others[:, 2:])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)[:, None]
    return (high - low).clip(min=0).prod(axis=2) / np.maximum(area, 1e-9)


def _cut_to(boxes: np.ndarray, window: np.ndarray) -> np.ndarray:
    """`[N, 4]` the boxes clipped to a window; without area where they are outside."""
    return np.clip(boxes, np.tile(window[:2], 2), np.tile(window[2:], 2))


def _is_cut(boxes: np.ndarray, windows: np.ndarray, all_windows: Sequence[Window]) -> np.ndarray:
    """`[N]` whether a box touches an edge of its tile that is not an edge of the image."""
    width, height = np.max(all_windows, axis=0)[2:]
    margin = np.tile(EDGE * (windows[:, 2:] - windows[:, :2]), 2)
    near = np.abs(boxes - windows) < margin
    return (near & (windows != np.array([0, 0, width, height]))).any(axis=1)


def _best_whole(pairs: np.ndarray, scores: np.ndarray, cut: np.ndarray) -> list[int]:
    """The detections that no tile's edge cuts, best first, without duplicates of better ones.

    As in NMS, a detection is dropped only for one that is kept: in transitive groups, a chain of neighbours would be one object.
    """
    neighbours = defaultdict(set)
    for first, second in pairs[~cut[pairs].any(axis=1)].tolist():
        neighbours[first].add(second)
        neighbours[second].add(first)
    kept: dict[int, None] = {}
    for index in np.argsort(-scores, kind="stable").tolist():
        if not cut[index] and not neighbours[index] & kept.keys():
            kept[index] = None
    return list(kept)


def _fragments(pairs: np.ndarray, cut: np.ndarray) -> Iterator[np.ndarray]:
    """Groups of detections that are parts of one object, for objects that no tile contains whole.

    Here groups are transitive: an object longer than a tile has parts in a row of tiles, of which only neighbours overlap. A part
    that pairs with a whole box belongs to that object and would enlarge the group's box, so it is left out.
    """
    partners = cut[pairs]  # [P, 2]
    seen_whole = np.concatenate((pairs[partners[:, 0] & ~partners[:, 1], 0], pairs[~partners[:, 0] & partners[:, 1], 1]))
    parts = cut.copy()
    parts[seen_whole] = False
    among = pairs[parts[pairs].all(axis=1)]
    from scipy.sparse import coo_matrix  # slow imports, for tiles alone
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(among)), (among[:, 0], among[:, 1])), shape=(len(cut), len(cut)))
    _, group = connected_components(graph, directed=False)
    for number in np.unique(group[parts]):
        yield np.flatnonzero(parts & (group == number))
