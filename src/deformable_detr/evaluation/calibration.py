"""Calibration of the scores: of detections with score .7, 70 % should be true positives (Guo et al. 2017)."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from deformable_detr.evaluation.metrics import record_of
from deformable_detr.evaluation.thresholds import ScoreCurve

LEAST_SCORE = 0.1
"""Detections below are left out: every image has up to a hundred of them, nearly all false positives and of no use."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Detections in S bins of equal width, by their score; at IoU .50."""

    edges: np.ndarray
    """`[S + 1]` limits of the bins."""

    counts: np.ndarray
    """`[S]` detections."""

    scores: np.ndarray
    """`[S]` mean score; NaN in an empty bin."""

    precision: np.ndarray
    """`[S]` share of true positives; NaN in an empty bin."""

    @property
    def error(self) -> float:
        """Expected calibration error: mean |precision − score| over the detections; NaN without detections."""
        return self._mean(np.abs(self.precision - self.scores))

    @property
    def bias(self) -> float:
        """Mean of precision − score over the detections: above 0 the scores are too low. NaN without detections."""
        return self._mean(self.precision - self.scores)

    def to_dict(self) -> dict[str, Any]:
        """A plain dict, for JSON; NaN becomes None."""
        return record_of(self, ("error", "bias", "edges", "counts", "scores", "precision"))

    def _mean(self, gaps: np.ndarray) -> float:
        total = self.counts.sum()
        return float(np.nansum(gaps * self.counts) / total) if total else math.nan


def calibrate(curve: ScoreCurve) -> Calibration:
    """Sort detections, such as those of all classes, into bins of a tenth by their score."""
    edges = np.linspace(LEAST_SCORE, 1, round((1 - LEAST_SCORE) / 0.1) + 1)
    kept = curve.scores >= LEAST_SCORE
    scores, true_positive = curve.scores[kept], curve.true_positive[kept]
    bins = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, len(edges) - 2)
    counts, sums, found = (np.bincount(bins, weights, minlength=len(edges) - 1) for weights in (None, scores, true_positive))
    empty = np.full(len(counts), np.nan)
    mean_scores, precision = (np.divide(part, counts, out=empty.copy(), where=counts > 0) for part in (sums, found))
    return Calibration(edges, counts, mean_scores, precision)
