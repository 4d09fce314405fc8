import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
import pytest
import supervision as sv
import torch

from deformable_detr.inference.predictor import Predictor, Result
from deformable_detr.inference.sources import is_video
from deformable_detr.inference.tracking import Tracker
from deformable_detr.inference.video import Video, iterate_video, read_ahead

SIZE = (96, 64)  # width, height


def write_video(path, images, fps=10.0, codec="MJPG"):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, SIZE)
    for image in images:
        writer.write(image[..., ::-1].copy())
    writer.release()
    return path


def moving_objects(count):
    """Three bright squares with known identities: two of a class pass each other, the third one waits. Frame → centres."""
    return [[(12 + 2 * t, 14), (84 - 2 * t, 34), (48, 54)] for t in range(count)]


def image_of(places):
    image = np.zeros((SIZE[1], SIZE[0], 3), dtype=np.uint8)
    for (x, y), colour in zip(places, [(255, 0, 0), (255, 0, 0), (0, 255, 0)], strict=True):
        image[y - 5 : y + 5, x - 5 : x + 5] = colour
    return image


class ColourDetector:
    """Red squares are class 0, green ones class 1; finds them by their pixels, and counts its calls."""

    def __init__(self):
        self.options = []

    def iterate(self, source, threshold, **options):
        self.options.append({"threshold": threshold, **options})
        for number, frame in enumerate(source):
            image = frame.read().permute(1, 2, 0).numpy()
            boxes, labels = [], []
            for label, channel in enumerate((0, 1)):
                bright = (image[..., channel] > 128).astype(np.uint8)
                _, _, stats, _ = cv2.connectedComponentsWithStats(bright)
                boxes += [[x, y, x + w, y + h] for x, y, w, h, area in stats[1:] if area > 20]
                labels += [label] * (len(boxes) - len(labels))
            xyxy = np.array(boxes, dtype=np.float32).reshape(-1, 4)
            found = sv.Detections(
                xyxy=xyxy,
                confidence=np.full(len(xyxy), 0.9),
                class_id=np.array(labels, dtype=int),
                data={"class_name": np.array(["red", "green"])[labels], "category_id": np.array([7, 3])[labels]},
            )
            yield Result(f"image {number}", torch.from_numpy(image).permute(2, 0, 1), found)


def iterate(detector: ColourDetector, video: Video | Path, threshold: float | None = None, **options: Any):
    """`iterate_video` with the stand-in for a predictor."""
    return iterate_video(cast(Predictor, detector), video, threshold, **options)


@pytest.fixture
def clip(tmp_path):
    return write_video(tmp_path / "clip.avi", [image_of(places) for places in moving_objects(36)])


def test_tracks_are_the_true_identities(clip):
    """Counted as for MOTA: no miss, no false positive, no switch."""
    misses = false_alarms = switches = 0
    number_of = {}
    for frame, places in zip(iterate(ColourDetector(), clip, tracker=Tracker()), moving_objects(36), strict=True):
        numbers = frame.detections.tracker_id
        assert numbers is not None
        centres = (frame.detections.xyxy[:, :2] + frame.detections.xyxy[:, 2:]) / 2
        distances = np.linalg.norm(centres[:, None] - np.array(places)[None], axis=2)  # [found, true]
        misses += int((distances.min(axis=0) > 3).sum())
        false_alarms += int((distances.min(axis=1) > 3).sum())
        for true, found in enumerate(distances.argmin(axis=0)):
            number = int(numbers[found])
            switches += number_of.setdefault(true, number) != number
    assert (misses, false_alarms, switches) == (0, 0, 0)
    assert sorted(number_of.values()) == [1, 2, 3]


def test_frames_carry_index_time_and_pixels(clip):
    detector = ColourDetector()
    frames = list(iterate(detector, clip, 0.4, every=5, batch_size=3))
    assert [frame.index for frame in frames] == list(range(0, 36, 5))
    assert [frame.time for frame in frames] == pytest.approx([0.5 * i for i in range(8)])
    expected = image_of(moving_objects(36)[10]).astype(int)
    assert np.abs(frames[2].image.astype(int) - expected).mean() < 4  # red is red; what is left is the codec's
    assert detector.options == [{"threshold": 0.4, "batch_size": 3}]
    assert frames[0].detections.tracker_id is None


def test_a_closed_video(clip):
    with Video(clip) as video:
        pass
    with pytest.raises(ValueError, match="this video has been closed; open it again"):
        next(iterate(ColourDetector(), video))


@pytest.mark.parametrize("every", [1.5, "2", True, 0, -1])
def test_every_is_a_whole_number_from_one(clip, every):
    with pytest.raises((TypeError, ValueError), match="every must be"):
        next(iterate(ColourDetector(), clip, every=every))


def test_a_tracker_gets_the_doubtful_detections_too(clip):
    detector = ColourDetector()
    list(iterate(detector, clip, 0.5, tracker=Tracker(0.5)))
    assert detector.options == [{"threshold": 0.1}]


def test_only_a_few_frames_are_in_memory(clip, monkeypatch):
    decoded = 0
    frames = Video.frames

    def counted(self, every):
        nonlocal decoded
        for item in frames(self, every):
            decoded += 1
            yield item

    monkeypatch.setattr(Video, "frames", counted)
    running = iterate(ColourDetector(), clip)
    for number in range(5):
        next(running)
        time.sleep(0.02)
        assert decoded <= number + 1 + 10
    running.close()
    assert threading.active_count() == 1 or all(thread.name != "decode" for thread in threading.enumerate())


def test_broken_videos(tmp_path, clip, caplog):
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(ValueError, match=r"text\.mp4: not a video that can be read"):
        Video(text)
    with pytest.raises(FileNotFoundError, match="no such video"):
        Video(tmp_path / "none.mp4")
    cut = tmp_path / "cut.avi"
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    frames = list(iterate(ColourDetector(), cut))
    assert 5 < len(frames) < 30
    assert f"cut.avi ends after {len(frames)} of 36 frames" in caplog.text
    with pytest.raises(ValueError, match="every must be at least 1"):
        next(iterate(ColourDetector(), clip, every=0))


def test_a_camera_gives_its_newest_frames(monkeypatch):
    """A camera that is much faster than the network; its frames hold their number."""

    class Camera:
        def __init__(self, number):
            assert number == 0
            self.number = 0

        def isOpened(self):
            return True

        def get(self, which):
            return {cv2.CAP_PROP_FPS: 30.0}.get(which, -1.0)

        def grab(self):
            time.sleep(0.002)
            self.number += 1
            return self.number <= 150

        def retrieve(self):
            return True, np.full((8, 8, 3), self.number, dtype=np.uint8)

        def release(self):
            pass

    class Slow(ColourDetector):
        def iterate(self, source, threshold, **options):
            for result in super().iterate(source, threshold):
                time.sleep(0.02)
                yield result

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    with Video("0") as video:
        assert (video.live, video.num_frames, video.fps) == (True, None, 30.0)
        assert next(video.frames())[:2] == (0, 0.0)
    with Video("0") as video:
        frames = list(iterate(Slow(), video))
    indices = [frame.index for frame in frames]
    assert indices == sorted(set(indices))
    assert len(indices) < 100
    assert [int(frame.image[0, 0, 0]) - 1 for frame in frames] == indices


def test_closing_waits_for_the_thread_that_reads(monkeypatch):
    """FFmpeg would end the whole process."""
    states = []

    class Camera:
        def __init__(self, number):
            self.busy, self.left = False, 50

        def isOpened(self):
            return True

        def get(self, which):
            return 30.0

        def grab(self):
            self.busy = True
            time.sleep(0.02)
            self.busy, self.left = False, self.left - 1
            return self.left > 0

        def retrieve(self):
            return True, np.zeros((8, 8, 3), dtype=np.uint8)

        def release(self):
            states.append(self.busy)

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    for _ in range(5):
        with Video("0") as video:
            ahead = read_ahead(video.frames())
            next(ahead)
        with pytest.raises(ValueError, match="this video has been closed"):
            list(ahead)
    assert states == [False] * 5


def test_errors_of_the_reading_thread_arrive():
    def items():
        yield 1
        raise ValueError("damaged")

    ahead = read_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="damaged"):
        next(ahead)
    assert list(read_ahead(iter(range(50)), size=2)) == list(range(50))


def test_what_is_a_video(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in ("0", "12", "a.MP4", "x/y.mkv", "rtsp://h/s", "https://h/v", "https://h/v.mp4?key=a.jpg"):
        assert is_video(source)
    (tmp_path / "12").mkdir()
    for source in ("12", "a.jpg", "folder", "*.png", "-1", "https://h/a.JPG?size=large"):
        assert not is_video(source)


UNEVEN = [0, 33, 66, 100, 2100, 2133, 2166, 6000]  # milliseconds


def encode(path, times, codec="libx264", rotation=None, key_frames="250"):
    """A video whose frames come at these times (milliseconds) and get brighter; the upper half is white."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options={"g": key_frames} if codec == "libx264" else {})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number, moment in enumerate(times):
            pixels = np.full((120, 160, 3), 2 * number, np.uint8)
            pixels[:60] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = moment, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read(path, every=1):
    with Video(path) as video:
        return list(video.frames(every))


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mjpeg")]
)
def test_frames_have_the_times_of_the_container(tmp_path, name, codec):
    if name == "a.avi":  # knows no times of its own
        frames = read(write_video(tmp_path / name, [image_of(places) for places in moving_objects(8)], fps=20.0))
        assert [seconds for _, seconds, _ in frames] == pytest.approx([number / 20 for number in range(8)])
        return
    path = encode(tmp_path / name, UNEVEN, codec)
    assert [seconds for _, seconds, _ in read(path)] == pytest.approx([t / 1000 for t in UNEVEN], abs=2e-3)
    assert [(index, round(seconds, 2)) for index, seconds, _ in read(path, every=3)] == [(0, 0.0), (3, 0.1), (6, 2.17)]


def test_time_goes_on_where_it_jumps_back(tmp_path):
    """A stream that is joined from two, as transport streams often are."""
    content = encode(tmp_path / "a.ts", range(0, 1000, 100)).read_bytes()
    (tmp_path / "joined.ts").write_bytes(2 * content)
    seconds = [seconds for _, seconds, _ in read(tmp_path / "joined.ts")]
    assert len(seconds) == 20
    assert (np.diff(seconds) > 0).all()
    assert seconds[:10] == pytest.approx([number / 10 for number in range(10)])


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_frames_are_upright(tmp_path, rotation):
    """The display matrix turns the image counter-clockwise; the upper half is white."""
    (_, _, image), *_ = read(encode(tmp_path / "a.mp4", [0, 100], rotation=rotation))
    expected = np.rot90(np.repeat([[255], [0]], (60, 60), axis=0).repeat(160, axis=1), rotation // 90)
    assert image.shape[:2] == expected.shape
    assert np.abs(image[..., 0].astype(int) - expected).mean() < 8


def test_names_that_look_like_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encode(tmp_path / "a.mp4", [0, 100]).rename("12:30 #1?.mp4")
    assert len(read("12:30 #1?.mp4")) == 2


def test_a_codec_that_cannot_be_decoded_is_named(tmp_path):
    content = encode(tmp_path / "a.mp4", [0, 100]).read_bytes()
    (tmp_path / "new.mp4").write_bytes(content.replace(b"avc1", b"zz99"))
    with pytest.raises(ValueError, match=r"new\.mp4: its codec cannot be decoded here: zz99; convert it to H\.264 first"):
        Video(tmp_path / "new.mp4")


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match="no video in it"):
        Video(tmp_path / "a.mp4")


def test_damaged_and_cut_files_are_used_as_far_as_they_go(tmp_path, caplog):
    content = bytearray(encode(tmp_path / "a.mkv", range(0, 6000, 100), key_frames="5").read_bytes())
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) * 2 // 3])
    seconds = [seconds for _, seconds, _ in read(tmp_path / "cut.mkv")]
    assert 10 < len(seconds) < 50
    assert f"cut.mkv ends after {seconds[-1]:.1f} of 5.9 s" in caplog.text
    generator = np.random.default_rng(0)
    for place in generator.integers(len(content) // 4, len(content) * 3 // 4, 200):
        content[place] = generator.integers(256)
    (tmp_path / "hurt.mkv").write_bytes(content)
    frames = read(tmp_path / "hurt.mkv")
    assert 0 < len(frames) <= 60
    assert "hurt.mkv: " in caplog.text and "frames are damaged" in caplog.text
