"""Frames with boxes, numbers and traces, written as a video by a thread while the model goes on."""

from contextlib import ExitStack, suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import cv2
import numpy as np
import supervision as sv
from av.codec import codecs_available

from deformable_detr.files import atomic_file
from deformable_detr.inference.video import Frame
from deformable_detr.pipeline import OrderedPool
from deformable_detr.visualize.colors import class_color
from deformable_detr.visualize.drawing.detections import draw_detections

ENCODERS = {"libx264": {"preset": "veryfast", "crf": "23"}, "libopenh264": {}, "mpeg4": {"qscale": "4"}}
"""H.264, which browsers play; where FFmpeg was built without it, MPEG-4, which most players show."""

TICK = Fraction(1, 90000)
"""Unit of time stamps in seconds, as usual in video."""

BT709 = 1
MOST_PENDING = 8
TRACE_SECONDS = 2.0
MIN_SIDE = 480  # pixels


class DrawnVideo:
    """Draws frames and writes them to an MP4 file, each with its own time; a context manager.

    The file gets its name when it is complete. An interruption (Ctrl-C) completes it with the frames so far; another error
    removes it.

    Args:
        path: the file, `.mp4`; one of that name is replaced.
        fps: frames per second on average, of those that will be added.
    """

    def __init__(self, path: str | Path, fps: float) -> None:
        self.path, self.fps = Path(path), fps
        self._open = ExitStack()
        self._pool = OrderedPool(1, MOST_PENDING, name="encode")
        self._container: Any = None  # of PyAV, whose types do not tell reading from writing
        self._stream: Any = None
        self._traces: sv.TraceAnnotator | None = None
        self._last = -1  # time stamp

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        keep = kind is None or issubclass(kind, KeyboardInterrupt)
        outcome: Any = (None, None, None) if keep else (kind, error, trace)
        try:
            if keep:
                self._pool.finish()
                if self._container is not None:
                    self._encode(None)
                    self._container.close()
        except BaseException as failure:
            outcome = (type(failure), failure, failure.__traceback__)
            raise
        finally:
            self._pool.close()
            if self._container is not None:
                with suppress(OSError, ValueError):  # what an unfinished file lacks does not matter
                    self._container.close()
            self._open.__exit__(*outcome)

    def add(self, frame: Frame) -> None:
        """Draw a frame and append it, in the background; waits while too many are pending."""
        self._pool.submit(self._write, frame)

    def _write(self, frame: Frame) -> None:
        image = draw_frame(frame, self._traces_for(frame))
        if self._container is None:
            self._begin(image)
        size = (self._stream.width, self._stream.height)
        if (image.shape[1], image.shape[0]) != size:  # odd sides, or a stream that has changed its size
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        encoded = av.VideoFrame.from_ndarray(image.astype(np.uint8, copy=False), format="rgb24").reformat(
            format="yuv420p", dst_colorspace="itu709"
        )
        self._last = max(self._last + 1, round(frame.time / TICK))
        encoded.pts, encoded.time_base, encoded.duration = self._last, TICK, round(1 / self.fps / TICK)
        self._encode(encoded)

    def _begin(self, image: np.ndarray) -> None:
        path = self._open.enter_context(atomic_file(self.path))
        self._container = av.open(str(path), "w", options={"movflags": "+faststart"})
        encoder = next(name for name in ENCODERS if name in codecs_available)
        self._stream = self._container.add_stream(
            encoder, rate=Fraction(self.fps).limit_denominator(1001), options=ENCODERS[encoder]
        )
        self._stream.height, self._stream.width = (side - side % 2 for side in image.shape[:2])  # codecs want even sides
        self._stream.pix_fmt, self._stream.time_base = "yuv420p", TICK
        context = self._stream.codec_context
        context.time_base, context.thread_count = TICK, 1  # the model has the other cores
        context.colorspace = context.color_primaries = context.color_trc = BT709

    def _encode(self, encoded: av.VideoFrame | None) -> None:
        """Write a frame; None: what is still inside the encoder."""
        for packet in self._stream.encode(encoded):
            self._container.mux(packet)

    def _traces_for(self, frame: Frame) -> sv.TraceAnnotator | None:
        if frame.detections.tracker_id is None:
            return None
        if self._traces is None:
            colors = sv.ColorPalette([class_color(label) for label in range(256)])
            length, thickness = max(2, round(TRACE_SECONDS * self.fps)), max(2, round(max(frame.image.shape) / 420))
            self._traces = sv.TraceAnnotator(colors, trace_length=length, thickness=thickness, color_lookup=sv.ColorLookup.CLASS)
        return self._traces


def draw_frame(frame: Frame, traces: sv.TraceAnnotator | None = None) -> np.ndarray:
    """Draw boxes with names, and where objects are tracked with numbers (`car 3`) and the traces of their paths.

    Args:
        frame: with its detections.
        traces: holds the earlier positions; None draws no traces.

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
