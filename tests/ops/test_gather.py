import pytest
import torch

from deformable_detr.ops import ms_deform_attn, ms_deform_attn_fused

SHAPES = ((6, 9), (3, 5), (1, 2))
TOKENS = sum(height * width for height, width in SHAPES)


def inputs(dtype, batch=2, queries=7, heads=3, channels=4, points=2):
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(batch, TOKENS, heads, channels, generator=generator, dtype=dtype)
    places = torch.rand(batch, queries, heads, len(SHAPES), points, 2, generator=generator, dtype=dtype) * 1.6 - 0.3
    weights = torch.randn(batch, queries, heads, len(SHAPES), points, generator=generator, dtype=dtype)
    return value, places, weights


def test_gather_gives_what_grid_sample_gives_inside_and_outside():
    value, places, weights = inputs(torch.float64)
    expected = ms_deform_attn(value, SHAPES, places, weights, backend="reference")
    torch.testing.assert_close(ms_deform_attn(value, SHAPES, places, weights, backend="gather"), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("numbers", [2, 4])
def test_fused_form(numbers):
    value, places, weights = inputs(torch.float32)
    reference = torch.rand(2, 7, len(SHAPES), numbers, generator=torch.Generator().manual_seed(1))
    expected = ms_deform_attn_fused(value, SHAPES, reference, places, weights, backend="reference")
    found = ms_deform_attn_fused(value, SHAPES, reference, places, weights, backend="gather")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_one_place_worked_out_by_hand():
    value = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)  # one level, rows (1, 2) and (3, 4)
    places = torch.tensor([[0.5, 0.5], [0.25, 0.25], [0.0, 0.25]]).view(1, 3, 1, 1, 1, 2)
    found = ms_deform_attn(value, [(2, 2)], places, torch.ones(1, 3, 1, 1, 1), backend="gather")
    assert found.flatten().tolist() == [2.5, 1.0, 0.5]  # the middle of all; a pixel's centre; half of it lies outside
