"""Videos, cameras and network streams as images to predict on: decoded ahead by a thread, a few frames in memory at a time."""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import supervision as sv

from deformable_detr.inference.predictor import Predictor
from deformable_detr.inference.sources import InputImage, is_camera, is_stream
from deformable_detr.inference.tracking import Tracker
from deformable_detr.inference.video_readers import CameraReader, FileReader, Moments
from deformable_detr.schema import check_number, plain_numbers

logger = logging.getLogger(__name__)
Item = TypeVar("Item")


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
        self.name, self._closed = str(source), False
        self._reading = threading.Lock()  # FFmpeg ends the process when its file is closed while another thread decodes it
        camera = is_camera(self.name)
        if not camera and not is_stream(self.name) and not Path(self.name).is_file():
            raise FileNotFoundError(f"no such video: {self.name}")
        self._reader = CameraReader(int(self.name)) if camera else FileReader(self.name)
        self.live = self._reader.live
        """Whether the source is live: frames arrive without end, and those that cannot be processed in time are dropped."""
        self.num_frames = self._reader.num_frames
        """According to the file, which may be wrong; None where unknown."""
        self.fps = self._reader.fps
        """Frames per second, on average."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with self._reading:
            self._reader.close()
            self._closed = True

    def frames(self, every: int = 1) -> Iterator[tuple[int, float, np.ndarray]]:
        """Index, seconds since the first frame, and pixels `[H, W, 3]` uint8 RGB of every `every`-th frame.

        The seconds are the frames' own time stamps, live the time of their arrival. Where there are none, or where they jump back
        (as at the joints of joined streams), time goes on at the average rate.

        Raises:
            ValueError: not one frame can be decoded, or the video has been closed.
        """
        index, began, shift, seconds = 0, 0.0, 0.0, 0.0
        moments = self._reader.moments()
        while (moment := self._next(moments, index % every == 0)) is not None:
            stamp, image = moment
            earliest = seconds + 1 / self.fps if index else 0.0
            if self.live:
                arrived = time.monotonic()
                began = began if index else arrived
                seconds = arrived - began
            elif stamp is None:
                seconds = earliest
            else:
                if index == 0 or stamp + shift <= seconds:
                    shift = earliest - stamp
                seconds = stamp + shift
            if image is not None:
                yield index, seconds, image
            index += 1
        if index == 0:
            raise ValueError(f"{self.name}: not one frame can be decoded; the file may be damaged or cut off")

    def _next(self, moments: Moments, wanted: bool) -> tuple[float | None, np.ndarray | None] | None:
        """The next frame's own time and, if they are wanted, its pixels; None at the end."""
        with self._reading:
            if self._closed:
                raise ValueError(f"{self.name}: this video has been closed; open it again")
            moment = next(moments, None)
            return None if moment is None else (moment[0], moment[1]() if wanted else None)


def iterate_video(
    predictor: Predictor,
    video: Video | str | Path,
    threshold: float | None = None,
    *,
    every: int = 1,
    tracker: Tracker | bool | None = None,
    **options: Any,
) -> Generator[Frame, None, None]:
    """Detect objects in a video, a camera's images or a stream, frame by frame.

    Decoding, resizing and the model work at the same time. Of a camera the newest frames are taken.

    Args:
        predictor: a detector.
        video: an opened one, or what opens one.
        threshold: smallest score of a detection, None as for :meth:`Predictor.predict`; a tracker has its own.
        every: take every N-th frame.
        tracker: gives the objects numbers; True: one that begins tracks at `threshold`. Instead of ours, any object with
            `update(detections)` and `lowest_score`.
        options: further ones of :meth:`Predictor.iterate`: `batch_size`, `top_k`, `classes`, `tiles`, …

    Raises:
        FileNotFoundError: no such file.
        ValueError: the video cannot be decoded, or an option is out of range.
    """
    (every,) = plain_numbers("a whole number", Integral, int, every=every)
    check_number("every", every, 1)
    if not isinstance(video, Video):
        with Video(video) as opened:
            yield from iterate_video(predictor, opened, threshold, every=every, tracker=tracker, **options)
        return
    if tracker is True:
        tracker = Tracker(predictor.score_limits(threshold).tolist())
    following = tracker or None
    waiting: deque[tuple[int, float]] = deque()

    def images() -> Iterator[InputImage]:
        for index, seconds, image in ahead:
            waiting.append((index, seconds))
            yield InputImage(f"frame {index}", image)

    lowest = threshold if following is None else following.lowest_score
    with closing(read_ahead(video.frames(every), newest=video.live)) as ahead:
        for result in predictor.iterate(images(), lowest, **options):
            found = result.detections if following is None else following.update(result.detections)
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
