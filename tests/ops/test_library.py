"""What torch's compilers and transforms see of the operator."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deformable_detr.ops import available_backends, ms_deform_attn, ms_deform_attn_fused

pytestmark = pytest.mark.skipif("cpu" not in available_backends(), reason="the CPU kernels are not built")
OPERATOR = torch.ops.deformable_detr.ms_deform_attn.default


class Attention(torch.nn.Module):
    """The operator as a module, with shapes known beforehand."""

    def __init__(self, shapes, fused):
        super().__init__()
        self.shapes, self.fused = shapes, fused

    def forward(self, value, *geometry):
        if self.fused:
            return ms_deform_attn_fused(value, self.shapes, *geometry)
        return ms_deform_attn(value, self.shapes, *geometry)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck itself looks at it
@pytest.mark.parametrize("reference", [0, 2, 4])
def test_opcheck(problems, reference):
    p = problems(reference=reference, queries=5).leaves()
    shapes = [size for pair in p.shapes for size in pair]
    torch.library.opcheck(OPERATOR, (p.value, shapes, p.reference, p.offsets, p.weights, "cpu"))


@pytest.mark.parametrize("reference", [0, 2, 4])
def test_compiles_in_one_graph_with_gradients(problems, with_gradients, error_of, reference):
    p = problems(reference=reference, queries=5)
    module = Attention(p.shapes, bool(reference))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    grad = torch.randn(2, 5, 256)
    found = with_gradients(lambda q: compiled(*q.tensors()), p.leaves(), grad)
    expected = with_gradients(lambda q: module(*q.tensors()), p.leaves(), grad)
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


def test_compiles_with_dynamic_sizes(problems):
    calls = []

    def backend(graph, inputs):
        calls.append(sum("ms_deform_attn" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    compiled = torch.compile(ms_deform_attn_fused, fullgraph=True, dynamic=True, backend=backend)
    for shapes, queries in (([(6, 5), (3, 4)], 7), ([(8, 7), (4, 3)], 9)):
        p = problems(shapes=shapes, queries=queries)
        found = compiled(p.value, p.shapes, p.reference, p.offsets, p.weights)
        assert torch.equal(found, ms_deform_attn_fused(p.value, p.shapes, p.reference, p.offsets, p.weights))
    assert calls == [1]


@pytest.mark.parametrize("reference", [0, 2, 4])
def test_export_needs_nothing_of_this_package(problems, error_of, reference):
    p = problems(reference=reference, queries=5)
    module = Attention(p.shapes, bool(reference))
    program = torch.export.export(module, tuple(p.tensors()))
    assert "deformable_detr" not in str(program.graph)
    assert error_of(program.module()(*p.tensors()), module(*p.tensors())) < 1e-5


class FromMaps(torch.nn.Module):
    """Sizes come from the inputs, as in a model exported with a free image size."""

    def forward(self, high, low, reference, offsets, logits):
        shapes = [tuple(level.shape[-2:]) for level in (high, low)]
        value = torch.cat([level.flatten(2).transpose(1, 2) for level in (high, low)], 1).unflatten(2, (2, 8))
        return ms_deform_attn_fused(value, shapes, reference, offsets, logits)


def test_export_with_free_image_sizes(problems, error_of):
    def inputs(shapes):
        p = problems(shapes=shapes, queries=5, heads=2, channels=8)
        maps = [torch.randn(2, 16, h, w) for h, w in shapes]
        return (*maps, p.reference, p.offsets, p.weights)

    sizes = [{2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}] * 2
    program = torch.export.export(FromMaps(), inputs([(8, 6), (4, 3)]), dynamic_shapes=(*sizes, None, None, None))
    other = inputs([(12, 10), (5, 7)])
    assert error_of(program.module()(*other), FromMaps()(*other)) < 1e-5


def test_autocast_keeps_the_type_of_value_and_exact_geometry(problems):
    p = problems(queries=5)
    expected = ms_deform_attn_fused(p.value, p.shapes, p.reference, p.offsets, p.weights)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ms_deform_attn_fused(p.value, p.shapes, p.reference, p.offsets, p.weights), expected)
        low = ms_deform_attn_fused(p.value.bfloat16(), p.shapes, p.reference, p.offsets, p.weights)
        shapes = [size for pair in p.shapes for size in pair]
        geometry = (p.reference.double(), p.offsets.bfloat16(), p.weights.bfloat16())
        assert OPERATOR(p.value, shapes, *geometry, "cpu").dtype == torch.float32
    assert low.dtype == torch.bfloat16


@pytest.mark.parametrize("reference", [0, 2])
def test_vmap_equals_a_loop(problems, reference):
    several = [problems(reference=reference, queries=5, batch=1, seed=seed) for seed in range(3)]
    shared = several[0].value
    module = Attention(several[0].shapes, bool(reference))
    stacked = [torch.stack([p.tensors()[i] for p in several], dim=1) for i in range(1, len(several[0].tensors()))]
    found = torch.vmap(module, in_dims=(None, *[1] * len(stacked)))(shared, *stacked)
    expected = torch.stack([module(shared, *p.tensors()[1:]) for p in several])
    assert torch.equal(found, expected)


def test_vmap_over_gradients(problems):
    p = problems(reference=2, queries=3, batch=1)
    grads = torch.randn(4, 1, 3, 256)
    q = p.leaves()
    output = ms_deform_attn_fused(q.value, q.shapes, q.reference, q.offsets, q.weights)
    together = torch.autograd.grad(output, q.tensors(), grads, is_grads_batched=True, retain_graph=True)
    for i, grad in enumerate(grads):
        alone = torch.autograd.grad(output, q.tensors(), grad, retain_graph=True)
        for t, a in zip(together, alone, strict=True):
            torch.testing.assert_close(t[i], a)


class TableAttention(torch.nn.Module):
    """The sizes of the levels come as a tensor: an argument, or one that the module holds."""

    def __init__(self, table, backend=None):
        super().__init__()
        self.table, self.backend = table, backend

    def forward(self, value, *geometry, table=None):
        table = self.table if table is None else table
        function = ms_deform_attn if len(geometry) == 2 else ms_deform_attn_fused
        return function(value, table, *geometry, backend=self.backend)


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("reference", [0, 2])
def test_sizes_in_a_tensor_compile_into_one_node(problems, with_gradients, error_of, reference, backend, held):
    p = problems(reference=reference, queries=5)
    table = torch.tensor(p.shapes)
    module = TableAttention(table, backend)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    given = {} if held else {"table": table}
    grad = torch.randn(2, 5, 256)
    found = with_gradients(lambda q: compiled(*q.tensors(), **given), p.leaves(), grad)
    expected = with_gradients(lambda q: module(*q.tensors()), p.leaves(), grad)
    assert all(error_of(f, e) < 1e-6 for f, e in zip(found, expected, strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck_with_sizes_in_a_tensor(problems):
    p = problems(reference=0, queries=5).leaves()
    overload = torch.ops.deformable_detr.ms_deform_attn.table
    table = torch.tensor(p.shapes)
    torch.library.opcheck(overload, (p.value, table, None, p.offsets, p.weights, "cpu"))


def test_the_registered_operator_itself_points_to_the_function(problems):
    p = problems(queries=3)
    shapes = [size for pair in p.shapes for size in pair]
    with pytest.raises(NotImplementedError, match=r"call deformable_detr\.ops"):
        torch.func.grad(lambda v: OPERATOR(v, shapes, p.reference, p.offsets, p.weights, "cpu").sum())(p.value)


class Seen(TorchDispatchMode):
    """The names of this package's operators that pass."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "deformable_detr":
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_modes_and_profilers_see_both_operators(problems):
    """Plain calls do not pass the dispatcher, which must not show."""
    p = problems(queries=5).leaves()
    names = ["ms_deform_attn", "ms_deform_attn_backward"]
    with Seen() as seen:
        ms_deform_attn_fused(p.value, p.shapes, p.reference, p.offsets, p.weights).sum().backward()
    assert seen.names == names
    with torch.profiler.profile() as profile:
        ms_deform_attn_fused(p.value, p.shapes, p.reference, p.offsets, p.weights).sum().backward()
    found = {event.key for event in profile.key_averages()}
    assert {f"deformable_detr::{name}" for name in names} <= found


class Named(torch.Tensor):
    """A subclass with nothing of its own: what is computed from it is one, too."""


def test_subclasses_stay_what_they_are(problems):
    p = problems(queries=5)
    output = ms_deform_attn_fused(p.value.as_subclass(Named), p.shapes, p.reference, p.offsets, p.weights)
    assert isinstance(output, Named)
    expected = ms_deform_attn_fused(p.value, p.shapes, p.reference, p.offsets, p.weights)
    assert torch.equal(output.as_subclass(torch.Tensor), expected)


def test_tensors_that_are_more_than_their_memory(problems):
    """A negated view: what lies in its memory has the other sign."""
    p = problems(queries=5)
    negated = torch._neg_view(p.value)
    expected = -ms_deform_attn_fused(p.value, p.shapes, p.reference, p.offsets, p.weights)
    assert torch.equal(ms_deform_attn_fused(negated, p.shapes, p.reference, p.offsets, p.weights), expected)


def test_inference_mode_and_ordinary_tensors_mixed(problems):
    p = problems(queries=5)
    expected = ms_deform_attn_fused(p.value, p.shapes, p.reference, p.offsets, p.weights)
    with torch.inference_mode():
        assert torch.equal(ms_deform_attn_fused(p.value.clone(), p.shapes, p.reference, p.offsets, p.weights), expected)
