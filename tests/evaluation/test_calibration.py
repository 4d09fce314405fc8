import math

import numpy as np
import pytest

from deformable_detr.evaluation.calibration import calibrate
from deformable_detr.evaluation.thresholds import ScoreCurve


def curve(*rows):
    """`rows`: (score, true positive), highest score first."""
    scores, found = (np.array(column) for column in zip(*rows, strict=True)) if rows else (np.zeros(0), np.zeros(0, dtype=bool))
    return ScoreCurve("x", 9, scores, found)


def test_by_hand():
    """In [.9, 1] both are true; in [.5, .6) one of two; .05 does not count."""
    found = calibrate(curve((0.95, True), (0.91, True), (0.59, True), (0.51, False), (0.05, False)))
    assert found.counts.tolist() == [0, 0, 0, 0, 2, 0, 0, 0, 2]
    assert found.scores[[4, 8]].tolist() == pytest.approx([0.55, 0.93])
    assert found.precision[[4, 8]].tolist() == pytest.approx([0.5, 1.0])
    assert found.error == pytest.approx((2 * 0.05 + 2 * 0.07) / 4)
    assert found.bias == pytest.approx((2 * -0.05 + 2 * 0.07) / 4)
    assert found.to_dict()["precision"][0] is None


def test_limits_of_the_bins():
    assert calibrate(curve((1.0, True), (0.2, True), (0.1, True))).counts.tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 1]


def test_scores_that_are_probabilities_are_calibrated():
    generator = np.random.default_rng(0)
    scores = np.sort(generator.uniform(0.1, 1, 50_000))[::-1]
    found = calibrate(ScoreCurve("x", 1, scores, generator.random(50_000) < scores))
    assert found.error < 0.01
    halved = calibrate(ScoreCurve("x", 1, scores / 2, generator.random(50_000) < scores))
    assert halved.bias == pytest.approx(0.3, abs=0.02)  # the mean of scores in [.2, 1] less that of their halves


def test_nothing_detected():
    found = calibrate(curve())
    assert math.isnan(found.error) and math.isnan(found.bias)
    assert found.to_dict()["error"] is None
