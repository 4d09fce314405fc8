"""Where the frames of a video come from: a file or a stream by FFmpeg (PyAV), a camera by OpenCV."""

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction

import av.codec
import av.logging
import cv2
import numpy as np
from av.error import EOFError as EndOfVideo
from av.error import FFmpegError

from deformable_detr.inference.sources import is_stream

logger = logging.getLogger(__name__)

Moments = Iterator[tuple[float | None, Callable[[], np.ndarray | None]]]
"""Of each frame its own time in seconds, if it has one, and a function that gives its pixels `[H, W, 3]` uint8 RGB, upright."""

DEFAULT_FPS = 25.0
"""For cameras and streams that do not say how fast they are."""

MISSING_SHARE = 0.02
"""A video that ends with more of its frames missing than this is reported; headers are often off by a frame or two."""

STREAM_SECONDS = 30.0
"""A network stream that sends nothing for so long has ended."""

CODECS = {"av01": "AV1", "hvc1": "HEVC (H.265)", "hev1": "HEVC (H.265)", "avc1": "H.264", "vp09": "VP9", "vp08": "VP8"}
"""Names for the tags of files."""


class FileReader:
    """A file or a network stream, by FFmpeg (PyAV): with the time stamps of its container, turned as it says.

    Raises:
        ValueError: it cannot be opened, or holds no video that can be decoded.
    """

    def __init__(self, name: str) -> None:
        address = is_stream(name)
        options = {"rtsp_transport": "tcp"} if name.lower().startswith("rtsp:") else {}
        timeout = STREAM_SECONDS if address else None
        try:
            self._container = av.open(_url(name), options=options, timeout=timeout)
        except (FFmpegError, OSError) as error:
            fault = "this address cannot be opened, or holds no video"
            if not address:
                fault = "not a video that can be read; damaged, cut off, or in an unknown format"
            raise ValueError(f"{name}: {fault} ({_reason(error)})") from None
        video = self._container.streams.video
        if not video or video[0].codec_context is None:
            self._container.close()
            what = (
                f"its codec cannot be decoded here: {_codec_name(name)}; convert it to H.264 first"
                if video
                else "no video in it: is it sound alone, or cut off?"
            )
            raise ValueError(f"{name}: {what}")
        self._stream = video[0]
        length, unit = self._container.duration, Fraction(1, av.time_base)
        if self._stream.duration and self._stream.time_base:
            length, unit = self._stream.duration, self._stream.time_base
        self.seconds = None if length is None else float(length * unit)
        self.live = address and (name.lower().startswith(("rtsp:", "rtmp:")) or self.seconds is None)
        rate = float(self._stream.average_rate or self._stream.guessed_rate or 0)
        self.fps = rate if 0 < rate < 1000 else DEFAULT_FPS
        self.num_frames = None if self.live else self._stream.frames or round((self.seconds or 0) * self.fps) or None
        self._counted = self._stream.frames > 0
        self._name = name
        # Frames of several threads come out later, which a camera's must not. A quarter of the cores: the model has the others.
        self._stream.codec_context.thread_count = 1 if self.live else max(1, min(8, (os.cpu_count() or 1) // 4))
        self._stream.codec_context.thread_type = "AUTO"

    def moments(self) -> Moments:
        """The frames; a warning at the end says how many are damaged."""
        count, damaged, last = 0, 0, 0.0
        for decoded in self._decoded():
            damaged += decoded is None or decoded.is_corrupt
            if decoded is None:
                continue
            count, last = count + 1, decoded.time if decoded.time is not None else last
            yield decoded.time, lambda frame=decoded: _pixels(frame)
        if damaged and count:
            logger.warning("%s: %d frames are damaged; what could not be decoded was left out", self._name, damaged)
        self._check_length(count, last)

    def close(self) -> None:
        """Free what is open."""
        self._container.close()

    def _decoded(self) -> Iterator[av.VideoFrame | None]:
        """The frames; None for each piece that cannot be decoded."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (FFmpegError, OSError) as error:
                logger.warning("%s cannot be read any further: %s", self._name, _reason(error))
                packet = None
            try:
                yield from self._stream.decode(packet)  # None: what is still inside the decoder
            except EndOfVideo:
                return
            except FFmpegError:
                yield None
            if packet is None:
                return

    def _check_length(self, count: int, last: float) -> None:
        """Warn of a file that ends early; durations hold only where there is no sound, which may be longer."""
        if not count or self.live:
            return
        if self._counted and self.num_frames and count < self.num_frames * (1 - MISSING_SHARE) - 1:
            logger.warning("%s ends after %d of %d frames; the file may be cut off", self._name, count, self.num_frames)
        elif not self._counted and self.seconds and len(self._container.streams) == 1 and last < 0.98 * self.seconds - 1:
            logger.warning("%s ends after %.1f of %.1f s; the file may be cut off", self._name, last, self.seconds)


class CameraReader:
    """A camera of this machine, by OpenCV.

    Raises:
        ValueError: there is no such camera.
    """

    def __init__(self, number: int) -> None:
        missing = ValueError(f"{number}: there is no such camera, or another program uses it")
        if number >= 2**31:  # OpenCV's largest
            raise missing
        self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            self._capture.release()
            raise missing
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps: float = rate if 0 < rate < 1000 else DEFAULT_FPS
        self.num_frames: int | None = None
        self.live = True

    def moments(self) -> Moments:
        """The frames until the camera stops."""
        while self._capture.grab():
            yield None, self._pixels

    def close(self) -> None:
        """Free the camera."""
        self._capture.release()

    def _pixels(self) -> np.ndarray | None:
        decoded, image = self._capture.retrieve()
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if decoded else None


def _url(name: str) -> str:
    """As FFmpeg takes it: without the prefix, `12:30.mp4` would be an address."""
    return name if is_stream(name) else f"file:{name}"


def _pixels(frame: av.VideoFrame) -> np.ndarray:
    """`[H, W, 3]` uint8 RGB, upright: the container may say that the camera was turned."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))


def _codec_name(name: str) -> str:
    """The codec that FFmpeg has no decoder for, as it names it in its log, the only place."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.WARNING)
    try:
        with av.logging.Capture() as lines, suppress(FFmpegError):
            av.open(_url(name)).close()
    finally:
        av.logging.set_level(level)
    found = re.search(r"Video: (\w+) \((\w+)", " ".join(line for _, _, line in lines))
    if found is None:
        return "unknown"
    codec, tag = found.groups()
    return CODECS.get(tag, tag if codec == "none" else codec.upper())


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)
