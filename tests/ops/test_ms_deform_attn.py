import logging

import pytest
import torch

from deformable_detr.ops import available_backends, backends, cpu, ms_deform_attn, ms_deform_attn_fused, use_backend

BACKENDS = [name for name in available_backends() if name != "triton"]  # on a GPU: tests/gpu
ODD_SIZES = {
    "the detector's": {},
    "one level": {"shapes": [(6, 5)], "queries": 5, "heads": 2, "channels": 40, "points": 1},
    "one pixel": {"shapes": [(1, 1), (2, 2)], "queries": 30, "heads": 1, "channels": 16, "points": 5, "batch": 1},
    "nothing fits": {"shapes": [(10, 17), (5, 8), (3, 4)], "queries": 7, "heads": 3, "channels": 7, "points": 3},
    "33 channels": {"shapes": [(9, 7), (4, 4)], "queries": 79, "heads": 2, "channels": 33},
    "eight points": {"shapes": [(9, 7), (4, 4)], "queries": 9, "heads": 2, "channels": 64, "points": 8},
    "encoder": {"shapes": [(9, 7), (4, 4), (2, 2), (1, 1)], "queries": 84, "heads": 4},
    "no query": {"queries": 0},
}


def run(p, backend=None):
    if p.reference is None:
        return ms_deform_attn(p.value, p.shapes, p.offsets, p.weights, backend=backend)
    return ms_deform_attn_fused(p.value, p.shapes, p.reference, p.offsets, p.weights, backend=backend)


def expected_with_gradients(p, definition, with_gradients, grad):
    return with_gradients(definition, p.leaves(torch.float64), grad)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reference", [0, 2, 4])
@pytest.mark.parametrize("sizes", ODD_SIZES.values(), ids=ODD_SIZES.keys())
def test_output_and_all_gradients(problems, definition, with_gradients, error_of, sizes, reference, backend):
    p = problems(**sizes, reference=reference)
    grad = torch.randn(p.value.shape[0], p.offsets.shape[1], p.value.shape[2] * p.value.shape[3])
    found = with_gradients(lambda q: run(q, backend), p.leaves(), grad)
    if grad.numel() == 0:
        assert found[0].shape == grad.shape
        assert all(not g.any() for g in found[1:])
        return
    for f, e in zip(found, expected_with_gradients(p, definition, with_gradients, grad), strict=True):
        assert f.shape == e.shape
        assert error_of(f, e) < (2e-6 if backend == "cpu" else 1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [32, 7])
def test_low_precision_sums_in_float32(problems, definition, with_gradients, error_of, dtype, channels, backend):
    p = problems(channels=channels, queries=11)
    p.value = p.value.to(dtype)
    grad = torch.randn(2, 11, 8 * channels).to(dtype)
    expected = expected_with_gradients(p, definition, with_gradients, grad)
    found = with_gradients(lambda q: run(q, backend), p.leaves(), grad)
    assert found[0].dtype == found[1].dtype == dtype
    rounding = torch.finfo(dtype).eps
    assert error_of(found[0], expected[0]) < rounding  # one rounding, at the end
    assert error_of(found[1], expected[1]) < rounding
    assert all(f.dtype == torch.float32 and error_of(f, e) < 1e-4 for f, e in zip(found[2:], expected[2:], strict=True))


def test_geometry_may_have_low_precision_too(problems, error_of):
    p = problems(queries=5).map(torch.Tensor.half)
    exact = run(p.map(torch.Tensor.float))
    assert run(p).dtype == torch.float16
    assert error_of(run(p), exact) < 2e-3


@pytest.mark.parametrize("reference", [0, 2, 4])
def test_gradcheck_in_float64(problems, reference):
    p = problems(shapes=[(3, 4), (2, 1)], batch=1, queries=3, heads=2, channels=2, points=2, reference=reference).leaves(
        torch.float64
    )
    assert torch.autograd.gradcheck(lambda *_: run(p), p.tensors())


FORMS = [*(f"cpu {isa}" for isa in (cpu.supported_isas() if "cpu" in BACKENDS else ())), "reference", "gather"]


@pytest.fixture
def backend(request, monkeypatch):
    """The backend of a form such as `cpu avx2`, with these instructions in use."""
    name, _, isa = request.param.partition(" ")
    if isa:
        monkeypatch.setenv(cpu.ISA_VARIABLE, isa)
    return name


@pytest.mark.parametrize("backend", FORMS, indirect=True)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, -3e9])
@pytest.mark.parametrize("reference", [0, 2, 4])
def test_impossible_locations_count_as_outside(problems, with_gradients, error_of, reference, bad, backend):
    """The same numbers as with samples that lie ten images away, and no gradient through them."""
    p, far = problems(queries=6, reference=reference), problems(queries=6, reference=reference)
    place = 9e9 if reference == 4 else 10.0 if reference == 0 else 1e4  # a share of a box, a location, pixels
    for q, number in ((p, bad), (far, place)):
        q.offsets[0, 0] = number
        q.offsets[1, 5, 3, 2, 1, 0] = number
    found = with_gradients(lambda q: run(q, backend), p.leaves(), torch.ones(2, 6, 256))
    expected = with_gradients(lambda q: run(q, "reference"), far.leaves(), torch.ones(2, 6, 256))
    assert not found[0][0, 0].any()
    for f, e in zip(found, expected, strict=True):
        assert f.isfinite().all()
        assert error_of(f, e) < (1e-5 if backend == "cpu" else 1e-4)
    offsets = found[-2]
    assert not offsets[0, 0].any()
    assert not offsets[1, 5, 3, 2, 1, 0].any()


@pytest.mark.parametrize("backend", FORMS, indirect=True)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("numbers", [2, 4])
def test_impossible_references_count_as_outside(problems, with_gradients, numbers, bad, backend):
    p = problems(queries=6, reference=numbers)
    p.reference[0, 1] = bad
    p.reference[1, 2, 3, numbers - 1] = bad
    found = with_gradients(lambda q: run(q, backend), p.leaves(), torch.ones(2, 6, 256))
    assert not found[0][0, 1].any()
    assert all(f.isfinite().all() for f in found)
    assert not found[2][0, 1].any()


def test_nan_weights_show_in_their_query_alone(problems):
    p = problems(queries=6)
    p.weights[0, 2, 4, 1, 1] = float("nan")
    output = run(p).view(2, 6, 8, 32)
    assert output[0, 2, 4].isnan().all()
    output[0, 2, 4] = 0
    assert output.isfinite().all()


@pytest.mark.parametrize("reference", [0, 2])
def test_non_contiguous_inputs(problems, with_gradients, error_of, reference):
    p = problems(reference=reference, queries=9)
    grad = torch.randn(2, 256, 9).transpose(1, 2)
    expected = with_gradients(run, p.leaves(), grad.contiguous())

    def scrambled(t):
        return t.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()

    q = p.map(scrambled)
    assert not q.value.is_contiguous()
    for f, e in zip(with_gradients(run, q, grad), expected, strict=True):
        assert torch.equal(f, e)


def test_shapes_as_a_tensor(problems):
    p = problems(reference=2)
    expected = run(p)
    p.shapes = torch.tensor(p.shapes)
    assert torch.equal(run(p), expected)


BAD_ARGUMENTS = {
    "value: expected": lambda p: setattr(p, "value", p.value[0]),
    "value: expected float32": lambda p: setattr(p, "value", p.value.int()),
    "sampling_offsets: expected": lambda p: setattr(p, "offsets", p.offsets[..., 0]),
    "sampling_offsets: batch and heads": lambda p: setattr(p, "offsets", p.offsets[:1]),
    "attention_logits: expected": lambda p: setattr(p, "weights", p.weights[:, :3]),
    "attention_logits: expected float32": lambda p: setattr(p, "weights", p.weights.int()),
    "spatial_shapes: 3 levels": lambda p: setattr(p, "shapes", p.shapes[:3]),
    "spatial_shapes: the levels have": lambda p: setattr(p, "shapes", [(10, 16), *p.shapes[1:]]),
    "spatial_shapes: every level": lambda p: setattr(p, "shapes", [(0, 16), *p.shapes[1:]]),
    "spatial_shapes: expected integers": lambda p: setattr(p, "shapes", torch.zeros(4, 2)),
    "spatial_shapes: expected pairs of integers": lambda p: setattr(p, "shapes", [(float(h), w) for h, w in p.shapes]),
    "spatial_shapes: expected (h, w) pairs, got None": lambda p: setattr(p, "shapes", None),
    "spatial_shapes: expected (h, w) pairs, got [170": lambda p: setattr(p, "shapes", [170, 40, 12, 2]),
    "reference_points: expected": lambda p: setattr(p, "reference", p.reference[..., :1]),
    "reference_points: expected [2, 37, 4, 2]": lambda p: setattr(p, "reference", p.reference[:, :5]),
    "reference_points: is on meta": lambda p: setattr(p, "reference", p.reference.to("meta")),
}


@pytest.mark.parametrize("message", BAD_ARGUMENTS)
def test_errors_name_the_argument(problems, message):
    p = problems()
    BAD_ARGUMENTS[message](p)
    with pytest.raises(ValueError) as error:
        run(p)
    assert str(error.value).startswith(message)


def test_errors_name_the_arguments_of_the_plain_form(problems):
    p = problems(reference=0)
    with pytest.raises(ValueError, match=r"^sampling_locations: expected"):
        ms_deform_attn(p.value, p.shapes, p.offsets[0], p.weights)
    with pytest.raises(ValueError, match=r"^attention_weights: expected"):
        ms_deform_attn(p.value, p.shapes, p.offsets, p.weights[..., :1])


class TestBackends:
    def test_reference_is_always_there(self):
        assert available_backends()[-1] == "reference"

    def test_argument_and_context(self, problems, monkeypatch):
        p = problems(queries=3)
        exact = run(p, "reference")
        with use_backend("reference"):
            assert torch.equal(run(p), exact)
            with use_backend("reference"):
                pass
            assert backends.choose_backend(p.value, None) == "reference"
        assert backends.choose_backend(p.value, None) == available_backends()[0]

    def test_unknown_and_unfit(self, problems):
        p = problems(queries=3)
        with pytest.raises(ValueError, match="backend: 'gpu' is none of 'cpu', 'triton', 'reference'"):
            run(p, "gpu")
        with pytest.raises(ValueError, match="'gpu'"), use_backend("gpu"):
            pass
        if "cpu" in available_backends():
            with pytest.raises(ValueError, match=r"backend: 'cpu' has no kernel for torch\.float64"):
                run(p.map(torch.Tensor.double), "cpu")
        if "triton" not in available_backends():
            with pytest.raises(RuntimeError, match="backend: 'triton' cannot run here: "):
                run(p, "triton")

    def test_float64_and_missing_kernels_take_the_reference_and_say_so_once(self, problems, monkeypatch, caplog):
        p = problems(queries=3)
        backends._say_once.cache_clear()
        monkeypatch.setattr(backends, "_missing", lambda name: None if name == "reference" else "it was not built")
        with caplog.at_level(logging.INFO):
            run(p.map(torch.Tensor.double))
            first, second = run(p), run(p)
        assert torch.equal(first, run(p, "reference"))
        assert torch.equal(first, second)
        lines = [record.getMessage() for record in caplog.records]
        assert [line.rsplit(": ", 1)[1] for line in lines] == ["there is no kernel for torch.float64", "it was not built"]

    def test_a_forced_backend_that_is_missing(self, problems, monkeypatch):
        monkeypatch.setattr(backends, "_missing", lambda name: "it was not built")
        with pytest.raises(RuntimeError, match="backend: 'cpu' cannot run here: it was not built"):
            run(problems(queries=3), "cpu")
