import av
import cv2
import numpy as np
import pytest
import supervision as sv

from deformable_detr.inference.video import Frame
from deformable_detr.visualize.drawing.video import DrawnVideo, draw_frame


def frame(index, number=None, size=(64, 97)):
    found = sv.Detections(
        xyxy=np.array([[20.0, 10, 50, 40]]) + index,
        confidence=np.array([0.9]),
        class_id=np.array([0]),
        tracker_id=None if number is None else np.array([number]),
        data={"class_name": np.array(["cell"])},
    )
    return Frame(index, index / 10, np.full((*size, 3), 30 + index, dtype=np.uint8), found)


def read(path):
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (item := capture.read())[0]:
        frames.append(item[1])
    fps = capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    return frames, fps


def test_every_frame_is_written_in_order(tmp_path):
    path = tmp_path / "new" / "a.mp4"
    with DrawnVideo(path, 10.0) as drawn:
        for index in range(25):
            drawn.add(frame(index))
        assert not path.exists()
    frames, fps = read(path)
    assert (len(frames), fps) == (25, 10.0)
    assert frames[0].shape == (320, 484, 3)  # enlarged five times; even sides
    levels = [np.median(image) for image in frames]
    assert levels == pytest.approx([30 + index for index in range(25)], abs=5)  # codecs are not exact
    assert np.diff(levels).mean() == pytest.approx(1, abs=0.1)
    assert [item.name for item in path.parent.iterdir()] == ["a.mp4"]


def test_an_interruption_keeps_the_video_and_an_error_does_not(tmp_path):
    for error, kept in ((KeyboardInterrupt, True), (RuntimeError, False)):
        path = tmp_path / f"{error.__name__}.mp4"
        with pytest.raises(error), DrawnVideo(path, 10.0) as drawn:
            for index in range(12):
                drawn.add(frame(index))
            raise error
        assert path.exists() == kept
    assert len(read(tmp_path / "KeyboardInterrupt.mp4")[0]) == 12
    assert len(list(tmp_path.iterdir())) == 1


def test_frames_keep_their_own_times(tmp_path):
    """As of a camera, or of a video with a variable frame rate."""
    path = tmp_path / "a.mp4"
    with DrawnVideo(path, 20.0) as drawn:
        for index in (0, 3, 4, 10, 10):
            drawn.add(frame(index))
    with av.open(str(path)) as container:
        times = [decoded.time for decoded in container.decode(video=0)]
    assert times == pytest.approx([0, 0.3, 0.4, 1.0, 1.0], abs=1e-4)


def test_browsers_can_play_it(tmp_path):
    """H.264 in 8 bits and 4:2:0, its colours named, the index before the frames."""
    path = tmp_path / "a.mp4"
    colour = np.array([200, 40, 60], dtype=np.uint8)
    with DrawnVideo(path, 10.0) as drawn:
        for index in range(3):
            drawn.add(Frame(index, index / 10, np.broadcast_to(colour, (480, 480, 3)), sv.Detections.empty()))
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.colorspace) == ("h264", "yuv420p", 1)
        decoded = next(container.decode(video=0))
    assert np.abs(decoded.to_ndarray(format="rgb24").astype(int) - colour).max() <= 3


def test_traces_have_the_colour_of_their_class():
    traces = sv.TraceAnnotator(sv.ColorPalette([sv.Color(250, 20, 30)]), trace_length=20, thickness=6)
    images = [draw_frame(frame(index, number=4, size=(480, 480)), traces) for index in range(0, 12, 2)]
    trace = images[-1][28, 38]  # between the centres (35, 25) and (45, 35)
    assert np.abs(trace.astype(int) - [250, 20, 30]).max() < 40


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "a").write_text("a file")
    with pytest.raises(OSError), DrawnVideo(tmp_path / "a" / "b.mp4", 10.0) as drawn:
        drawn.add(frame(0))
