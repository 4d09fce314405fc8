"""Winograd's convolutions against a direct one in float64, for every set of instructions that this processor has."""

import math

import pytest
import torch
import torch.nn.functional as F

from deformable_detr.ops import cpu, winograd
from deformable_detr.ops.winograd import transform_weights, winograd_available, winograd_convolution

pytestmark = pytest.mark.usefixtures("isa")


@pytest.fixture(params=cpu.supported_isas())
def isa(request, monkeypatch):
    monkeypatch.setenv(cpu.ISA_VARIABLE, request.param)
    return request.param


def problem(batch=1, channels=32, outputs=32, height=9, width=14, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, added = (torch.randn(batch, c, height, width, generator=generator) for c in (channels, outputs))
    weight = torch.randn(outputs, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
    return x, weight, torch.randn(outputs, generator=generator), added


def expected(x, weight, bias=None, added=None, *, relu=False):
    result = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)
    result = result if added is None else result + added
    return result.relu() if relu else result


def assert_close(found, truth):
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), truth, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 4), (4, 4), (5, 8), (9, 14), (24, 33)])
@pytest.mark.parametrize(("channels", "outputs"), [(32, 32), (96, 64), (320, 32)])
def test_sizes_and_channels(size, channels, outputs):
    x, weight, *_ = problem(2, channels, outputs, *size)
    assert_close(winograd_convolution(x, transform_weights(weight)), expected(x, weight))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_sum", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_what_is_fused(with_bias, with_sum, relu):
    x, weight, bias, added = problem()
    bias, added = bias if with_bias else None, added if with_sum else None
    found = winograd_convolution(x, transform_weights(weight), bias, added, relu=relu)
    assert_close(found, expected(x, weight, bias, added, relu=relu))


@pytest.mark.parametrize("threads", [1, 3])
def test_many_blocks_and_threads(monkeypatch, threads):
    x, weight, bias, _ = problem(3, 64, 32, 21, 50)
    monkeypatch.setattr(winograd, "BUFFER_FLOATS", 36 * 64 * 30)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert_close(winograd_convolution(x, transform_weights(weight), bias), expected(x, weight, bias))


def test_the_sum_may_be_stored_where_the_added_tensor_was():
    x, weight, bias, added = problem()
    added = added.contiguous(memory_format=torch.channels_last)
    truth = expected(x, weight, bias, added, relu=True)
    found = winograd_convolution(x, transform_weights(weight), bias, added, relu=True, out=added)
    assert found is added
    assert_close(added, truth)


def test_memory_formats():
    x, weight, *_ = problem(2)
    weights = transform_weights(weight)
    found = winograd_convolution(x, weights)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, winograd_convolution(x.contiguous(memory_format=torch.channels_last), weights))


@pytest.mark.parametrize("channels", [32, 256, 512])
def test_rounding_stays_within_what_float32_gives(channels):
    """Root mean square of the error against a bound computed from the definition in float64, for any order of the sums.

    Each rounding of x adds at most u |x| / sqrt(3) in the root mean square, u = 2^-24 (uniform within half a unit). One by one, C
    products with independent signs give partial sums of C / 2 times the variance of the whole one; about 14 more roundings belong
    to the transforms, weights and product. The output transform A then weighs the variances of the 36 positions with A². The
    usual roots ±1 and ±2 come out above twice this bound, and the direct convolution far below it.
    """
    x, weight, *_ = problem(1, channels, 64, 20, 20)
    a, b, g = toom_cook((0, 2 / 3, -2 / 3, 3 / 2, -3 / 2))
    tiles = b @ F.pad(x.double(), (1, 1, 1, 1)).unfold(2, 6, 4).unfold(3, 6, 4) @ b.T  # [B, C, Y, X, 6, 6]
    products = torch.einsum("bcyxij,ocij->boyxij", tiles, g @ weight.double() @ g.T)
    truth = (a.T @ products @ a).permute(0, 1, 2, 4, 3, 5).reshape(1, 64, 20, 20)
    assert_close(truth.float(), expected(x, weight))
    variance = (a.square().T @ products.square().mean((0, 1, 2, 3)) @ a.square()).mean() * (channels / 2 + 14) / 3
    error = winograd_convolution(x, transform_weights(weight)).double() - truth
    assert error.square().mean() < 2.0**-48 * variance


def toom_cook(roots):
    """A [6, 4], B transposed [6, 6] and G [6, 3] of F(4, 3) with these five roots and infinity, from their definition."""
    a, b, g = torch.zeros(6, 4).double(), torch.zeros(6, 6).double(), torch.zeros(6, 3).double()
    for i, root in enumerate(roots):
        others = [other for other in roots if other != root]
        powers = torch.tensor([float(root) ** power for power in range(4)]).double()
        a[i], b[i, :5] = powers, polynomial(others)
        g[i] = powers[:3] / math.prod(root - other for other in others)
    a[5, 3], b[5], g[5, 2] = 1, polynomial(roots), 1
    return a, b, g


def polynomial(roots):
    """Coefficients of the product of (x - root), the constant one first."""
    result = torch.ones(1).double()
    for root in roots:
        result = F.pad(result, (1, 0)) - root * F.pad(result, (0, 1))
    return result


def test_nan_stays_where_it_matters():
    x, weight, *_ = problem(1, 32, 32, 8, 8)
    x[0, 3, 1, 1] = float("nan")
    found = winograd_convolution(x, transform_weights(weight), relu=True)
    assert found[0, :, :3, :3].isnan().all()
    assert found[0, :, 4:, 4:].isfinite().all()


def test_no_images():
    _, weight, *_ = problem()
    assert winograd_convolution(torch.empty(0, 32, 8, 8), transform_weights(weight)).shape == (0, 32, 8, 8)


def test_wrong_shapes():
    _, weight, *_ = problem()
    with pytest.raises(ValueError, match="multiples of 32"):
        transform_weights(weight[:, :31])
    with pytest.raises(ValueError, match="multiples of 32"):
        transform_weights(weight[..., :1])
    with pytest.raises(ValueError, match="take 32 channels, x has 64"):
        winograd_convolution(torch.zeros(1, 64, 4, 4), transform_weights(weight))


def test_availability(isa, monkeypatch):
    assert winograd_available() == (isa in ("avx2", "avx512"))
    monkeypatch.setattr(cpu, "missing_reason", lambda: "no compiler")
    assert not winograd_available()
