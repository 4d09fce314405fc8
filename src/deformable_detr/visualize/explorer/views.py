"""The images of a session and their forward passes."""

import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from deformable_detr.data.images import read_image
from deformable_detr.inference.predictor import Predictor
from deformable_detr.visualize.inside.description import Description, describe

KEPT = 3
"""Forward passes that stay in memory; one of the full model at 800 pixels takes some hundred megabytes."""


class Views:
    """Runs a detector on images, one at a time, and keeps the last few forward passes.

    Args:
        detector: any.
        images: those that the page offers; others can be viewed, too.
    """

    def __init__(self, detector: Predictor, images: Sequence[Path]) -> None:
        self.detector = detector
        self.images = list(images)
        self._lock = threading.Lock()  # hooks of two browser tabs must not see each other's forward pass
        self._cached = lru_cache(maxsize=KEPT)(self._look)

    def description(self, path: Path) -> Description:
        """The stages of an image's forward pass with their shapes and costs; what was captured on the way is in `.inside`.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not an image.
        """
        with self._lock:
            return self._cached(path)

    def _look(self, path: Path) -> Description:
        return describe(self.detector.model, read_image(path, bit_depth=self.detector.metadata.bit_depth), num_detections=1)
