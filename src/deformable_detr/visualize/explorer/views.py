"""The pictures of a session and what the detector made of them."""

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from deformable_detr.data.images import read_image
from deformable_detr.inference.predictor import Predictor
from deformable_detr.visualize.describe import Description, describe
from deformable_detr.visualize.inside import Inside, look_inside

Value = TypeVar("Value")

KEPT = 3
"""Passes that stay in memory; at 800 pixels one of a full network takes some hundred megabytes."""


class Views:
    """Sends pictures through a detector, one at a time, and keeps the last few passes.

    Args:
        detector: the network and its settings.
        pictures: what the page offers; others can be viewed, too.
    """

    def __init__(self, detector: Predictor, pictures: Sequence[Path]) -> None:
        self.detector = detector
        self.pictures = list(pictures)
        lock = threading.Lock()  # passes of two browser tabs must not listen in on each other
        self.inside = _one_at_a_time(lock, self._inside)
        self.description = _one_at_a_time(lock, self._description)

    def _inside(self, path: Path) -> Inside:
        return look_inside(self.detector, path)

    def _description(self, path: Path) -> Description:
        return describe(self.detector.model, read_image(path), num_detections=1)  # pyright: ignore[reportArgumentType]


def _one_at_a_time(lock: threading.Lock, function: Callable[[Path], Value]) -> Callable[[Path], Value]:
    cached = lru_cache(maxsize=KEPT)(function)

    def call(path: Path) -> Value:
        with lock:
            return cached(path)

    return call
