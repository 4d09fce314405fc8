import json
import signal

import cv2
import numpy as np
import pytest
import torch

from deformable_detr.categories import Categories
from deformable_detr.checkpoints import save_weights
from deformable_detr.cli import predict_videos
from deformable_detr.cli.__main__ import main
from deformable_detr.cli.predict_videos import FrameRecords, output_names
from deformable_detr.config import Metadata
from deformable_detr.detector import Detector
from deformable_detr.model import build_model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = build_model("tiny", num_classes=2)
    metadata = Metadata(model.metadata.model, Categories(("cat", "dog"), (7, 3)), eval_short_side=48, max_long_side=64)
    return str(save_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors", model, metadata=metadata))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "my clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12.0, (64, 48))
    generator = np.random.default_rng(0)
    for _ in range(10):
        writer.write(generator.integers(0, 255, (48, 64, 3), dtype=np.uint8))
    writer.release()
    return path


def count_frames(path):
    capture = cv2.VideoCapture(str(path))
    count = 0
    while capture.grab():
        count += 1
    capture.release()
    return count


def test_video_and_json(weights, clip, tmp_path, capsys):
    arguments = [str(clip), "--threshold", "0", "--top_k", "3", "--every", "2", "--batch_size", "2", "--output", str(tmp_path)]
    assert main(["predict", weights, *arguments, "--precision", "fp32"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my-clip.json", "my-clip.mp4"]
    assert count_frames(tmp_path / "my-clip.mp4") == 5
    record = json.loads((tmp_path / "my-clip.json").read_text())
    assert record["info"] == {"video": str(clip), "fps": 12.0, "width": 64, "height": 48}
    assert record["categories"] == [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    assert [(entry["frame"], entry["time"]) for entry in record["frames"]] == [(i, round(i / 12, 4)) for i in range(0, 10, 2)]
    capture = cv2.VideoCapture(str(clip))
    image = capture.read()[1][..., ::-1]
    capture.release()
    found = Detector.load(weights, device="cpu").predict(np.ascontiguousarray(image), 0.0, top_k=3)
    first = record["frames"][0]["detections"]
    assert found.confidence is not None
    assert [entry["score"] for entry in first] == pytest.approx(found.confidence.tolist(), abs=1e-4)
    left, top, right, bottom = found.xyxy[0].tolist()
    assert first[0]["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=0.1)
    assert "5 frames, found:" in capsys.readouterr().out


def test_tracks_without_a_video(weights, clip, tmp_path):
    arguments = [str(clip), "--threshold", "0.01", "--track", "--no-draw", "--json", str(tmp_path / "a.json")]
    assert main(["predict", weights, *arguments]) == 0
    record = json.loads((tmp_path / "a.json").read_text())
    assert len(record["frames"]) == 10
    assert all(entry["track_id"] >= 1 for frame in record["frames"] for entry in frame["detections"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (OSError("no room"), 2)])
def test_stopped_in_the_middle(weights, clip, tmp_path, monkeypatch, capsys, error, status):
    add = FrameRecords.add

    def interrupted(self, frame):
        if frame.index == 4:
            raise error
        add(self, frame)

    monkeypatch.setattr(predict_videos.FrameRecords, "add", interrupted)
    assert main(["predict", weights, str(clip), "--output", str(tmp_path)]) == status
    if status == 2:
        assert list(tmp_path.iterdir()) == []
        return
    assert "stopped: after 4 frames; they are kept: " in capsys.readouterr().err
    assert len(json.loads((tmp_path / "my-clip.json").read_text())["frames"]) == 4
    assert count_frames(tmp_path / "my-clip.mp4") == 4


def test_an_error_of_the_model_keeps_what_was_done(weights, clip, tmp_path, monkeypatch, capsys):
    detect = Detector._detect
    calls = []

    def failing(self, *arguments, **settings):
        calls.append(0)
        if len(calls) == 6:
            raise ValueError("the model has had enough")
        return detect(self, *arguments, **settings)

    monkeypatch.setattr(Detector, "_detect", failing)
    assert main(["predict", weights, str(clip), "--output", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert "the model has had enough" in printed.err
    assert "5 frames, found: " in printed.out
    assert len(json.loads((tmp_path / "my-clip.json").read_text())["frames"]) == 5
    assert count_frames(tmp_path / "my-clip.mp4") == 5


def test_sigterm_completes_the_files(weights, clip, tmp_path, monkeypatch, capsys):
    add = FrameRecords.add

    def terminated(self, frame):
        add(self, frame)
        if frame.index == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(predict_videos.FrameRecords, "add", terminated)
    assert main(["predict", weights, str(clip), "--no-draw", "--output", str(tmp_path)]) == 130
    assert len(json.loads((tmp_path / "my-clip.json").read_text())["frames"]) == 4
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.mp4"], "no such video: none.mp4"),
        (["{clip}", "a.jpg"], "images and videos cannot go together; leave out a.jpg"),
        (["{clip}", "{clip}", "--json", "x.json"], "--json names one file"),
        (["{clip}", "--every", "0"], "every must be at least 1"),
        (["20261127180000"], "20261127180000: there is no such camera"),
    ],
)
def test_mistakes_are_named(weights, clip, arguments, message, tmp_path, capsys):
    arguments = [argument.format(clip=clip) for argument in arguments]
    assert main(["predict", weights, *arguments, "--output", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_the_drawing_must_not_replace_the_video(weights, tmp_path, capsys):
    (tmp_path / "a.mp4").write_text("precious")
    assert main(["predict", weights, str(tmp_path / "a.mp4"), "--output", str(tmp_path)]) == 2
    assert "a.mp4; choose another --output" in capsys.readouterr().err
    assert (tmp_path / "a.mp4").read_text() == "precious"


def test_without_a_drawing_nothing_is_replaced(weights, clip, tmp_path):
    video = tmp_path / "clip.mp4"
    video.write_bytes(clip.read_bytes())
    assert main(["predict", weights, str(video), "--no-draw", "--output", str(tmp_path)]) == 0
    assert video.read_bytes() == clip.read_bytes()
    assert len(json.loads((tmp_path / "clip.json").read_text())["frames"]) == 10


def test_names():
    sources = ["a/x.mp4", "b/X.avi", "0", "rtsp://host/live.sdp?user=1", "https://host/"]
    assert output_names(sources) == ["x", "X-2", "camera-0", "live", "host"]
