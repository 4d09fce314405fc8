"""Frames with boxes, numbers and traces, written as a video by a thread while the network goes on."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import supervision as sv

from deformable_detr.inference.video import Frame
from deformable_detr.visualize.colors import class_color
from deformable_detr.visualize.drawing.detections import draw_detections

MOST_PENDING = 8
TRACE_SECONDS = 2.0
MIN_SIDE = 480  # pixels


class DrawnVideo:
    """Draws frames and writes them to an MP4 file (codec `mp4v`); a context manager.

    The file gets its name when it is complete. An interruption (Ctrl-C) completes it with the frames so far; another error
    removes it.

    Args:
        path: the file, `.mp4`; one of that name is replaced.
        fps: frames per second of the new video.
        real_time: for cameras: repeat frames so that the video is as long as the time that has passed.
    """

    def __init__(self, path: str | Path, fps: float, *, real_time: bool = False) -> None:
        self.path, self.fps, self.real_time = Path(path), fps, real_time
        self._partial = self.path.with_suffix(f".partial{self.path.suffix}")
        self._writer: cv2.VideoWriter | None = None
        self._traces: sv.TraceAnnotator | None = None
        self._size = (0, 0)  # width, height
        self._written = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> "DrawnVideo":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        keep = kind is None or issubclass(kind, KeyboardInterrupt)
        try:
            with self._pool:
                while self._pending and keep:
                    self._pending.popleft().result()
                self._pool.shutdown(cancel_futures=True)
        except BaseException:
            keep = False
            raise
        finally:
            if self._writer is not None:
                self._writer.release()
                if keep:
                    self._partial.replace(self.path)
                else:
                    self._partial.unlink(missing_ok=True)

    def add(self, frame: Frame) -> None:
        """Draw a frame and append it, in the background; waits while too many are pending."""
        self._pending.append(self._pool.submit(self._write, frame))
        if len(self._pending) > MOST_PENDING:
            self._pending.popleft().result()

    def _write(self, frame: Frame) -> None:
        image = draw_frame(frame, self._traces_for(frame))
        writer = self._writer or self._open(image)
        if (image.shape[1], image.shape[0]) != self._size:  # odd sides, or a stream that has changed its size
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        wanted = self._written + 1
        if self.real_time:
            wanted = max(wanted, round(frame.time * self.fps) + 1)
        for _ in range(wanted - self._written):
            writer.write(image)
        self._written = wanted

    def _open(self, image: np.ndarray) -> cv2.VideoWriter:
        height, width = (side - side % 2 for side in image.shape[:2])  # codecs want even sides
        self._size = (width, height)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        writer = cv2.VideoWriter(str(self._partial), cv2.VideoWriter.fourcc(*"mp4v"), self.fps, self._size)
        if not writer.isOpened():
            raise OSError(f"{self.path}: the video cannot be written here; is there room and permission?")
        self._writer = writer
        return writer

    def _traces_for(self, frame: Frame) -> sv.TraceAnnotator | None:
        if frame.detections.tracker_id is None:
            return None
        if self._traces is None:
            colors = sv.ColorPalette([class_color(label) for label in range(256)])
            length, thickness = max(2, round(TRACE_SECONDS * self.fps)), max(2, round(max(frame.image.shape) / 420))
            self._traces = sv.TraceAnnotator(colors, trace_length=length, thickness=thickness, color_lookup=sv.ColorLookup.CLASS)
        return self._traces


def draw_frame(frame: Frame, traces: sv.TraceAnnotator | None = None) -> np.ndarray:
    """Boxes with names (and numbers such as `car 3`, where they are tracked), and traces where the objects came from.

    Args:
        frame: with its detections.
        traces: keeps the earlier places; None draws none.

    Returns:
        `[H, W, 3]` uint8 RGB.
    """
    image, found = frame.image, frame.detections
    factor = max(1, -(-MIN_SIDE // max(image.shape[:2])))  # small frames are enlarged, so that names can be read
    if factor > 1:
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        found = replace(found, xyxy=found.xyxy * factor)
    if traces is not None:
        bgr: np.ndarray = image[:, :, ::-1].copy()  # as supervision wants it
        image = traces.annotate(bgr, found)[:, :, ::-1]
    if found.tracker_id is not None and len(found):
        names = [f"{name} {number}" for name, number in zip(found.data["class_name"], found.tracker_id, strict=True)]
        found = replace(found, data={**found.data, "class_name": np.array(names, dtype=str)})
    return draw_detections(image, found, min_side=0)
