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


def test_an_interruption_keeps_the_film_and_an_error_does_not(tmp_path):
    for error, kept in ((KeyboardInterrupt, True), (RuntimeError, False)):
        path = tmp_path / f"{error.__name__}.mp4"
        with pytest.raises(error), DrawnVideo(path, 10.0) as drawn:
            for index in range(12):
                drawn.add(frame(index))
            raise error
        assert path.exists() == kept
    assert len(read(tmp_path / "KeyboardInterrupt.mp4")[0]) == 12
    assert len(list(tmp_path.iterdir())) == 1


def test_a_camera_s_film_lasts_as_long_as_it_took(tmp_path):
    with DrawnVideo(tmp_path / "a.mp4", 20.0, real_time=True) as drawn:
        for index in (0, 3, 4, 10):  # up to one second
            drawn.add(frame(index))
    assert len(read(tmp_path / "a.mp4")[0]) == 21


def test_traces_have_the_colour_of_their_class():
    traces = sv.TraceAnnotator(sv.ColorPalette([sv.Color(250, 20, 30)]), trace_length=20, thickness=6)
    for index in range(0, 12, 2):
        image = draw_frame(frame(index, number=4, size=(480, 480)), traces)
    trace = image[28, 38]  # between the centres (35, 25) and (45, 35)
    assert np.abs(trace.astype(int) - [250, 20, 30]).max() < 40


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "a").write_text("a file")
    with pytest.raises(OSError), DrawnVideo(tmp_path / "a" / "b.mp4", 10.0) as drawn:
        drawn.add(frame(0))
