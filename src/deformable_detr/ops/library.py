"""Registration with torch.library: one forward and one backward operator that compile, autograd, autocast and vmap know.

`torch.ops.deformable_detr.ms_deform_attn(value, shapes, reference, offsets, weights, backend)`: with `reference` None,
`offsets` are sampling locations and `weights` attention weights; otherwise the fused form.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deformable_detr.ops import cpu

_INPUTS = "Tensor value, SymInt[] shapes, Tensor? reference, Tensor offsets, Tensor weights, str backend"
_LIBRARY = torch.library.Library("deformable_detr", "FRAGMENT")
_LIBRARY.define(f"ms_deform_attn({_INPUTS}) -> Tensor")
_LIBRARY.define(f"ms_deform_attn_backward(Tensor grad_output, {_INPUTS}, bool with_reference) -> (Tensor, Tensor, Tensor, Tensor)")
_FORWARD, _BACKWARD = "deformable_detr::ms_deform_attn", "deformable_detr::ms_deform_attn_backward"


def _kernels(backend: str) -> Any:
    """The module with `forward` and `backward` of this name; Triton is imported only when it is asked for."""
    if backend == "cpu":
        return cpu
    if backend == "triton":
        from deformable_detr.ops import triton_kernels

        return triton_kernels
    raise ValueError(f"backend: {backend!r} has no kernels, only 'cpu' and 'triton' have")


def _forward(
    value: Tensor, shapes: Sequence[int], reference: Tensor | None, offsets: Tensor, weights: Tensor, backend: str
) -> Tensor:
    return _kernels(backend).forward(value, shapes, reference, offsets, weights)


def _backward(
    grad_output: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    reference: Tensor | None,
    offsets: Tensor,
    weights: Tensor,
    backend: str,
    with_reference: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _kernels(backend).backward(grad_output, value, shapes, reference, offsets, weights, with_reference)


def _forward_fake(
    value: Tensor, shapes: Sequence[int], reference: Tensor | None, offsets: Tensor, weights: Tensor, backend: str
) -> Tensor:
    return value.new_empty(value.shape[0], offsets.shape[1], value.shape[2] * value.shape[3])


def _backward_fake(
    grad_output: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    reference: Tensor | None,
    offsets: Tensor,
    weights: Tensor,
    backend: str,
    with_reference: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wanted = with_reference and reference is not None
    grad_reference = offsets.new_empty(reference.shape if wanted and reference is not None else (0,))
    return value.new_empty(value.shape), grad_reference, offsets.new_empty(offsets.shape), weights.new_empty(weights.shape)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    value, ctx.shapes, reference, offsets, weights, ctx.backend = inputs
    ctx.save_for_backward(value, reference, offsets, weights)


def _autograd(ctx: Any, grad_output: Tensor) -> tuple:
    value, reference, offsets, weights = ctx.saved_tensors
    grad_value, grad_reference, grad_offsets, grad_weights = torch.ops.deformable_detr.ms_deform_attn_backward(
        grad_output, value, ctx.shapes, reference, offsets, weights, ctx.backend, ctx.needs_input_grad[2]
    )
    return grad_value, None, grad_reference if ctx.needs_input_grad[2] else None, grad_offsets, grad_weights, None


def _no_second_derivative(ctx: Any, *grads: Tensor) -> tuple:
    raise NotImplementedError("ms_deform_attn: the kernels have no second derivative; use backend='reference' for it")


def _autocast(key: torch._C.DispatchKey) -> Any:
    """Under autocast `value` keeps its type (the output follows it) and everything geometric is float32."""
    excluded = torch._C.DispatchKeySet(key)

    def run(
        value: Tensor, shapes: Sequence[int], reference: Tensor | None, offsets: Tensor, weights: Tensor, backend: str
    ) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            reference = None if reference is None else reference.float()
            return torch.ops.deformable_detr.ms_deform_attn(value, shapes, reference, offsets.float(), weights.float(), backend)

    return run


def _fold(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """`[B, …]` with a vmap dimension of `size` somewhere (or nowhere) → `[size * B, …]`."""
    if tensor is None:
        return None
    tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.flatten(0, 1)


def _forward_vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[Tensor, int]:
    value, shapes, reference, offsets, weights, backend = inputs
    size = info.batch_size
    folded = [_fold(tensor, in_dims[i], size) for i, tensor in ((0, value), (2, reference), (3, offsets), (4, weights))]
    output = torch.ops.deformable_detr.ms_deform_attn(folded[0], shapes, *folded[1:], backend)
    return output.unflatten(0, (size, -1)), 0


def _backward_vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[tuple, tuple]:
    grad_output, value, shapes, reference, offsets, weights, backend, with_reference = inputs
    size = info.batch_size
    tensors = ((0, grad_output), (1, value), (3, reference), (4, offsets), (5, weights))
    folded = [_fold(tensor, in_dims[i], size) for i, tensor in tensors]
    grads = torch.ops.deformable_detr.ms_deform_attn_backward(folded[0], folded[1], shapes, *folded[2:], backend, with_reference)
    wanted = with_reference and reference is not None
    unfolded = tuple(g.unflatten(0, (size, -1)) if i != 1 or wanted else g for i, g in enumerate(grads))
    return unfolded, tuple(0 if i != 1 or wanted else None for i in range(4))


_LIBRARY.impl("ms_deform_attn", _forward, "CompositeExplicitAutograd")
_LIBRARY.impl("ms_deform_attn_backward", _backward, "CompositeExplicitAutograd")
_LIBRARY.impl("ms_deform_attn", _autocast(torch._C.DispatchKey.AutocastCPU), "AutocastCPU")
_LIBRARY.impl("ms_deform_attn", _autocast(torch._C.DispatchKey.AutocastCUDA), "AutocastCUDA")
torch.library.register_fake(_FORWARD, _forward_fake, lib=_LIBRARY)
torch.library.register_fake(_BACKWARD, _backward_fake, lib=_LIBRARY)
torch.library.register_autograd(_FORWARD, _autograd, setup_context=_setup_context, lib=_LIBRARY)
torch.library.register_autograd(_BACKWARD, _no_second_derivative, lib=_LIBRARY)
torch.library.register_vmap(_FORWARD, _forward_vmap, lib=_LIBRARY)
torch.library.register_vmap(_BACKWARD, _backward_vmap, lib=_LIBRARY)
