"""The native kernels in each of their forms: instruction sets, layouts, threads."""

import ctypes
import os
import re
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from deformable_detr.ops import available_backends, cpu, ms_deform_attn, ms_deform_attn_fused

pytestmark = pytest.mark.skipif("cpu" not in available_backends(), reason="the CPU kernels are not built")
ISAS: tuple[str, ...] = cpu.supported_isas() if "cpu" in available_backends() else ()
SIZES = (
    {"shapes": [(9, 7), (4, 4), (2, 2), (1, 1)], "queries": 84},
    {"shapes": [(9, 7), (4, 4), (2, 2)], "queries": 11, "heads": 3, "channels": 21, "points": 5},
    {"shapes": [(13, 17), (7, 9)], "queries": 3, "heads": 2, "channels": 48, "points": 3},
)


@pytest.fixture(autouse=True)
def restore_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def layout(monkeypatch):
    """Makes every call read values in place (1) or copy heads first (2), and use all threads however little there is to do."""

    def choose(number):
        monkeypatch.setattr(cpu, "LAYOUT", number)
        monkeypatch.setattr(cpu, "_num_threads", lambda samples: torch.get_num_threads())

    return choose


def run(p):
    if p.reference is None:
        return ms_deform_attn(p.value, p.shapes, p.offsets, p.weights, backend="cpu")
    return ms_deform_attn_fused(p.value, p.shapes, p.reference, p.offsets, p.weights, backend="cpu")


@pytest.mark.parametrize("reference", [0, 2, 4])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("isa", ISAS)
def test_every_form_in_both_layouts_with_any_threads(
    problems, definition, with_gradients, error_of, layout, monkeypatch, isa, sizes, reference
):
    monkeypatch.setenv(cpu.ISA_VARIABLE, isa)
    p = problems(**sizes, reference=reference)
    grad = torch.randn(2, p.offsets.shape[1], p.value.shape[2] * p.value.shape[3])
    expected = with_gradients(definition, p.leaves(torch.float64), grad)
    for number in (1, 2):
        layout(number)
        runs = []
        for threads in (1, 2, 3, 64):  # 64: more than (batch, head) pairs, so levels become tasks of their own
            torch.set_num_threads(threads)
            runs.append(with_gradients(run, p.leaves(), grad))
        for f, e in zip(runs[0], expected, strict=True):
            # At most some 700 roundings of 2^-24 add up (4 per point in sums, softmax, 24 per pixel between reference and sample),
            # each a share of the largest summand, about 3 times the largest result. All else is in the test below.
            assert error_of(f, e) < 1e-4
        for other in runs[1:]:
            for f, e in zip(other, runs[0], strict=True):
                assert torch.equal(f, e)


def numbers(generator, size, bits, unit):
    """Random multiples of `unit` with so many bits and a sign: products and sums are exact while float32's 24 bits suffice."""
    return torch.randint(-(2**bits), 2**bits + 1, size, generator=generator) * unit


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("isa", ISAS)
def test_where_nothing_is_rounded_every_form_gives_the_bits_of_float64(
    problems, definition, with_gradients, layout, monkeypatch, isa, sizes
):
    """Levels of 2^n pixels and samples at eighths of a pixel, so that output and gradients fit 24 bits."""
    monkeypatch.setenv(cpu.ISA_VARIABLE, isa)
    shapes = [(8, 16), (4, 4), (1, 2), (1, 1)][: len(sizes["shapes"])]
    tokens = sum(h * w for h, w in shapes)
    queries = tokens if sizes is SIZES[0] else sizes["queries"]
    p = problems(**(sizes | {"shapes": shapes, "queries": queries}), reference=0)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.tensor([(w, h) for h, w in shapes])[:, None]
    p.value, p.weights = numbers(generator, p.value.shape, 2, 1.0), numbers(generator, p.weights.shape, 3, 0.125)
    p.offsets = 0.5 + numbers(generator, p.offsets.shape, 6, 0.125) / pixels  # up to eight pixels from the middle
    grad = numbers(generator, (2, queries, p.value.shape[2] * p.value.shape[3]), 2, 1.0)
    expected = with_gradients(definition, p.leaves(torch.float64), grad)
    for number in (1, 2):
        layout(number)
        for f, e in zip(with_gradients(run, p.leaves(), grad), expected, strict=True):
            assert torch.equal(f.double(), e)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("number", [1, 2])
def test_samples_a_rounding_away_from_a_pixel_centre(layout, monkeypatch, isa, number):
    """location * width - 1/2 rounds to the next whole number there: the sample must still lie between the right two pixels."""
    monkeypatch.setenv(cpu.ISA_VARIABLE, isa)
    layout(number)
    width, queries = 1333, 400
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(1, width, 1, 8, generator=generator)
    centres = (torch.randint(width // 2, width, (queries,), generator=generator).double() + 0.5) / width
    ulps = torch.randint(-3, 4, (queries,), generator=generator)
    x = (centres.float().view(torch.int32) + ulps.int()).view(torch.float32)
    locations = torch.stack((x, torch.full_like(x, 0.5)), dim=-1)[None, :, None, None, None]
    weights = torch.ones(1, queries, 1, 1, 1)
    exact = ms_deform_attn(value.double(), [(1, width)], locations.double(), weights.double(), backend="reference")
    found = ms_deform_attn(value, [(1, width)], locations, weights, backend="cpu")
    assert (found - exact).abs().max() <= 1e-6 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("isa", ISAS)
def test_low_precision_reads_every_number(problems, monkeypatch, isa, dtype, layout):
    """All 2^16 patterns, infinities, NaN and subnormals too, come through as they are: a sample at the centre of a single pixel."""
    monkeypatch.setenv(cpu.ISA_VARIABLE, isa)
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(1, 1, 64, 1024)
    for number in (1, 2):
        layout(number)
        output = ms_deform_attn(values, [(1, 1)], torch.full((1, 1, 64, 1, 1, 2), 0.5), torch.ones(1, 1, 64, 1, 1), backend="cpu")
        torch.testing.assert_close(output.flatten(), values.flatten(), rtol=0, atol=0, equal_nan=True)


def test_the_same_bits_on_every_run(problems, with_gradients):
    p = problems(shapes=[(20, 30), (10, 15)], queries=750)
    grad = torch.randn(2, 750, 256)
    first = with_gradients(run, p.leaves(), grad)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(with_gradients(run, p.leaves(), grad), first, strict=True))


def test_threads_follow_torch(problems):
    p = problems(shapes=[(40, 50), (10, 15)], queries=2150)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        assert cpu._problem(p.value, [40, 50, 10, 15], p.reference, p.offsets, p.weights)[0].threads == threads


def test_plain_threads_without_openmp(problems, with_gradients):
    p = problems(shapes=[(20, 30), (10, 15)], queries=300)
    torch.set_num_threads(3)
    expected = with_gradients(run, p.leaves(), torch.ones(2, 300, 256))
    cpu.library().msda_use_gomp(None)
    try:
        found = with_gradients(run, p.leaves(), torch.ones(2, 300, 256))
    finally:
        cpu.library().msda_use_gomp(cpu._gomp_parallel())
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the list of mapped files")
def test_one_openmp_runtime():
    assert cpu._gomp_parallel() is not None
    assert str(torch.__path__[0]) in cpu._loaded_openmp()[0] or "conda" in cpu._loaded_openmp()[0]


def test_isa_variable(monkeypatch):
    for isa in ISAS:
        monkeypatch.setenv(cpu.ISA_VARIABLE, isa)
        assert cpu.current_isa() == isa
    monkeypatch.setenv(cpu.ISA_VARIABLE, "mmx")
    with pytest.raises(ValueError, match=f"{cpu.ISA_VARIABLE}='mmx'"):
        cpu.current_isa()
    monkeypatch.delenv(cpu.ISA_VARIABLE)
    assert cpu.current_isa() == ISAS[-1]


def test_a_library_that_is_missing_or_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "LIBRARY", tmp_path / "_cpu_kernels.so")
    with pytest.raises(cpu.KernelsMissing, match="was not built"):
        cpu.library.__wrapped__()
    cpu.LIBRARY.write_text("no library")
    with pytest.raises(cpu.KernelsMissing, match="does not load"):
        cpu.library.__wrapped__()


@pytest.mark.parametrize(("struct", "name"), [(cpu.Problem, "msda_problem"), (cpu.WinogradProblem, "winograd_problem")])
def test_structs_match_the_header(struct, name):
    header = (Path(cpu.__file__).parent / "csrc" / "problem.h").read_text()
    body = re.search(rf"typedef struct {{([^}}]*)}} {name};", header)
    assert body
    fields = re.findall(r"(\w+)[,;]", re.sub(r"//.*", "", body[1]))
    assert fields == [field for field, _ in struct._fields_]
    assert ctypes.sizeof(struct) == 8 * len(fields)
    assert f"#define MSDA_INTERFACE {cpu.INTERFACE}" in header


def test_a_library_of_other_sources_is_not_called(monkeypatch):
    monkeypatch.setattr(cpu, "INTERFACE", cpu.INTERFACE + 1)
    with pytest.raises(cpu.KernelsMissing, match="built from other sources"):
        cpu.library.__wrapped__()


def valid_problem(problems, reference=2):
    p = problems(queries=5, reference=reference)
    problem, kept = cpu._problem(p.value, [size for pair in p.shapes for size in pair], p.reference, p.offsets, p.weights)
    kept.append(output := cpu.new_tensor(2, 5, 256).fill_(7))
    cpu.attach(problem, "output", output)
    return problem, kept, output


WRONG = {
    "batch": (0, "a size or kind"),
    "queries": (-3, "a size or kind"),
    "threads": (0, "a size or kind"),
    "dtype": (3, "a size or kind"),
    "geometry_dtype": (3, "a size or kind"),
    "reference_size": (3, "a size or kind"),
    "layout": (9, "a size or kind"),
    "tokens": (2**31, "beyond what 32-bit indices reach"),
    "heads": (2**62, "beyond what 32-bit indices reach"),
    "value": (None, "a tensor is missing"),
    "reference": (None, "a tensor is missing"),
    "shapes": (12345, "not aligned"),
    "output": (2**40 + 2, "not aligned"),
    "value_bytes": (4, "does not have the size"),
    "output_bytes": (2 * 5 * 256 * 2, "does not have the size"),  # what another default dtype would allocate
    "geometry_dtype, not the buffers": (1, "does not have the size"),
    "weights_bytes": (10**9, "does not have the size"),
}


@pytest.mark.parametrize("field", WRONG)
def test_the_kernel_refuses_problems_that_contradict_themselves(problems, field):
    problem, _kept, output = valid_problem(problems)
    number, message = WRONG[field]
    setattr(problem, field.split(",")[0], number)
    with pytest.raises(RuntimeError, match=f"msda_forward: .*{message}"):
        cpu.run("msda_forward", problem)
    assert (output == 7).all()


@pytest.mark.parametrize("sizes", [[10, 17, 5, 8, 3, 4, 1, 3], [10, 17, 5, 8, 3, 4, 0, 2], [2**31, 17, 5, 8, 3, 4, 1, 2]])
def test_the_kernel_refuses_levels_that_do_not_fit(problems, sizes):
    problem, kept, output = valid_problem(problems)
    kept.append(array := (ctypes.c_int64 * 8)(*sizes))
    problem.shapes = ctypes.addressof(array)
    with pytest.raises(RuntimeError, match=r"levels|32-bit"):
        cpu.run("msda_forward", problem)
    assert (output == 7).all()


def test_a_backward_problem_needs_its_gradients(problems):
    problem, *_ = valid_problem(problems)
    with pytest.raises(RuntimeError, match="msda_backward: a tensor is missing"):
        cpu.run("msda_backward", problem)


def test_only_contiguous_cpu_tensors_are_attached():
    with pytest.raises(TypeError, match=r"value: .* contiguous"):
        cpu.attach(cpu.Problem(), "value", torch.zeros(3, 4).T)
    with pytest.raises(TypeError, match="on meta"):
        cpu.attach(cpu.Problem(), "value", torch.zeros(3, device="meta"))


def test_misaligned_memory(problems, error_of):
    """Tensors over foreign buffers may begin anywhere."""
    p = problems(queries=5)

    def moved(t):
        memory = bytearray(1) + bytearray(t.numpy().tobytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the buffer is writable, but one byte off
            return torch.frombuffer(memory, dtype=t.dtype, count=t.numel(), offset=1).view(t.shape)

    expected = run(p)
    q = p.map(moved)
    assert q.value.data_ptr() % 4 != 0
    assert torch.equal(run(q), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rounds_the_output_once(problems, definition, layout, monkeypatch, isa, dtype):
    """To the nearest, ties to even, as torch rounds: what float32 gives, rounded, for channels in and beyond whole vectors."""
    monkeypatch.setenv(cpu.ISA_VARIABLE, isa)
    for number in (1, 2):
        layout(number)
        for channels in (32, 64, 21):
            p = problems(queries=11, channels=channels)
            p.value = (p.value * 3).to(dtype)
            low = run(p)
            p.value = p.value.float()
            unit = torch.finfo(dtype).eps / 2
            exact = definition(p.map(torch.Tensor.double))
            assert low.dtype == dtype
            assert ((low.double() - exact).abs() <= unit * exact.abs() * 1.001 + 1e-6).all()
            assert (low == run(p).to(dtype)).float().mean() > 0.99  # sums in another order may round the other way


@pytest.mark.parametrize("reference", [0, 2, 4])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_geometry_of_low_precision_is_widened_as_it_is_read(
    problems, definition, with_gradients, layout, monkeypatch, isa, dtype, reference
):
    """Everything is computed as from the same numbers in float32; what belongs to a tensor of low precision is rounded to it."""
    monkeypatch.setenv(cpu.ISA_VARIABLE, isa)
    for number, sizes in ((1, {"queries": 11, "points": 5}), (2, SIZES[0])):
        layout(number)
        p = problems(reference=reference, **sizes)
        p.value, p.offsets, p.weights = (tensor.to(dtype) for tensor in (p.value, p.offsets, p.weights))
        grad = torch.randn(2, p.offsets.shape[1], 256).to(dtype)
        expected = with_gradients(definition, p.leaves(torch.float64), grad)
        found = with_gradients(run, p.leaves(), grad)
        for f, e in zip(found, expected, strict=True):
            unit = torch.finfo(f.dtype).eps / 2
            assert ((f.double() - e).abs() <= unit * e.abs() + 1e-5 * e.abs().max()).all()
        assert [f.dtype for f in found[1:]] == [tensor.dtype for tensor in p.tensors()]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_at_the_edges(monkeypatch, isa, dtype):
    """Ties, subnormals and what overflows: the mean of each two neighbours, and four times as much, as torch rounds it."""
    monkeypatch.setenv(cpu.ISA_VARIABLE, isa)
    numbers = torch.arange(2**15 - 1).to(torch.int16).view(dtype)
    numbers = numbers[numbers.isfinite()]
    pairs = torch.stack([numbers[:-1], numbers[1:]], dim=-1).view(-1, 2, 1, 1)  # an image of two pixels each
    between = torch.full((len(pairs), 1, 1, 1, 1, 2), 0.5)
    for factor in (1.0, 4.0):
        expected = (pairs.double().mean(1) * factor).float().to(dtype)
        found = ms_deform_attn(pairs, [(1, 2)], between, torch.full((len(pairs), 1, 1, 1, 1), factor), backend="cpu")
        assert torch.equal(found.flatten(), expected.flatten())


def test_the_operator_imports_without_the_rest():
    """`deformable_detr.ops` needs torch alone."""
    blocked = [
        "torchvision",
        "timm",
        "accelerate",
        "scipy",
        "supervision",
        "cv2",
        "rich",
        "matplotlib",
        "faster_coco_eval",
        "transformers",
    ]
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked})); import deformable_detr.ops as o; print(o.available_backends())"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env={**os.environ})
    assert run.returncode == 0, run.stderr
    assert "reference" in run.stdout


def test_one_core_in_one_thread_alone():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with ThreadPoolExecutor(1, initializer=cpu.use_one_core_here) as pool:
            assert pool.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
