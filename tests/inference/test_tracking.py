import numpy as np
import pytest
import supervision as sv

from deformable_detr.inference.tracking import BoxMotion, Tracker


def found(*entries):
    """Detections of (left, top, right, bottom, score, class)."""
    table = np.array(entries, dtype=float).reshape(-1, 6)
    return sv.Detections(xyxy=table[:, :4], confidence=table[:, 4], class_id=table[:, 5].astype(int))


def numbers(tracked: sv.Detections) -> list[int]:
    assert tracked.tracker_id is not None
    return tracked.tracker_id.tolist()


def box_at(x, y, side=20.0, score=0.9, label=0):
    return (x - side / 2, y - side / 2, x + side / 2, y + side / 2, score, label)


def test_the_filter_is_the_textbook_one():
    """Against the eight-dimensional filter written with whole matrices."""
    rng = np.random.default_rng(0)
    boxes = np.array([[10.0, 20, 50, 60]])
    motion = BoxMotion(boxes)
    x = np.array([30.0, 40, 40, 40, 0, 0, 0, 0])
    P = np.diag([(2 / 20 * 40) ** 2] * 4 + [(10 / 160 * 40) ** 2] * 4)
    F = np.eye(8) + np.eye(8, k=4)
    H = np.eye(4, 8)
    for step in range(6):
        side = (F @ x)[2:4].mean()
        x, P = F @ x, F @ P @ F.T + np.diag([(side / 20) ** 2] * 4 + [(side / 160) ** 2] * 4)
        motion.predict(lost=np.array([False]))
        z = np.array([30.0 + 3 * step, 40, 40 + step, 40]) + rng.normal(0, 1, 4)
        S = H @ P @ H.T + np.eye(4) * (x[2:4].mean() / 20) ** 2
        K = P @ H.T @ np.linalg.inv(S)
        x, P = x + K @ (z - H @ x), (np.eye(8) - K @ H) @ P
        motion.correct(np.array([0]), np.array([[z[0] - z[2] / 2, z[1] - z[3] / 2, z[0] + z[2] / 2, z[1] + z[3] / 2]]))
        np.testing.assert_allclose(motion.state[0].T.ravel(), x, rtol=1e-9)
        np.testing.assert_allclose(motion.covariance[0, :, 0, 0], np.diag(P)[:4], rtol=1e-9)


def test_identities_stay_while_objects_cross():
    """Two of a class pass each other in opposite directions, a third one of another class moves with the first."""
    tracker = Tracker()
    rng = np.random.default_rng(1)
    names = {}
    for frame in range(60):
        places = [(20 + 4 * frame, 100), (260 - 4 * frame, 106), (20 + 4 * frame, 104)]
        order = rng.permutation(3)
        entries = [box_at(*(np.array(places[i]) + rng.normal(0, 0.5, 2)), label=int(i == 2)) for i in order]
        update = tracker.update(found(*entries))
        assert len(update) == 3
        for i, number in zip(order, numbers(update), strict=True):
            names.setdefault(int(i), set()).add(number)
    assert sorted(len(given) for given in names.values()) == [1, 1, 1]
    assert set.union(*names.values()) == {1, 2, 3}


def test_an_object_that_is_hidden_comes_back_with_its_number():
    tracker = Tracker(lost_frames=10)
    seen = []
    for frame in range(30):
        visible = not 12 <= frame < 18
        update = tracker.update(found(box_at(20 + 5 * frame, 50)) if visible else found())
        seen.append(numbers(update))
    assert seen == [[1]] * 12 + [[]] * 6 + [[1]] * 12


def test_an_object_that_is_away_too_long_is_a_new_one():
    tracker = Tracker(lost_frames=3)
    tracker.update(found(box_at(50, 50)))
    for _ in range(4):
        tracker.update(found())
    assert numbers(tracker.update(found(box_at(50, 50)))) == [2]


def test_doubtful_detections_continue_tracks_and_begin_none():
    tracker = Tracker(0.5)
    tracker.update(found(box_at(50, 50)))
    update = tracker.update(found(box_at(51, 50, score=0.2), box_at(200, 50, score=0.4), box_at(50, 52, score=0.05)))
    assert numbers(update) == [1]
    assert update.confidence is not None
    assert update.confidence.tolist() == [0.2]
    assert numbers(tracker.update(found())) == []
    assert len(tracker.update(found(box_at(51, 50, score=0.3)))) == 0  # a lost one needs a sure detection
    assert numbers(tracker.update(found(box_at(51, 50, score=0.6)))) == [1]


def test_an_object_that_is_found_twice_has_one_track():
    tracker = Tracker()
    tracker.update(found(box_at(50, 50)))
    assert numbers(tracker.update(found(box_at(50, 50), box_at(50.5, 50, score=0.8)))) == [1]
    assert numbers(tracker.update(found(box_at(50, 50), box_at(56, 50, score=0.8)))) == [1, 2]


def test_a_box_too_far_away_takes_no_other_box_from_a_track():
    """Squares of 100 moved by s overlap by (100 - s) / (100 + s): 0.6 for 25, 0.5 for 33, and 0.15 for 74, which is too little."""
    tracker = Tracker(0.5, min_iou=0.2)
    assert numbers(tracker.update(found(box_at(0, 0, 100), box_at(58, 0, 100)))) == [1, 2]
    assert numbers(tracker.update(found(box_at(25, 0, 100), box_at(-74, 0, 100)))) == [1, 3]


def test_another_class_is_another_object():
    tracker = Tracker()
    tracker.update(found(box_at(50, 50, label=0)))
    assert numbers(tracker.update(found(box_at(50, 50, label=1)))) == [2]


def test_thresholds_per_class_without_classes():
    """One class then, whose threshold is the first."""
    boxes = sv.Detections(xyxy=np.array([[0.0, 0, 9, 9], [20, 20, 29, 29]]), confidence=np.array([0.4, 0.9]))
    assert numbers(Tracker([0.5, 0.95]).update(boxes)) == [1]
    with pytest.raises(ValueError, match="class 2 has no threshold: there are 2, one per class"):
        Tracker([0.5, 0.95]).update(found(box_at(50, 50, label=2)))


def test_values_out_of_range():
    with pytest.raises(ValueError, match="threshold"):
        Tracker(2)
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match="lost_frames must be at least 0"):
            Tracker(lost_frames=wrong)  # type: ignore[arg-type]
    for wrong in ({"min_iou": 0}, {"min_iou_doubtful": float("nan")}):
        with pytest.raises(ValueError, match=r"min_iou and min_iou_doubtful must lie in \(0, 1\]"):
            Tracker(**wrong)  # type: ignore[arg-type]
