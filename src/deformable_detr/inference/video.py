"""Videos, cameras and network streams as images to predict on: decoded ahead by a thread, a few frames in memory at a time."""

import logging
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import cv2
import numpy as np
import supervision as sv

from deformable_detr.inference.predictor import Predictor
from deformable_detr.inference.tracking import Tracker

logger = logging.getLogger(__name__)
Item = TypeVar("Item")

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".mts", ".3gp"}
)
DEFAULT_FPS = 25.0
"""For cameras and streams that do not say how fast they are."""

MISSING_SHARE = 0.02
"""A video that ends with more of its frames missing than this is reported; headers are often off by a frame or two."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame and what was found in it."""

    index: int
    """Its number in the video, from 0; for a camera, how many had been read before it."""

    time: float
    """Seconds since the first frame."""

    image: np.ndarray
    """`[H, W, 3]` uint8 RGB."""

    detections: sv.Detections
    """As from :meth:`Predictor.predict`; with `tracker_id` where they are tracked."""


class Video:
    """An opened video, camera or stream; a context manager.

    Args:
        source: a file, the number of a camera (`"0"`), or an address that begins with `rtsp://`, `rtmp://`, `http://` or `https://`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be opened or decoded.
    """

    def __init__(self, source: str | Path) -> None:
        self.name = str(source)
        camera = is_camera(self.name)
        if not camera and not is_address(self.name) and not Path(self.name).is_file():
            raise FileNotFoundError(f"no such video: {self.name}")
        self._capture = cv2.VideoCapture(int(self.name)) if camera else cv2.VideoCapture(self.name)
        if not self._capture.isOpened():
            self._capture.release()
            raise ValueError(f"{self.name}: {_cannot_open(self.name)}")
        frames = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.live = camera or self.name.lower().startswith(("rtsp:", "rtmp:")) or frames <= 0
        """Whether frames come in their own time and for ever, so that those that nobody has time for are left out."""
        self.num_frames = None if self.live else frames
        """According to the file, which may be wrong; None for a camera or stream."""
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps: float = rate if 0 < rate < 1000 else DEFAULT_FPS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._capture.release()

    def frames(self, every: int = 1) -> Iterator[tuple[int, float, np.ndarray]]:
        """Index, seconds since the beginning, and pixels `[H, W, 3]` uint8 RGB of every `every`-th frame.

        Raises:
            ValueError: not one frame can be decoded.
        """
        index, began = 0, time.monotonic()
        while self._capture.grab():
            if index % every == 0:
                seconds = time.monotonic() - began if self.live else index / self.fps
                decoded, image = self._capture.retrieve()
                if decoded:
                    yield index, seconds, cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            index += 1
        if index == 0:
            raise ValueError(f"{self.name}: not one frame can be decoded; the file may be damaged or cut off")
        if self.num_frames and index < self.num_frames * (1 - MISSING_SHARE) - 1:
            logger.warning("%s ends after %d of %d frames; the file may be cut off", self.name, index, self.num_frames)


def iterate_video(
    predictor: Predictor,
    video: Video | str | Path,
    threshold: float | None = None,
    *,
    every: int = 1,
    tracker: Tracker | None = None,
    **options: Any,
) -> Generator[Frame, None, None]:
    """Detect objects in a video, a camera's images or a stream, frame by frame.

    Decoding, resizing and the network work at the same time. Of a camera the newest frames are taken.

    Args:
        predictor: a detector.
        video: an opened one, or what opens one.
        threshold: smallest score of a detection, None as for :meth:`Predictor.predict`; a tracker has its own.
        every: take every so many frames.
        tracker: gives the objects numbers. Instead of ours, any object with `update(detections)` and `lowest_score`.
        options: further ones of :meth:`Predictor.iterate`: `batch_size`, `top_k`, `classes`, `tiles`, …

    Raises:
        FileNotFoundError: no such file.
        ValueError: the video cannot be decoded, or an option is out of range.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, not {every}")
    if not isinstance(video, Video):
        with Video(video) as opened:
            yield from iterate_video(predictor, opened, threshold, every=every, tracker=tracker, **options)
        return
    waiting: deque[tuple[int, float]] = deque()

    def images() -> Iterator[np.ndarray]:
        for index, seconds, image in ahead:
            waiting.append((index, seconds))
            yield image

    lowest = threshold if tracker is None else tracker.lowest_score
    with closing(read_ahead(video.frames(every), newest=video.live)) as ahead:
        for result in predictor.iterate(images(), lowest, **options):
            found = result.detections if tracker is None else tracker.update(result.detections)
            yield Frame(*waiting.popleft(), result.image, found)


def read_ahead(items: Iterator[Item], size: int = 8, newest: bool = False) -> Generator[Item, None, None]:
    """The same items, made by a thread that is up to `size` of them ahead.

    Args:
        items: what to go through.
        size: so many wait at most.
        newest: when that many wait, leave out the oldest one instead of stopping.
    """
    waiting: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(size)
    stopped = threading.Event()

    def put(entry: tuple[Item | None, BaseException | None], newest: bool) -> None:
        while not stopped.is_set():
            try:
                waiting.put(entry, timeout=0 if newest else 0.1)
                break
            except queue.Full:
                if newest:
                    with suppress(queue.Empty):
                        waiting.get_nowait()

    def work() -> None:
        error: BaseException | None = StopIteration()
        try:
            for item in items:
                put((item, None), newest)
                if stopped.is_set():
                    return
        except Exception as raised:
            error = raised
        put((None, error), newest=False)

    thread = threading.Thread(target=work, name="decode", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()


def is_video(source: str | Path) -> bool:
    """Whether this is a video, a camera or a stream, and not an image, a folder or a pattern; files by their suffix."""
    return is_camera(str(source)) or is_address(str(source)) or Path(source).suffix.lower() in VIDEO_SUFFIXES


def is_camera(source: str) -> bool:
    """A number, unless there is a file of that name."""
    return source.isdecimal() and not Path(source).exists()


def is_address(source: str) -> bool:
    """Something on the network, other than an image."""
    return re.match(r"(rtsp|rtmp|https?)://", source, re.IGNORECASE) is not None


def _cannot_open(name: str) -> str:
    if is_camera(name):
        return "there is no such camera, or another program uses it"
    if is_address(name):
        return "this address cannot be opened, or holds no video"
    return (
        "not a video that can be read (damaged, cut off, or in a format that OpenCV does not know); play it elsewhere to see which"
    )
