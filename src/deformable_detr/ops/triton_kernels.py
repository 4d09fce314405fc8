"""The GPU kernels in Triton: one launch forward, one backward, fused and not; sums in float32 whatever the type of `value`.

A program takes some queries of one (batch, head) with all their sampling points as one tile `[queries, points, channels]`. There is
no loop, so all corners of all points are on their way from memory at once; softmax, sampling locations and their gradients stay in
registers. The gradient of `value` is added up with atomics; when torch.use_deterministic_algorithms is on, in 64-bit fixed point,
where the order of the additions does not matter.
"""

# Inside @triton.jit the names mean tensors of Triton, which type checkers do not know.
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportPossiblyUnboundVariable=false

import contextlib
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

FIXED_POINT_BITS = 38  # of the largest possible summand; leaves room for 2^25 of them in 64 bits


@triton.jit
def _axis(position, offset, size):
    """Floor, fraction and validity of a coordinate `position * size + offset - 0.5`; NaN and distant locations are outside."""
    pixel = position * size + offset - 0.5
    pixel = tl.where(pixel > -2.0, pixel, -2.0)
    pixel = tl.where(pixel < size + 1.0, pixel, size + 1.0)
    low = tl.floor(pixel)
    fraction = tl.fma(position, size, -(low + 0.5)) + offset  # rounds less than pixel - low
    fraction = tl.where(fraction > 0.0, fraction, 0.0)
    fraction = tl.where(fraction < 1.0, fraction, 1.0)
    return low.to(tl.int32), fraction


@triton.jit
def _corner(value, x, y, w, h, start, step, lane, channels):
    """The rows [BLOCK_Q, BLOCK_N, BLOCK_D] of one corner, zero outside, with where they are and whether they are inside."""
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    place = (tl.where(inside, start + y * w + x, 0) * step)[:, :, None] + lane[None, None, :]
    mask = inside[:, :, None] & (lane < channels)[None, None, :]
    return tl.load(value + place, mask=mask, other=0.0).to(tl.float32), place, mask


@triton.jit
def _attention(weights, place, mask, columns, N: tl.constexpr, R: tl.constexpr):
    """The attention weights [BLOCK_Q, BLOCK_N]: as given, or the softmax of what is given."""
    a = tl.load(weights + place, mask=mask, other=0.0)
    if R != 0:
        a = tl.where((columns < N)[None, :], a, float("-inf"))
        a = tl.exp(a - tl.max(a, axis=1)[:, None])
        a = a / tl.sum(a, axis=1)[:, None]
    return a


@triton.jit
def _samples(
    levels, reference, offsets, place, at, mask, column, R: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr
):  # fmt: skip
    """Where each point [BLOCK_Q, BLOCK_N] samples: corner and fraction, size and start of its level, its offset as given, and how
    many pixels one unit of that is."""
    ox, oy = tl.load(offsets + 2 * place, mask=mask, other=-9.0), tl.load(offsets + 2 * place + 1, mask=mask, other=-9.0)
    level = tl.minimum(column // POINTS, LEVELS - 1)
    h, w = tl.load(levels + 3 * level)[None, :], tl.load(levels + 3 * level + 1)[None, :]
    start = tl.load(levels + 3 * level + 2)[None, :]
    wf, hf = w.to(tl.float32), h.to(tl.float32)
    if R == 0:
        x, fx = _axis(ox, 0.0, wf)
        y, fy = _axis(oy, 0.0, hf)
        sx, sy = wf, hf
    else:
        here = reference + at[:, None] + (level * R)[None, :]
        px, py = tl.load(here, mask=mask, other=-9.0), tl.load(here + 1, mask=mask, other=-9.0)
        sx, sy = 1.0, 1.0
        if R == 4:
            sx = tl.load(here + 2, mask=mask, other=0.0) * wf * (0.5 / POINTS)
            sy = tl.load(here + 3, mask=mask, other=0.0) * hf * (0.5 / POINTS)
        x, fx = _axis(px, ox * sx, wf)
        y, fy = _axis(py, oy * sy, hf)
    return x, fx, y, fy, w, h, start, ox, oy, sx, sy


@triton.jit(do_not_specialize=["queries", "pairs", "tokens", "heads"])  # fewer variants to compile
def _forward_kernel(
    value, levels, reference, offsets, weights, output, queries, pairs, tokens, heads, channels,
    R: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(queries, BLOCK_Q)
    pair, first = tl.program_id(0) // blocks, (tl.program_id(0) % blocks) * BLOCK_Q
    N: tl.constexpr = LEVELS * POINTS
    head, batch = pair % heads, (pair // heads).to(tl.int64)
    query, column, lane = first + tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    row = batch * queries * heads + head  # of the first query of this image and head; the others follow in steps of `heads`
    place = (query * (heads * N))[:, None] + column[None, :]
    mask = (query < queries)[:, None] & (column < N)[None, :]
    a = _attention(weights + row * N, place, mask, column, N, R)
    x, fx, y, fy, w, h, start, _ox, _oy, _sx, _sy = _samples(
        levels, reference, offsets + row * (2 * N), place, (batch * queries + query) * (LEVELS * R), mask, column, R, LEVELS, POINTS
    )
    step = heads * channels
    value += (batch * tokens * heads + head) * channels
    v00, _p0, _m0 = _corner(value, x, y, w, h, start, step, lane, channels)
    v01, _p1, _m1 = _corner(value, x + 1, y, w, h, start, step, lane, channels)
    v10, _p2, _m2 = _corner(value, x, y + 1, w, h, start, step, lane, channels)
    v11, _p3, _m3 = _corner(value, x + 1, y + 1, w, h, start, step, lane, channels)
    total = (a * (1 - fy) * (1 - fx))[:, :, None] * v00 + (a * (1 - fy) * fx)[:, :, None] * v01
    total += (a * fy * (1 - fx))[:, :, None] * v10 + (a * fy * fx)[:, :, None] * v11
    to = output + row * channels + (query * step)[:, None] + lane[None, :]
    tl.store(to, tl.sum(total, axis=1).to(output.dtype.element_ty), mask=(query < queries)[:, None] & (lane < channels)[None, :])


@triton.jit
def _add(grad_value, place, mask, amount, scale, DETERMINISTIC: tl.constexpr):
    if DETERMINISTIC:
        scaled = amount.to(tl.float64) * scale
        tl.atomic_add(grad_value + place, (scaled + tl.where(scaled >= 0, 0.5, -0.5)).to(tl.int64), mask=mask, sem="relaxed")
    else:
        tl.atomic_add(grad_value + place, amount, mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["queries", "pairs", "tokens", "heads"])  # fewer variants to compile
def _backward_kernel(
    grad_output, value, levels, reference, offsets, weights, scale_pointer,
    grad_value, grad_reference, grad_offsets, grad_weights,
    queries, pairs, tokens, heads, channels,
    R: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr, WITH_REFERENCE: tl.constexpr, DETERMINISTIC: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(queries, BLOCK_Q)
    pair, first = tl.program_id(0) // blocks, (tl.program_id(0) % blocks) * BLOCK_Q
    N: tl.constexpr = LEVELS * POINTS
    head, batch = pair % heads, (pair // heads).to(tl.int64)
    query, column, lane = first + tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    row = batch * queries * heads + head
    place = (query * (heads * N))[:, None] + column[None, :]
    mask = (query < queries)[:, None] & (column < N)[None, :]
    a = _attention(weights + row * N, place, mask, column, N, R)
    at = (batch * queries + query) * (LEVELS * R)
    x, fx, y, fy, w, h, start, ox, oy, sx, sy = _samples(
        levels, reference, offsets + row * (2 * N), place, at, mask, column, R, LEVELS, POINTS
    )
    step = heads * channels
    value += (batch * tokens * heads + head) * channels
    grad_value += (batch * tokens * heads + head) * channels
    g = tl.load(
        grad_output + row * channels + (query * step)[:, None] + lane[None, :],
        mask=(query < queries)[:, None] & (lane < channels)[None, :], other=0.0,
    ).to(tl.float32)[:, None, :]  # fmt: skip
    scale = 1.0
    if DETERMINISTIC:
        scale = tl.load(scale_pointer)
    v00, p00, m00 = _corner(value, x, y, w, h, start, step, lane, channels)
    v01, p01, m01 = _corner(value, x + 1, y, w, h, start, step, lane, channels)
    v10, p10, m10 = _corner(value, x, y + 1, w, h, start, step, lane, channels)
    v11, p11, m11 = _corner(value, x + 1, y + 1, w, h, start, step, lane, channels)
    d00, d01 = tl.sum(g * v00, axis=2), tl.sum(g * v01, axis=2)
    d10, d11 = tl.sum(g * v10, axis=2), tl.sum(g * v11, axis=2)
    _add(grad_value, p00, m00, (a * (1 - fy) * (1 - fx))[:, :, None] * g, scale, DETERMINISTIC)
    _add(grad_value, p01, m01, (a * (1 - fy) * fx)[:, :, None] * g, scale, DETERMINISTIC)
    _add(grad_value, p10, m10, (a * fy * (1 - fx))[:, :, None] * g, scale, DETERMINISTIC)
    _add(grad_value, p11, m11, (a * fy * fx)[:, :, None] * g, scale, DETERMINISTIC)
    above, below = d00 + fx * (d01 - d00), d10 + fx * (d11 - d10)
    ga = above + fy * (below - above)
    gx = a * ((1 - fy) * (d01 - d00) + fy * (d11 - d10))  # per pixel
    gy = a * (below - above)
    if R != 0:
        ga = a * (ga - tl.sum(a * ga, axis=1)[:, None])
    if WITH_REFERENCE:
        # [B, Q, L, R] shared by the heads, or [M, B, Q, L, R] when the order of additions must not matter.
        to = grad_reference + at
        if DETERMINISTIC:
            to += head.to(tl.int64) * (pairs // heads) * queries * (LEVELS * R)
        for level in tl.static_range(LEVELS):
            own = mask & (column // POINTS == level)[None, :]
            _add_sum(to + level * R, gx * w, own, query < queries)
            _add_sum(to + level * R + 1, gy * h, own, query < queries)
            if R == 4:  # outside, where an offset may be infinite, nothing has a gradient
                _add_sum(to + level * R + 2, gx * (0.5 / POINTS) * w * ox, own & (gx != 0), query < queries)
                _add_sum(to + level * R + 3, gy * (0.5 / POINTS) * h * oy, own & (gy != 0), query < queries)
    tl.store(grad_weights + row * N + place, ga, mask=mask)
    tl.store(grad_offsets + row * (2 * N) + 2 * place, tl.where(gx != 0, gx * sx, 0.0), mask=mask)
    tl.store(grad_offsets + row * (2 * N) + 2 * place + 1, tl.where(gy != 0, gy * sy, 0.0), mask=mask)


@triton.jit
def _add_sum(to, amounts, own, mask):
    tl.atomic_add(to, tl.sum(tl.where(own, amounts, 0.0), axis=1), mask=mask, sem="relaxed")


_LARGEST = 2**31
"""Places within an image are 32-bit numbers."""

_FORWARD_TILE, _BACKWARD_TILE = 1024, 512
"""Numbers in the tile of one program, of one warp. Of 13 tiles with 1 to 8 warps these were the fastest on an H100, in float32 and
bfloat16, for an encoder and for 300 queries."""


class _Plan(NamedTuple):
    """How a kernel is launched for tensors of some shapes."""

    programs: int
    warps: int
    numbers: tuple[int, ...]  # queries, pairs, tokens, heads, channels
    geometry: tuple[int, ...]  # R, LEVELS, POINTS
    blocks: tuple[int, ...]  # BLOCK_D, BLOCK_N, BLOCK_Q


@functools.lru_cache(maxsize=1024)
def _plan(tile: int, value: torch.Size, offsets: torch.Size, reference: int) -> _Plan:
    """The plan for the shapes of value and offsets, and the R numbers of a reference.

    Raises:
        ValueError: an image has too many numbers.
    """
    batch, tokens, heads, channels = value
    _, queries, _, levels, points, _ = offsets
    if max(tokens * channels, 2 * queries * levels * points) * heads >= _LARGEST:
        raise ValueError("ms_deform_attn: backend 'triton' takes less than 2^31 numbers per image in value and in offsets")
    block_d, block_n = triton.next_power_of_2(channels), triton.next_power_of_2(levels * points)
    block_q = max(1, tile // (block_d * block_n))
    return _Plan(
        programs=triton.cdiv(queries, block_q) * batch * heads,
        warps=min(8, max(1, block_q * block_d * block_n // 1024)),
        numbers=(queries, batch * heads, tokens, heads, channels),
        geometry=(reference, levels, points),
        blocks=(block_d, block_n, block_q),
    )


_compiled: dict[tuple, Any] = {}


def _is_far(tensor: Tensor) -> bool:
    """Whether places in it need more than 32 bits, where Triton compiles for that: for AMD's GPUs."""
    return torch.version.hip is not None and tensor.untyped_storage().size() >= _LARGEST


def _launch(kernel: Any, plan: _Plan, tensors: tuple[Tensor, ...], *flags: bool) -> None:
    """Triton finds the compiled kernel anew at each launch, which takes longer than 300 queries do; so it is kept here, for each
    combination of what Triton compiles anew for."""
    grid, arguments = (plan.programs, 1, 1), (*tensors, *plan.numbers, *plan.geometry, *flags, *plan.blocks)
    with _on_device(tensors[0]):
        if isinstance(kernel, InterpretedFunction):
            kernel[grid](*arguments)
            return
        variants = [(tensor.dtype, tensor.data_ptr() % 16 == 0, _is_far(tensor)) for tensor in tensors]
        key = (kernel.fn, tensors[0].device.index, *variants, plan.numbers[-1], plan.geometry, flags, plan.blocks)
        compiled = _compiled.get(key)
        if compiled is None:
            _compiled[key] = kernel[grid](*arguments, num_warps=plan.warps)
        else:
            compiled[grid](*arguments)


@functools.lru_cache(maxsize=256)
def _levels(shapes: tuple[int, ...], device: torch.device) -> Tensor:
    """(h, w, first token) of each level, on the device; kept, because copying it there for each call would wait for the device."""
    rows, start = [], 0
    for h, w in zip(shapes[::2], shapes[1::2], strict=True):
        rows.append((h, w, start))
        start += h * w
    return torch.tensor(rows, dtype=torch.int32, device=device)


def _on_device(value: Tensor) -> contextlib.AbstractContextManager[Any]:
    elsewhere = value.is_cuda and value.device.index != torch.cuda.current_device()
    return torch.cuda.device(value.device) if elsewhere else contextlib.nullcontext()


def forward(value: Tensor, shapes: Sequence[int], reference: Tensor | None, offsets: Tensor, weights: Tensor) -> Tensor:
    """Attention output `[B, Q, M * D]` in the type of `value`; the arguments are those of `cpu.forward`."""
    batch, _, heads, channels = value.shape
    output = torch.empty(batch, offsets.shape[1], heads * channels, dtype=value.dtype, device=value.device)
    if output.numel() == 0 or weights.numel() == 0:
        return output.zero_()
    value, offsets, weights = value.contiguous(), offsets.contiguous(), weights.contiguous()
    given = offsets if reference is None else reference.contiguous()
    plan = _plan(_FORWARD_TILE, value.shape, offsets.shape, 0 if reference is None else reference.shape[-1])
    _launch(_forward_kernel, plan, (value, _levels(tuple(shapes), value.device), given, offsets, weights, output))
    return output


def backward(
    grad_output: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    reference: Tensor | None,
    offsets: Tensor,
    weights: Tensor,
    with_reference: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of (value, reference, offsets, weights); the arguments are those of `cpu.backward`."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    grad_value = torch.zeros(value.shape, dtype=torch.int64 if deterministic else torch.float32, device=value.device)
    value, offsets, weights = value.contiguous(), offsets.contiguous(), weights.contiguous()
    grad_offsets, grad_weights = torch.empty_like(offsets), torch.empty_like(weights)
    with_reference = with_reference and reference is not None
    scale = grad_reference = grad_weights  # not read where there is none
    if with_reference and reference is not None:
        grad_reference = reference.new_zeros((value.shape[2], *reference.shape) if deterministic else reference.shape)
    if deterministic:
        scale = _fixed_point_scale(grad_output, reference, weights)
    if grad_output.numel() > 0 and weights.numel() > 0:
        given = offsets if reference is None else reference.contiguous()
        plan = _plan(_BACKWARD_TILE, value.shape, offsets.shape, 0 if reference is None else reference.shape[-1])
        inputs = grad_output.contiguous(), value, _levels(tuple(shapes), value.device), given, offsets, weights, scale
        gradients = grad_value, grad_reference, grad_offsets, grad_weights
        _launch(_backward_kernel, plan, (*inputs, *gradients), with_reference, deterministic)
    if deterministic:
        grad_value = grad_value.double() / scale
        grad_reference = grad_reference.sum(0) if with_reference else grad_reference
    grad_reference = grad_reference if with_reference else offsets.new_empty(0)
    return grad_value.to(value.dtype), grad_reference, grad_offsets, grad_weights


def _fixed_point_scale(grad_output: Tensor, reference: Tensor | None, weights: Tensor) -> Tensor:
    """A power of two that makes the largest possible summand of grad_value `FIXED_POINT_BITS` long; float64, on the device."""
    if grad_output.numel() == 0 or weights.numel() == 0:
        return torch.ones((), dtype=torch.float64, device=grad_output.device)
    largest = grad_output.detach().abs().amax().double()
    if reference is None:
        largest = largest * weights.detach().abs().amax().double()
    return torch.exp2(FIXED_POINT_BITS - torch.ceil(torch.log2(largest.clamp_min(1e-30))))
