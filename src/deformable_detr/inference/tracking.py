"""Detections frame by frame → the same number for the same object: ByteTrack's association with a constant-velocity filter.

Zhang et al. 2022, "ByteTrack": confident detections are matched first, then those with low scores with the remaining tracks,
because a low-score box where an object is expected is more likely an occluded object than a false positive.

The gates are stricter where a box is weaker evidence. A confident detection continues a track even with little overlap, because the
predicted box can be off after a turn or a gap; only such a detection begins a track or ends a gap, because a track that begins with
a false positive is counted as an object. A low-score detection must overlap well, and only with a track seen in the last frame: the
predicted box of a lost track is uncertain, and a false positive near it would lead it astray.
"""

from collections.abc import Sequence

import numpy as np
import supervision as sv

LOWEST_SCORE = 0.1
"""Detections below this score are not even used to continue a track."""

DUPLICATE_IOU = 0.85
"""A detection whose IoU with a tracked one of its class is larger is a duplicate and begins no track."""

POSITION_NOISE, VELOCITY_NOISE = 1 / 20, 1 / 160
"""Deviations of a frame's measurement and of a frame's change of velocity, as shares of the box's mean side (as in ByteTrack)."""


class Tracker:
    """Gives `tracker_id` to the detections of successive frames.

    A track is continued by boxes of its own class only. Without a matching box it is kept and moves on with its velocity until it
    has been lost for `lost_frames`. Numbers begin with 1 and are not used again.

    Args:
        threshold: only detections with at least this score, in [0, 1], begin a track; or one score per class id.
        lost_frames: number of frames that a track waits for its object to appear again.
        min_iou: least IoU of a confident detection with the predicted box of a track.
        min_iou_doubtful: the same for detections with a score below `threshold`.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        threshold: float | Sequence[float] = 0.5,
        *,
        lost_frames: int = 30,
        min_iou: float = 0.2,
        min_iou_doubtful: float = 0.5,
    ) -> None:
        self.threshold, self.lost_frames = np.asarray(threshold, dtype=float), lost_frames
        if not ((self.threshold >= 0) & (self.threshold <= 1)).all():
            raise ValueError(f"threshold must lie in [0, 1], not {threshold}")
        if not (0 < min_iou <= 1 and 0 < min_iou_doubtful <= 1):  # at 0, boxes that do not touch would be one object
            raise ValueError(f"min_iou and min_iou_doubtful must lie in (0, 1], not {min_iou} and {min_iou_doubtful}")
        if not lost_frames >= 0:
            raise ValueError(f"lost_frames must be at least 0, not {lost_frames}")
        self.min_iou, self.min_iou_doubtful = min_iou, min_iou_doubtful
        self._motion = BoxMotion(np.zeros((0, 4)))
        self._ids, self._labels, self._unseen = np.zeros((3, 0), dtype=int)  # [T] each; frames since it was last seen
        self._next_id = 1

    @property
    def lowest_score(self) -> float:
        """Lowest score of detections that are used."""
        return min(LOWEST_SCORE, float(self.threshold.min()))

    def update(self, detections: sv.Detections) -> sv.Detections:
        """The detections of the next frame that belong to a track, with its number.

        Args:
            detections: boxes in pixels, with scores and class ids. Give also those below the threshold, see `lowest_score`.

        Returns:
            Some of them, in their order, with `tracker_id`.

        Raises:
            ValueError: a class without a threshold, where each has its own.
        """
        self._motion.predict(lost=self._unseen > 0)
        scores = detections.confidence if detections.confidence is not None else np.ones(len(detections))
        labels = _labels_of(detections)
        if self.threshold.ndim and labels.max(initial=0) >= len(self.threshold):
            raise ValueError(f"class {labels.max()} has no threshold: there are {len(self.threshold)}, one per class")
        sure = scores >= (self.threshold if self.threshold.ndim == 0 else self.threshold[labels])
        ids = np.zeros(len(detections), dtype=int)
        tracks = np.arange(len(self._ids))
        tracks = self._match(tracks, np.flatnonzero(sure), self.min_iou, detections, ids)
        tracks = tracks[self._unseen[tracks] == 0]  # lost tracks are continued by confident detections only
        self._match(tracks, np.flatnonzero(~sure & (scores >= self.lowest_score)), self.min_iou_doubtful, detections, ids)
        new = np.flatnonzero(sure & (ids == 0))
        self._end_frame(detections, new[~self._is_duplicate(detections, new, np.flatnonzero(ids))], ids)
        kept: sv.Detections = detections[ids > 0]  # pyright: ignore[reportAssignmentType]
        kept.tracker_id = ids[ids > 0]
        return kept

    def _match(
        self, tracks: np.ndarray, found: np.ndarray, min_iou: float, detections: sv.Detections, ids: np.ndarray
    ) -> np.ndarray:
        """Match tracks with detections (indices of either), write the numbers into `ids`; returns the tracks left over."""
        if len(tracks) == 0 or len(found) == 0:
            return tracks
        from scipy.optimize import linear_sum_assignment  # a slow import

        overlap = sv.box_iou_batch(self._motion.boxes()[tracks], detections.xyxy[found])  # [tracks, found]
        possible = (overlap >= min_iou) & (self._labels[tracks, None] == _labels_of(detections)[found])
        rows, columns = linear_sum_assignment(np.where(possible, overlap, 0), maximize=True)
        good = possible[rows, columns]
        rows, columns = rows[good], columns[good]
        ids[found[columns]] = self._ids[tracks[rows]]
        self._motion.correct(tracks[rows], detections.xyxy[found[columns]])
        return np.delete(tracks, rows)

    def _is_duplicate(self, detections: sv.Detections, new: np.ndarray, matched: np.ndarray) -> np.ndarray:
        """`[N]` which of the detections `new` nearly coincide with one of their class that has its track already."""
        overlap = sv.box_iou_batch(detections.xyxy[new], detections.xyxy[matched])
        labels = _labels_of(detections)
        return ((overlap > DUPLICATE_IOU) & (labels[new, None] == labels[matched])).any(axis=1)

    def _end_frame(self, detections: sv.Detections, new: np.ndarray, ids: np.ndarray) -> None:
        """Count the frames without a match, drop tracks lost for too long, begin tracks for the detections `new`."""
        self._unseen = np.where(np.isin(self._ids, ids), 0, self._unseen + 1)
        keep = self._unseen <= self.lost_frames
        ids[new] = np.arange(self._next_id, self._next_id + len(new))
        self._next_id += len(new)
        self._motion.keep(keep, added=detections.xyxy[new])
        self._ids = np.concatenate((self._ids[keep], ids[new]))
        self._labels = np.concatenate((self._labels[keep], _labels_of(detections)[new]))
        self._unseen = np.concatenate((self._unseen[keep], np.zeros(len(new), dtype=int)))


class BoxMotion:
    """Kalman filters of boxes that move and grow with constant velocity.

    Centre and size (cx, cy, w, h) do not influence each other under this model, so each is a filter of its own with the state
    (value, velocity per frame).

    Args:
        boxes: `[T, 4]` xyxy in pixels of the objects when they are first seen.
    """

    def __init__(self, boxes: np.ndarray) -> None:
        values = _centres(boxes)
        self.state = np.stack((values, np.zeros_like(values)), axis=-1)  # [T, 4, 2]
        side = _mean_side(values)
        deviation = np.stack((2 * POSITION_NOISE * side, 10 * VELOCITY_NOISE * side), axis=-1)  # [T, 2]
        self.covariance = np.broadcast_to((deviation**2)[:, None, :, None] * np.eye(2), (len(boxes), 4, 2, 2)).copy()

    def boxes(self) -> np.ndarray:
        """`[T, 4]` xyxy, the predicted boxes."""
        centre, size = self.state[:, :2, 0], np.maximum(self.state[:, 2:, 0], 1e-3)
        return np.concatenate((centre - size / 2, centre + size / 2), axis=1)

    def predict(self, lost: np.ndarray) -> None:
        """Advance by one frame. Objects that are `lost` (`[T]` bool) keep their size: extrapolated growth would soon be far off."""
        self.state[lost, 2:, 1] = 0
        self.state[..., 0] += self.state[..., 1]
        step = np.array([[1.0, 1.0], [0.0, 1.0]])
        side = _mean_side(self.state[..., 0])
        noise = np.stack((POSITION_NOISE * side, VELOCITY_NOISE * side), axis=-1) ** 2
        self.covariance = step @ self.covariance @ step.T + noise[:, None, :, None] * np.eye(2)

    def correct(self, which: np.ndarray, boxes: np.ndarray) -> None:
        """Update the filters of the objects `which` (`[N]` indices) with their measured boxes `[N, 4]` xyxy."""
        state, covariance = self.state[which], self.covariance[which]
        noise = (POSITION_NOISE * _mean_side(state[..., 0]))[:, None] ** 2
        gain = covariance[..., 0] / (covariance[..., 0, 0] + noise)[..., None]  # [N, 4, 2]
        surprise = _centres(boxes) - state[..., 0]
        self.state[which] = state + gain * surprise[..., None]
        self.covariance[which] = covariance - gain[..., :, None] * covariance[..., None, 0, :]

    def keep(self, kept: np.ndarray, added: np.ndarray) -> None:
        """Forget all but the `kept` objects (`[T]` bool), then begin with boxes `[N, 4]` xyxy."""
        new = BoxMotion(added)
        self.state = np.concatenate((self.state[kept], new.state))
        self.covariance = np.concatenate((self.covariance[kept], new.covariance))


def _labels_of(detections: sv.Detections) -> np.ndarray:
    return detections.class_id if detections.class_id is not None else np.zeros(len(detections), dtype=int)


def _centres(boxes: np.ndarray) -> np.ndarray:
    """xyxy → cxcywh, float64."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.concatenate(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), axis=1)


def _mean_side(values: np.ndarray) -> np.ndarray:
    """`[T]` of boxes cxcywh, at least a pixel."""
    return np.maximum(values[:, 2:].mean(axis=1), 1.0)
