import sys
from typing import Any

import pytest
import torch

from deformable_detr.ops import available_backends, benchmark

SMALL: dict[str, Any] = {"height": 64, "width": 96}


def test_shapes_are_those_of_a_image():
    assert benchmark.Case("encoder").shapes == [(100, 167), (50, 84), (25, 42), (13, 21)]


@pytest.mark.parametrize(
    "case", [benchmark.Case("encoder", **SMALL), benchmark.Case("queries", batch=2, queries=9, fused=False, **SMALL)]
)
def test_everything_here_computes_the_same(case):
    names = benchmark.implementations("cpu")
    assert names[0] == "classic"
    assert ("cpu portable" in names) == ("cpu" in available_backends())
    results = benchmark.measure(case, names, rounds=1, memory=False)
    assert [result.implementation for result in results] == names
    for result in results:
        assert result.error < 1e-4
        assert result.gradient_error < 1e-3
        assert min(result.forward, result.forward_backward, result.first_call) > 0
    ours = [result.error for result in results if result.implementation.startswith("cpu")]
    assert all(error < 1e-6 for error in ours)


def test_memory_is_measured_in_a_process_of_its_own():
    case = benchmark.Case("encoder", height=256, width=256)
    forward, both = benchmark._peaks_in_own_process(case, "classic", "cpu", torch.float32)
    if forward is None:
        pytest.skip("only Linux says what a process's peak was")
    output = 4 * sum(h * w for h, w in case.shapes) * 256
    assert forward > 8 * output  # what grid_sample returns is 16 times the output
    assert both is not None and both > forward


def test_a_failing_process_is_an_error():
    with pytest.raises(RuntimeError, match="measuring the memory of 'nothing' failed: no such thing"):
        benchmark.measured_elsewhere([sys.executable, "-c", "raise SystemExit('no such thing')"], {"name": "nothing"})
