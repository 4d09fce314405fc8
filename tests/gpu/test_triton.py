"""The Triton kernels on a real GPU; skipped where there is none."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deformable_detr.ops import available_backends, ms_deform_attn, ms_deform_attn_fused

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

spec = importlib.util.spec_from_file_location("ops_conftest_gpu", Path(__file__).parents[1] / "ops" / "conftest.py")
assert spec is not None and spec.loader is not None
helpers = importlib.util.module_from_spec(spec)
sys.modules["ops_conftest_gpu"] = helpers
spec.loader.exec_module(helpers)

SIZES = {
    "the detector's": {},
    "nothing fits": {"shapes": [(10, 17), (5, 8), (3, 4)], "queries": 7, "heads": 3, "channels": 7, "points": 3},
    "many queries": {"shapes": [(40, 50), (20, 25)], "queries": 2500},
    "no query": {"queries": 0},
}


def run(p, backend=None):
    if p.reference is None:
        return ms_deform_attn(p.value, p.shapes, p.offsets, p.weights, backend=backend)
    return ms_deform_attn_fused(p.value, p.shapes, p.reference, p.offsets, p.weights, backend=backend)


def compare(sizes, reference, dtype, tolerance):
    p = helpers.make_problem(**sizes, reference=reference)
    p.value = p.value.to(dtype)
    grad = torch.randn(2, p.offsets.shape[1], p.value.shape[2] * p.value.shape[3]).to(dtype)
    found = helpers.gradients(run, p.map(torch.Tensor.cuda).leaves(), grad.cuda())
    if grad.numel() == 0:
        assert found[0].shape == grad.shape
        return
    expected = helpers.gradients(helpers.by_definition, p.leaves(torch.float64), grad)
    for i, (f, e) in enumerate(zip(found, expected, strict=True)):
        errors = (f.cpu().double() - e).abs() / e.abs().max()
        if i < 2:
            assert errors.max() < tolerance
        else:  # the gradient of a location jumps at the edge of a pixel, where rounding picks a side
            assert (errors > 1e-4).float().mean() < 1e-3


def test_triton_is_what_runs():
    assert available_backends()[0] in ("cpu", "triton")
    assert "triton" in available_backends()


@pytest.mark.parametrize("reference", [0, 2, 4])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_output_and_gradients(sizes, reference):
    compare(sizes, reference, torch.float32, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reference", [0, 2, 4])
def test_low_precision(reference, dtype):
    compare({}, reference, dtype, torch.finfo(dtype).eps)


@pytest.mark.parametrize("reference", [0, 2, 4])
def test_deterministic_mode(reference):
    p = helpers.make_problem(shapes=[(8, 8), (2, 2)], queries=3000, reference=reference).map(torch.Tensor.cuda)
    grad = torch.randn(2, 3000, 256, device="cuda")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        runs = [helpers.gradients(lambda q: run(q, "triton"), p.leaves(), grad) for _ in range(4)]
    finally:
        torch.use_deterministic_algorithms(before)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, runs[0], strict=True))


def test_impossible_locations():
    p = helpers.make_problem(queries=6, reference=2).map(torch.Tensor.cuda)
    p.offsets[0, 0], p.offsets[0, 1], p.offsets[0, 2] = float("nan"), float("inf"), -1e30
    output = run(p)
    assert output.isfinite().all()
    assert not output[0, :3].any()


def test_compiles_in_one_graph():
    p = helpers.make_problem(queries=9).map(torch.Tensor.cuda)

    def fused(value: Tensor, *geometry: Tensor) -> Tensor:
        return ms_deform_attn_fused(value, p.shapes, *geometry)

    compiled = torch.compile(fused, fullgraph=True)
    torch.testing.assert_close(compiled(*p.tensors()), run(p))
