"""The process's default dtype and default device have no say in the operator."""

from contextlib import contextmanager

import pytest
import torch

from deformable_detr.ops import available_backends, cpu, ms_deform_attn, ms_deform_attn_fused
from deformable_detr.ops.winograd import transform_weights, winograd_available, winograd_convolution

BACKENDS = [name for name in (*available_backends(), "gather") if name != "triton"]


@contextmanager
def default(what):
    """`what` as torch's default dtype or device."""
    before = torch.get_default_dtype()
    try:
        if isinstance(what, torch.dtype):
            torch.set_default_dtype(what)
        else:
            torch.set_default_device(what)
        yield
    finally:
        torch.set_default_dtype(before)
        torch.set_default_device(None)


@pytest.fixture(params=[torch.float64, torch.bfloat16, torch.float16, "meta"], ids=str)
def other(request):
    return request.param


def run(p, backend):
    if p.reference is None:
        return ms_deform_attn(p.value, p.shapes, p.offsets, p.weights, backend=backend)
    return ms_deform_attn_fused(p.value, p.shapes, p.reference, p.offsets, p.weights, backend=backend)


@pytest.mark.parametrize("queries", [37, 0])
@pytest.mark.parametrize("reference", [0, 2, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_operator(problems, with_gradients, other, backend, reference, queries):
    p = problems(reference=reference, queries=queries)
    grad = torch.randn(2, queries, 256)
    expected = with_gradients(lambda q: run(q, backend), p.leaves(), grad)
    with default(other):
        found = with_gradients(lambda q: run(q, backend), p.leaves(), grad)
    for f, e in zip(found, expected, strict=True):
        assert (f.dtype, f.device) == (e.dtype, e.device)
        assert torch.equal(f, e)


@pytest.mark.parametrize("isa", cpu.supported_isas() if "cpu" in available_backends() else ())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_in_each_form(problems, monkeypatch, other, dtype, isa):
    monkeypatch.setenv(cpu.ISA_VARIABLE, isa)
    p = problems(queries=11)
    p.value = p.value.to(dtype)
    expected = run(p, "cpu")
    with default(other):
        assert torch.equal(run(p, "cpu"), expected)


@pytest.mark.skipif(not winograd_available(), reason="this processor has no kernels for it")
def test_winograd(other):
    x, weight, bias = torch.randn(1, 32, 9, 7), torch.randn(64, 32, 3, 3), torch.randn(64)
    expected = winograd_convolution(x, transform_weights(weight), bias, relu=True)
    with default(other):
        found = winograd_convolution(x, transform_weights(weight), bias, relu=True)
        added = winograd_convolution(x, transform_weights(weight), bias, added=found, out=found)
    assert found is added and found.dtype == torch.float32
    assert torch.equal(winograd_convolution(x, transform_weights(weight), bias, relu=True), expected)
