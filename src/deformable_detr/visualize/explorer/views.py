"""The images of a session and what the detector made of them."""

import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from deformable_detr.data.images import read_image
from deformable_detr.inference.predictor import Predictor
from deformable_detr.visualize.inside.description import Description, describe

KEPT = 3
"""Passes that stay in memory; at 800 pixels one of a full network takes some hundred megabytes."""


class Views:
    """Sends images through a detector, one at a time, and keeps the last few passes.

    Args:
        detector: the network and its settings.
        images: what the page offers; others can be viewed, too.
    """

    def __init__(self, detector: Predictor, images: Sequence[Path]) -> None:
        self.detector = detector
        self.images = list(images)
        self._lock = threading.Lock()  # passes of two browser tabs must not listen in on each other
        self._cached = lru_cache(maxsize=KEPT)(self._look)

    def description(self, path: Path) -> Description:
        """The stages of an image's pass with their shapes and costs; what was captured on the way is in `.inside`.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not an image.
        """
        with self._lock:
            return self._cached(path)

    def _look(self, path: Path) -> Description:
        return describe(self.detector.model, read_image(path), num_detections=1)  # pyright: ignore[reportArgumentType]
