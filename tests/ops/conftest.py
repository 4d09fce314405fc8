"""Random problems for the operator, and its definition in float64 to compare with."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from deformable_detr.ops.reference import multi_scale_deformable_attn_pytorch

FOUR_LEVELS = [(10, 17), (5, 8), (3, 4), (1, 2)]


@dataclass
class Problem:
    value: Tensor
    shapes: list[tuple[int, int]]
    reference: Tensor | None
    offsets: Tensor
    weights: Tensor

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.value, self.reference, self.offsets, self.weights) if t is not None]

    def map(self, function) -> "Problem":
        reference = None if self.reference is None else function(self.reference)
        return Problem(function(self.value), self.shapes, reference, function(self.offsets), function(self.weights))

    def leaves(self, dtype=None) -> "Problem":
        return self.map(lambda t: t.detach().clone().to(dtype or t.dtype).requires_grad_())


def make_problem(
    shapes=FOUR_LEVELS, batch=2, queries=37, heads=8, channels=32, points=4, reference=2, seed=0, spread=2.0
) -> Problem:
    """`reference` 0: locations and weights; otherwise that many numbers per reference. Some samples lie outside."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*size):
        return torch.randn(*size, generator=generator)

    levels = len(shapes)
    value = randn(batch, sum(h * w for h, w in shapes), heads, channels)
    weights = randn(batch, queries, heads, levels, points)
    if reference:
        centres = torch.rand(batch, queries, levels, reference, generator=generator)
        return Problem(value, shapes, centres, randn(batch, queries, heads, levels, points, 2) * 2, weights)
    locations = 0.5 + 0.5 * randn(batch, queries, heads, levels, points, 2)
    return Problem(value, shapes, None, locations, weights.softmax(-1))


def by_definition(problem: Problem) -> Tensor:
    """Equation 3 with softmax and locations written out, in the type of the problem's tensors; nothing of the code under test but
    the sampling itself, which test_reference.py checks against a loop over pixels."""
    if problem.reference is None:
        return multi_scale_deformable_attn_pytorch(problem.value, problem.shapes, problem.offsets, problem.weights)
    weights = problem.weights.flatten(3).softmax(-1).view_as(problem.weights)
    centre = problem.reference[:, :, None, :, None, :2]
    if problem.reference.shape[-1] == 2:
        size = torch.tensor([(w, h) for h, w in problem.shapes], dtype=weights.dtype)
        locations = centre + problem.offsets / size[:, None, :]
    else:
        locations = centre + problem.offsets / problem.offsets.shape[4] * problem.reference[:, :, None, :, None, 2:] / 2
    return multi_scale_deformable_attn_pytorch(problem.value, problem.shapes, locations, weights)


def gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def gradients(function, problem: Problem, grad_output: Tensor) -> list[Tensor]:
    """[output, gradient of each tensor of the problem]."""
    output = function(problem)
    output.backward(grad_output.to(output.dtype))
    return [output.detach(), *(gradient(t) for t in problem.tensors())]


def largest_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest expected value."""
    return ((found.double() - expected.double()).abs().max() / expected.abs().max().clamp_min(1e-12)).item()


@pytest.fixture(scope="session")
def problems():
    return make_problem


@pytest.fixture(scope="session")
def definition():
    return by_definition


@pytest.fixture(scope="session")
def with_gradients():
    return gradients


@pytest.fixture(scope="session")
def error_of():
    return largest_error
