import logging

import pytest

from deformable_detr.training.advice import Advisor


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def rows(*entries: tuple[int, float | None]) -> list[dict]:
    return [{"step": step, "ap50": ap50} for step, ap50 in entries]


def test_an_ap_that_stays_at_0(caplog: pytest.LogCaptureFixture) -> None:
    advisor = Advisor(total_steps=1000)
    advisor.evaluation(rows((100, 0.0)), [])
    advisor.evaluation(rows((100, 0.0), (200, None)), [])
    assert said(caplog) == []  # early: usual
    advisor.evaluation(rows((100, 0.0), (200, None), (300, 0.0)), [])
    advisor.evaluation(rows((100, 0.0), (200, None), (300, 0.0), (400, 0.0)), [])
    assert len(said(caplog)) == 1
    for word in ("still 0 after 300 steps", "--weights", "deformable-detr doctor", "learning rate"):
        assert word in said(caplog)[0]


def test_no_alarm_for_a_run_that_learns(caplog: pytest.LogCaptureFixture) -> None:
    advisor = Advisor(total_steps=1000)
    classes = [{"name": "cat", "ap50": 0.3, "num_objects": 9}, {"name": "no objects", "ap50": None, "num_objects": 0}]
    for step, loss in ((300, 9.0), (600, 12.0), (900, 7.0)):
        advisor.losses(step, {"loss": loss})
        advisor.evaluation(rows((step - 100, 0.0), (step, 0.3)), classes)
    assert said(caplog) == []


def test_a_class_that_is_never_found_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    advisor = Advisor(total_steps=1000)
    classes = [{"name": "cat", "ap50": 0.4, "num_objects": 9}, {"name": "lynx", "ap50": 0.0, "num_objects": 2}]
    for step in (400, 500):
        advisor.evaluation(rows((step, 0.2)), classes)
    assert len(said(caplog)) == 1
    assert "'lynx'" in said(caplog)[0]


def test_a_loss_that_diverges(caplog: pytest.LogCaptureFixture) -> None:
    advisor = Advisor(total_steps=1000)
    for step, loss in ((50, 8.0), (100, 5.0), (150, 10.1), (200, 30.0)):
        advisor.losses(step, {"loss": loss})
    assert len(said(caplog)) == 1
    assert "10.10 at step 150, it was 5.00 before" in said(caplog)[0]
