import io
import json
import math
from typing import Any

import pytest
from rich.console import Console

from deformable_detr.evaluation import ClassMetrics, Metrics
from deformable_detr.visualize.figures import save_figure
from deformable_detr.visualize.pages.report_figures import draw_pr_curves

PRECISIONS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
NUMBERS = (*PRECISIONS, "ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large")


@pytest.fixture
def metrics():
    values: dict[str, Any] = {name: 0.01 * number for number, name in enumerate(NUMBERS, 20)} | {"ap_large": math.nan}
    falling = tuple(1 - 0.01 * step for step in range(101))
    classes = (ClassMetrics("cat", 0.25, 0.5, 12, falling, 0.75, 0.3), ClassMetrics("dog", math.nan, math.nan, 0))
    return Metrics(**values, per_class=classes, num_images=9)


def test_json_has_every_number_and_null_for_none(metrics, tmp_path):
    metrics.save_json(tmp_path / "folder" / "metrics.json")
    record = json.loads((tmp_path / "folder" / "metrics.json").read_text())
    assert set(record) == {*NUMBERS, "num_images", "per_class"}
    assert record["ap"] == pytest.approx(0.2)
    assert record["ap_large"] is None
    assert record["per_class"] == [
        {"name": "cat", "ap": 0.25, "ap50": 0.5, "f1": 0.75, "threshold": 0.3, "num_objects": 12},
        {"name": "dog", "ap": None, "ap50": None, "f1": None, "threshold": None, "num_objects": 0},
    ]


def test_table_shows_percent_and_a_dash_for_none(metrics):
    screen = io.StringIO()
    Console(width=100, file=screen).print(metrics.table())
    lines = [line.split() for line in screen.getvalue().splitlines()]
    shown = [[cell for cell in line if cell not in "│┃"] for line in lines]
    assert ["20.0", "21.0", "22.0", "23.0", "24.0", "–"] in shown
    assert ["cat", "25.0", "50.0", "75.0", "0.30", "12"] in shown
    assert ["dog", "–", "–", "–", "–", "0"] in shown


def test_pr_curves_are_written(metrics, tmp_path):
    save_figure(draw_pr_curves(metrics), tmp_path / "curves" / "pr.png")
    assert (tmp_path / "curves" / "pr.png").read_bytes().startswith(b"\x89PNG")


def test_pr_curves_without_any_object(metrics, tmp_path):
    empty = Metrics(**dict.fromkeys(NUMBERS, math.nan), per_class=metrics.per_class[1:], num_images=1)
    save_figure(draw_pr_curves(empty), tmp_path / "pr.png")
    assert (tmp_path / "pr.png").is_file()
