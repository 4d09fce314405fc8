"""Registration with torch.library: one forward and one backward operator that compile, autograd, autocast and vmap know.

`torch.ops.deformable_detr.ms_deform_attn(value, shapes, reference, offsets, weights, backend)`: with `reference` None,
`offsets` are sampling locations and `weights` attention weights; otherwise the fused form. `shapes` is `h_0, w_0, h_1, …`;
in the overload `.table` it is a tensor `[L, 2 | 3]`, so that a compiled program with sizes that only its run knows has one
node too. :func:`attention` is what calls them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from deformable_detr.ops import cpu
from deformable_detr.ops.levels import Pairs, check_tokens, pairs_of_table
from deformable_detr.ops.listening import nothing_listens
from deformable_detr.ops.plain import PLAIN, plain_attention, plain_backward

Shapes = Sequence[int] | Tensor
DERIVATIVES = "gather"
"""The plain form whose derivatives of any order and direction replace those that the kernels do not have."""

_LIBRARY = torch.library.Library("deformable_detr", "FRAGMENT")
_FORWARD, _BACKWARD = "ms_deform_attn", "ms_deform_attn_backward"


def attention(value: Tensor, shapes: Shapes, reference: Tensor | None, offsets: Tensor, weights: Tensor, backend: str) -> Tensor:
    """The operator, with derivatives of every order and direction: those that the kernels do not have are the plain form's."""
    inputs = (value, shapes, reference, offsets, weights, backend)
    if forward_ad._current_level >= 0:  # jvp, linearize, jacfwd, make_dual
        return plain_attention(DERIVATIVES, value, _pairs(value, shapes), reference, offsets, weights)
    if _direct(backend, inputs):
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            return _DirectAttention.apply(*inputs)  # pyright: ignore[reportReturnType]
        return _forward(*inputs)
    if torch._C._are_functorch_transforms_active():  # they take an autograd.Function apart, but not a registered operator
        return _Attention.apply(*inputs)  # pyright: ignore[reportReturnType]
    return _operator(_FORWARD, shapes)(*inputs)


def _gradients(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if forward_ad._current_level >= 0:
        tensors, plain = _plain_gradients(inputs)
        return plain(*tensors)  # pyright: ignore[reportReturnType]
    if not torch.is_grad_enabled() and _direct(inputs[-2], inputs):
        return _backward(*inputs)
    if torch._C._are_functorch_transforms_active():
        return _Gradients.apply(*inputs)  # pyright: ignore[reportReturnType]
    return _operator(_BACKWARD, inputs[2])(*inputs)


def _direct(backend: str, inputs: Sequence[Any]) -> bool:
    """Whether the dispatcher would only hand the call on to the kernels, which takes it longer than them for a few queries."""
    return backend not in PLAIN and nothing_listens(*(x for x in inputs if isinstance(x, Tensor)))


def _operator(name: str, shapes: Shapes) -> Any:
    packet = getattr(torch.ops.deformable_detr, name)
    return packet.table if isinstance(shapes, Tensor) else packet.default


def _pairs(value: Tensor, shapes: Shapes) -> Pairs:
    if not isinstance(shapes, Tensor):
        return list(zip(shapes[::2], shapes[1::2], strict=True))
    pairs = pairs_of_table(shapes)
    check_tokens(value, pairs)
    return pairs


def _sizes(value: Tensor, shapes: Shapes) -> Sequence[int]:
    return [size for pair in _pairs(value, shapes) for size in pair] if isinstance(shapes, Tensor) else shapes


# ---- what runs: below autograd, on plain tensors


def _kernels(backend: str) -> Any:
    """The module with `forward` and `backward` of this name; Triton is imported only when it is asked for."""
    if backend == "cpu":
        return cpu
    if backend == "triton":
        from deformable_detr.ops import triton_kernels

        return triton_kernels
    raise ValueError(f"backend: {backend!r} has no kernels, only 'cpu' and 'triton' have")


def _forward(value: Tensor, shapes: Shapes, reference: Tensor | None, offsets: Tensor, weights: Tensor, backend: str) -> Tensor:
    if backend in PLAIN:
        return plain_attention(backend, value, _pairs(value, shapes), reference, offsets, weights)
    return _kernels(backend).forward(value, _sizes(value, shapes), reference, offsets, weights)


def _backward(
    grad_output: Tensor,
    value: Tensor,
    shapes: Shapes,
    reference: Tensor | None,
    offsets: Tensor,
    weights: Tensor,
    backend: str,
    with_reference: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if backend in PLAIN:
        pairs = _pairs(value, shapes)
        with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False):
            return plain_backward(backend, grad_output, value, pairs, reference, offsets, weights, with_reference)
    return _kernels(backend).backward(grad_output, value, _sizes(value, shapes), reference, offsets, weights, with_reference)


def _forward_fake(
    value: Tensor, shapes: Shapes, reference: Tensor | None, offsets: Tensor, weights: Tensor, backend: str
) -> Tensor:
    return value.new_empty(value.shape[0], offsets.shape[1], value.shape[2] * value.shape[3])


def _backward_fake(
    grad_output: Tensor,
    value: Tensor,
    shapes: Shapes,
    reference: Tensor | None,
    offsets: Tensor,
    weights: Tensor,
    backend: str,
    with_reference: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_reference = offsets.new_empty(reference.shape if with_reference and reference is not None else (0,))
    return value.new_empty(value.shape), grad_reference, offsets.new_empty(offsets.shape), weights.new_empty(weights.shape)


# ---- derivatives


class _Attention(torch.autograd.Function):
    """Its backward pass is the kernels'."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        with torch._C._AutoDispatchBelowAutograd():
            return _operator(_FORWARD, inputs[1])(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.layout = _save(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs = _saved(ctx)
        with_reference = ctx.needs_input_grad[2]
        grad_value, grad_reference, grad_offsets, grad_weights = _gradients(grad_output, *inputs, with_reference)
        return grad_value, None, grad_reference if with_reference else None, grad_offsets, grad_weights, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[Tensor, int]:
        return attention(*_fold(info, in_dims, inputs)).unflatten(0, (info.batch_size, -1)), 0


class _DirectAttention(torch.autograd.Function):
    """The same where nothing listens: PyTorch looks up the signature of a `forward` that torch.func can take apart at each call,
    which takes as long as the kernel for a few queries."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.layout = _save(ctx, inputs)
        return _forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple:
        return _Attention.backward(ctx, *grads)


class _Gradients(torch.autograd.Function):
    """The backward pass, whose own derivatives are those of the plain form."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        with torch._C._AutoDispatchBelowAutograd():
            return _operator(_BACKWARD, inputs[2])(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.layout = _save(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
        tensors, plain = _plain_gradients(_saved(ctx))
        found = iter(torch.func.vjp(plain, *tensors)[1](grads))
        return tuple(next(found) if isinstance(x, Tensor) and i != 2 else None for i, x in enumerate(_saved(ctx)))

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[tuple, tuple]:
        grads = _gradients(*_fold(info, in_dims, inputs))
        wanted = inputs[-1] and inputs[3] is not None
        unfolded = tuple(g.unflatten(0, (info.batch_size, -1)) if i != 1 or wanted else g for i, g in enumerate(grads))
        return unfolded, tuple(0 if i != 1 or wanted else None for i in range(4))


def _plain_gradients(inputs: Sequence[Any]) -> tuple[list[Tensor], Callable[..., tuple[Tensor, ...]]]:
    """The tensors a backward pass depends on, and that pass as a function of them, in plain operations."""
    grad_output, value, shapes, reference, offsets, weights, _, with_reference = inputs
    pairs = _pairs(value, shapes)

    def plain(grad_output: Tensor, value: Tensor, *geometry: Tensor) -> tuple[Tensor, ...]:
        reference = geometry[0] if len(geometry) == 3 else None
        return plain_backward(DERIVATIVES, grad_output, value, pairs, reference, geometry[-2], geometry[-1], with_reference)

    return [t for t in (grad_output, value, reference, offsets, weights) if t is not None], plain


def _save(ctx: Any, inputs: tuple) -> list:
    """Saves the tensors among the inputs; returns the rest, with None in place of the tensors."""
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    ctx.save_for_backward(*tensors)
    return [(isinstance(x, Tensor), None if isinstance(x, Tensor) else x) for x in inputs]


def _saved(ctx: Any) -> list:
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if is_tensor else other for is_tensor, other in ctx.layout]


def _fold(info: Any, in_dims: tuple, inputs: tuple) -> list:
    """`[B, …]` with a vmap dimension somewhere (or nowhere) → `[size * B, …]`, for all tensors but the shapes.

    Raises:
        NotImplementedError: vmap goes over the shapes.
    """
    folded = []
    shapes = next(i for i, x in enumerate(inputs) if not isinstance(x, Tensor) or not x.is_floating_point())
    for i, (x, dim) in enumerate(zip(inputs, in_dims, strict=True)):
        if i == shapes and isinstance(x, Tensor) and dim is not None:
            raise NotImplementedError("ms_deform_attn: vmap over spatial_shapes: all problems of a batch must have the same levels")
        if i == shapes or not isinstance(x, Tensor):
            folded.append(x)
        else:
            moved = x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            folded.append(moved.flatten(0, 1))
    return folded


# ---- dispatcher


def _autograd(function: Any, name: str, place_of_shapes: int) -> Callable[..., Any]:
    def run(*inputs: Any) -> Any:
        if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
            raise NotImplementedError(f"torch.ops.deformable_detr.{name} under torch.func: call deformable_detr.ops instead")
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            return function.apply(*inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return _operator(name, inputs[place_of_shapes])(*inputs)

    return run


def _autocast(key: torch._C.DispatchKey) -> Callable[..., Tensor]:
    """Under autocast `value` keeps its type (the output follows it) and everything geometric is computed in float32."""
    excluded = torch._C.DispatchKeySet(key)

    def run(value: Tensor, shapes: Shapes, reference: Tensor | None, offsets: Tensor, weights: Tensor, backend: str) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            reference = None if reference is None else reference.float()
            if backend != "cpu":  # which widens them as it reads
                offsets, weights = offsets.float(), weights.float()
            return _operator(_FORWARD, shapes)(value, shapes, reference, offsets, weights, backend)

    return run


for _overload, _kind in (("", "SymInt[]"), (".table", "Tensor")):
    _inputs = f"Tensor value, {_kind} shapes, Tensor? reference, Tensor offsets, Tensor weights, str backend"
    _LIBRARY.define(f"{_FORWARD}{_overload}({_inputs}) -> Tensor")
    _LIBRARY.define(
        f"{_BACKWARD}{_overload}(Tensor grad_output, {_inputs}, bool with_reference) -> (Tensor, Tensor, Tensor, Tensor)"
    )
    for _name, _function, _fake, _kernel, _place in (
        (_FORWARD, _Attention, _forward_fake, _forward, 1),
        (_BACKWARD, _Gradients, _backward_fake, _backward, 2),
    ):
        _LIBRARY.impl(_name + _overload, _kernel, "CompositeExplicitAutograd")
        _LIBRARY.impl(_name + _overload, _autograd(_function, _name, _place), "Autograd")
        torch.library.register_fake(f"deformable_detr::{_name}{_overload}", _fake, lib=_LIBRARY)
        torch.library.register_vmap(f"deformable_detr::{_name}{_overload}", _function.vmap, lib=_LIBRARY)
    for _device in ("CPU", "CUDA"):
        _LIBRARY.impl(_FORWARD + _overload, _autocast(getattr(torch._C.DispatchKey, f"Autocast{_device}")), f"Autocast{_device}")
