"""`deformable-detr predict` on videos, cameras and streams: a drawn video and JSON, frame by frame."""

import json
import math
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from deformable_detr.categories import Categories
from deformable_detr.cli.predict import PredictOptions, check_drawings, detection_records
from deformable_detr.cli.screen import progress, show
from deformable_detr.data.writing import free_name
from deformable_detr.files import atomic_file
from deformable_detr.inference import Predictor
from deformable_detr.inference.sources import is_video
from deformable_detr.inference.video import Frame, Video, iterate_video
from deformable_detr.schema import check_range
from deformable_detr.visualize.drawing.video import DrawnVideo


def predict_videos(options: PredictOptions) -> None:
    """Predict on all sources, one video after the other."""
    images = [source for source in options.source if not is_video(source)]
    if images:
        raise ValueError(f"images and videos cannot go together; leave out {', '.join(images)}, or call predict for it alone")
    check_range(options, "every", 1)
    if options.json is not None and len(options.source) > 1:
        raise ValueError("--json names one file, but there are several videos; leave it out: each video has its own")
    names = output_names(options.source)
    targets = [Path(options.output) / f"{name}.mp4" for name in names]
    if options.draw:
        check_drawings(list(zip(options.source, targets, strict=True)), Path(options.json) if options.json else None)
    detector = options.open()
    for source, target in zip(options.source, targets, strict=True):
        _predict_video(detector, source, target, options)


def output_names(sources: Sequence[str]) -> list[str]:
    """A name without suffix for what is written about each video; with a number where several would have the same."""
    names: list[str] = []
    taken: set[str] = set()
    for source in sources:
        name = f"camera-{source}" if source.isdecimal() else Path(re.sub(r"[?#].*", "", source)).stem
        name = re.sub(r"[^\w.-]+", "-", name).strip(".-") or "stream"
        names.append(Path(free_name(f"{name}.mp4", taken)).stem)
    return names


def _predict_video(detector: Predictor, source: str, target: Path, options: PredictOptions) -> None:
    """Predict on one video; what there is at an interruption is kept."""
    json_path = Path(options.json) if options.json else target.with_suffix(".json")
    with ExitStack() as stack:
        video = stack.enter_context(Video(source))
        fps = video.fps if video.live else video.fps / options.every
        records = stack.enter_context(FrameRecords(json_path, video, detector.categories))
        drawn = stack.enter_context(DrawnVideo(target, fps)) if options.draw else None
        frames = iterate_video(
            detector, video, options.threshold, every=options.every, tracker=options.track, **options.predict_settings()
        )
        bar = stack.enter_context(progress(Path(source).name or source, unit="frames"))
        total = math.ceil(video.num_frames / options.every) if video.num_frames else None
        stack.enter_context(closing(frames))
        stack.enter_context(_stopped_by_sigterm())
        broken: list[Exception] = []
        try:
            for frame in bar.track(_until_broken(frames, broken), total=total):
                records.add(frame)
                if drawn is not None:
                    drawn.add(frame)
        except KeyboardInterrupt:
            kept = f"; they are kept: {target if drawn else json_path}" if records.frames else ""
            raise KeyboardInterrupt(f"after {records.frames} frames{kept}") from None
    written = [f"video: {target}"] if options.draw else []
    if records.frames:
        show(f"{source}: {records.summary()}", *written, f"detections: {json_path}")
    if broken:
        raise broken[0]


def _until_broken(frames: Iterator[Frame], errors: list[Exception]) -> Iterator[Frame]:
    """The frames up to an error of the source or the model, which goes to `errors`: what is done until then is kept."""
    try:
        yield from frames
    except Exception as error:
        errors.append(error)


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end a video as Ctrl-C does. Only the main thread is asked for signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class FrameRecords:
    """Writes what is found as JSON while it is found, one line per frame; a context manager.

    The file gets its name when it is complete: at the end, or at an interruption with the frames so far.
    """

    def __init__(self, path: Path, video: Video, categories: Categories) -> None:
        self.frames = 0
        self._whole = atomic_file(path)
        self._names = dict(zip(categories.ids, categories.names, strict=True))
        self._head: dict[str, Any] = {
            "info": {"video": video.name, "fps": video.fps},
            "categories": [{"id": number, "name": name} for number, name in self._names.items()],
        }
        self._objects: Counter[str] = Counter()
        self._tracks: set[int] = set()
        self._tracked = False
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is None:
            return
        keep = kind is None or issubclass(kind, KeyboardInterrupt)
        with self._file as file:
            if keep:
                file.write("\n]}\n")
        self._whole.__exit__(*((None, None, None) if keep else (kind, error, trace)))

    def add(self, frame: Frame) -> None:
        """Write one frame."""
        if self._file is None:
            self._file = self._whole.__enter__().open("w", encoding="utf-8", errors="backslashreplace")
            height, width = frame.image.shape[:2]
            head = self._head | {"info": {**self._head["info"], "width": width, "height": height}}
            self._file.write(json.dumps(head, ensure_ascii=False)[:-1] + ', "frames": [\n')
        record = {"frame": frame.index, "time": round(frame.time, 4), "detections": self._detections(frame)}
        self._file.write((",\n" if self.frames else "") + json.dumps(record))
        self.frames += 1

    def summary(self) -> str:
        """What was found, in a line."""
        found = ", ".join(f"{name} {count}" for name, count in self._objects.most_common()) or "nothing"
        tracks = f"; {len(self._tracks)} different objects" if self._tracked else ""
        return f"{self.frames} frames, found: {found}{tracks}"

    def _detections(self, frame: Frame) -> list[dict[str, Any]]:
        found = frame.detections
        records = detection_records(found)
        self._objects.update(self._names[record["category_id"]] for record in records)
        if found.tracker_id is not None:
            self._tracked = True
            for record, number in zip(records, found.tracker_id.tolist(), strict=True):
                record["track_id"] = number
                self._tracks.add(number)
        return records
