"""Derivatives of every order and direction, of the kernels and the plain forms, against finite differences in float64."""

import pytest
import torch
from torch.autograd import forward_ad

from deformable_detr.ops import available_backends, ms_deform_attn, ms_deform_attn_fused

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Attempted to insert a get_attr Node")
BACKENDS = [name for name in (*available_backends(), "gather") if name != "triton"]
SMALL = {"shapes": [(6, 4), (3, 2)], "batch": 2, "queries": 5, "heads": 2, "channels": 8, "points": 3}


@pytest.fixture(params=[0, 2, 4])
def problem(request, problems):
    return problems(**SMALL, reference=request.param)


def operator(problem, backend):
    """The operator as a function of the problem's tensors."""

    def run(value, *geometry):
        if len(geometry) == 2:
            return ms_deform_attn(value, problem.shapes, *geometry, backend=backend)
        return ms_deform_attn_fused(value, problem.shapes, *geometry, backend=backend)

    return run


def exact(problem):
    return operator(problem, "reference"), tuple(t.double() for t in problem.tensors())


def close(found, expected):
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["reference", "gather"])
def test_plain_forms_by_finite_differences(problems, form):
    p = problems(shapes=[(3, 4), (2, 1)], batch=1, queries=2, heads=2, channels=2, points=2, reference=4).leaves(torch.float64)
    assert torch.autograd.gradcheck(operator(p, form), p.tensors(), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(operator(p, form), p.tensors())


@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_mode(problem, backend):
    tensors = tuple(problem.tensors())
    tangents = tuple(torch.randn(t.shape, generator=torch.Generator().manual_seed(3)) for t in tensors)
    function, doubles = exact(problem)
    expected = torch.func.jvp(function, doubles, tuple(t.double() for t in tangents))[1]
    run = operator(problem, backend)
    close(torch.func.jvp(run, tensors, tangents)[1], expected)
    close(torch.func.linearize(run, *tensors)[1](*tangents), expected)
    for requires_grad in (False, True):
        with forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(t.clone().requires_grad_(requires_grad), d) for t, d in zip(tensors, tangents, strict=True)
            ]
            tangent = forward_ad.unpack_dual(run(*duals)).tangent
            assert tangent is not None
            close(tangent.detach(), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_tangent_alone(problem, backend):
    """The tangent of a tensor that does not move is absent, not zero."""
    tensors, run = problem.tensors(), operator(problem, backend)
    for i, tensor in enumerate(tensors):

        def of_one(x, i=i):
            return run(*tensors[:i], x, *tensors[i + 1 :])

        function, doubles = exact(problem)
        zeros = [torch.zeros_like(d) for d in doubles]
        zeros[i] = doubles[i]
        close(torch.func.jvp(of_one, (tensor,), (tensor,))[1], torch.func.jvp(function, doubles, tuple(zeros))[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_reverse_mode_transforms(problem, backend):
    tensors, run = tuple(problem.tensors()), operator(problem, backend)
    function, doubles = exact(problem)
    every = tuple(range(len(tensors)))

    def loss(f):
        return lambda *t: f(*t).square().sum()

    for found, expected in zip(
        torch.func.grad(loss(run), every)(*tensors), torch.func.grad(loss(function), every)(*doubles), strict=True
    ):
        close(found, expected)
    grad = torch.ones(2, 5, 16)
    pulled = torch.func.vjp(run, *tensors)[1](grad)
    for found, expected in zip(pulled, torch.func.vjp(function, *doubles)[1](grad.double()), strict=True):
        close(found, expected)
    close(torch.func.jacrev(run, 0)(*tensors), torch.func.jacrev(function, 0)(*doubles))
    close(torch.func.jacfwd(run, len(every) - 1)(*tensors), torch.func.jacfwd(function, len(every) - 1)(*doubles))


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap_of_gradients_and_gradients_of_vmap(problem, backend):
    tensors, run = tuple(problem.tensors()), operator(problem, backend)

    def alone(*sample):
        return run(*(t[None] for t in sample)).square().sum()

    def loss(*batch):
        return run(*batch).square().sum()

    together = torch.func.grad(loss, tuple(range(len(tensors))))(*tensors)
    for found, expected in zip(torch.vmap(torch.func.grad(alone, tuple(range(len(tensors)))))(*tensors), together, strict=True):
        close(found, expected.double())
    through = torch.func.grad(lambda *t: torch.vmap(alone)(*t).sum(), tuple(range(len(tensors))))(*tensors)
    for found, expected in zip(through, together, strict=True):
        close(found, expected.double())


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives(problem, backend):
    """Of the kernels by the plain form: by autograd twice, and forward over reverse."""
    run = operator(problem, backend)
    function, doubles = exact(problem)

    def twice(f, tensors):
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        first = torch.autograd.grad(f(*leaves).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum((g.square().sum() for g in first), torch.zeros(())), leaves)

    for found, expected in zip(twice(run, problem.tensors()), twice(function, doubles), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    if backend == "reference":
        return  # grid_sample's backward has no forward-mode derivative

    def hessian(f, value, *geometry):
        return torch.func.hessian(lambda v: f(v, *geometry).square().sum())(value)

    expected = hessian(operator(problem, "gather"), *doubles)
    close(hessian(run, *problem.tensors()), expected)
