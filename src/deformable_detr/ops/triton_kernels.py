"""The GPU kernels in Triton: one launch forward, one backward, fused and not; sums in float32 whatever the type of `value`.

A program takes a block of queries of one (batch, head) and walks over levels and points; softmax, sampling locations and their
gradients stay in registers. The gradient of `value` is added up with atomics; when torch.use_deterministic_algorithms is on, in
64-bit fixed point, where the order of the additions does not matter.
"""

# Inside @triton.jit the names mean tensors of Triton, which type checkers do not know.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false

import contextlib
import functools
import os
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
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
def _corner(value, x, y, w, h, start, step, lanes, lane_mask):
    """The rows [BLOCK_Q, BLOCK_D] of one corner, zero outside, with where they are and whether they are inside."""
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    token = tl.where(inside, start + y * w + x, 0)
    place = token.to(tl.int64)[:, None] * step + lanes[None, :]
    mask = inside[:, None] & lane_mask[None, :]
    return tl.load(value + place, mask=mask, other=0.0).to(tl.float32), place, mask


@triton.jit
def _softmax_terms(weights, rows, points, query_mask, BLOCK_N: tl.constexpr):
    """The largest logit and the sum of exponentials of each row."""
    columns = tl.arange(0, BLOCK_N)
    mask = query_mask[:, None] & (columns < points)[None, :]
    logits = tl.load(weights + rows[:, None] * points + columns[None, :], mask=mask, other=float("-inf"))
    logits = tl.where(query_mask[:, None], logits, 0.0)
    top = tl.max(logits, axis=1)
    return top, tl.sum(tl.exp(logits - top[:, None]), axis=1)


@triton.jit
def _forward_kernel(
    value, levels, reference, offsets, weights, output,
    queries, tokens, heads, channels, level_count, point_count, query_bucket,
    R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(1) % heads, tl.program_id(1) // heads
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    query_mask = query < queries
    row = (batch.to(tl.int64) * queries + query) * heads + head
    lanes = tl.arange(0, BLOCK_D)
    lane_mask = lanes < channels
    step = heads * channels
    value += (batch.to(tl.int64) * tokens * heads + head) * channels
    points = level_count * point_count
    total = tl.zeros([BLOCK_Q, BLOCK_D], dtype=tl.float32)
    if R != 0:
        top, normaliser = _softmax_terms(weights, row, points, query_mask, BLOCK_N)
    for level in range(level_count):
        h, w = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
        start = tl.load(levels + 3 * level + 2)
        wf, hf = w.to(tl.float32), h.to(tl.float32)
        if R != 0:
            at = reference + ((batch.to(tl.int64) * queries + query) * level_count + level) * R
            px, py = tl.load(at, mask=query_mask, other=-9.0), tl.load(at + 1, mask=query_mask, other=-9.0)
            if R == 4:
                sx = tl.load(at + 2, mask=query_mask, other=0.0) * wf * (0.5 / point_count)
                sy = tl.load(at + 3, mask=query_mask, other=0.0) * hf * (0.5 / point_count)
        for point in range(point_count):
            index = row * points + level * point_count + point
            ox = tl.load(offsets + 2 * index, mask=query_mask, other=-9.0)
            oy = tl.load(offsets + 2 * index + 1, mask=query_mask, other=-9.0)
            a = tl.load(weights + index, mask=query_mask, other=0.0)
            if R == 0:
                x, fx = _axis(ox, 0.0, wf)
                y, fy = _axis(oy, 0.0, hf)
            else:
                a = tl.exp(a - top) / normaliser
                if R == 4:
                    ox, oy = ox * sx, oy * sy
                x, fx = _axis(px, ox, wf)
                y, fy = _axis(py, oy, hf)
            v00, _p0, _m0 = _corner(value, x, y, w, h, start, step, lanes, lane_mask)
            v01, _p1, _m1 = _corner(value, x + 1, y, w, h, start, step, lanes, lane_mask)
            v10, _p2, _m2 = _corner(value, x, y + 1, w, h, start, step, lanes, lane_mask)
            v11, _p3, _m3 = _corner(value, x + 1, y + 1, w, h, start, step, lanes, lane_mask)
            total += (a * (1 - fy) * (1 - fx))[:, None] * v00 + (a * (1 - fy) * fx)[:, None] * v01
            total += (a * fy * (1 - fx))[:, None] * v10 + (a * fy * fx)[:, None] * v11
    place = row[:, None] * channels + lanes[None, :]
    tl.store(output + place, total.to(output.dtype.element_ty), mask=query_mask[:, None] & lane_mask[None, :])


@triton.jit
def _add(grad_value, place, mask, amount, scale, DETERMINISTIC: tl.constexpr):
    if DETERMINISTIC:
        scaled = amount.to(tl.float64) * scale
        tl.atomic_add(grad_value + place, (scaled + tl.where(scaled >= 0, 0.5, -0.5)).to(tl.int64), mask=mask, sem="relaxed")
    else:
        tl.atomic_add(grad_value + place, amount, mask=mask, sem="relaxed")


@triton.jit
def _backward_kernel(
    grad_output, value, levels, reference, offsets, weights, scale_pointer,
    grad_value, grad_reference, grad_offsets, grad_weights,
    queries, tokens, heads, channels, level_count, point_count, query_bucket,
    R: tl.constexpr, WITH_REFERENCE: tl.constexpr, DETERMINISTIC: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(1) % heads, tl.program_id(1) // heads
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    query_mask = query < queries
    row = (batch.to(tl.int64) * queries + query) * heads + head
    lanes = tl.arange(0, BLOCK_D)
    lane_mask = lanes < channels
    step = heads * channels
    first = (batch.to(tl.int64) * tokens * heads + head) * channels
    value += first
    grad_value += first
    points = level_count * point_count
    scale = 1.0
    if DETERMINISTIC:
        scale = tl.load(scale_pointer)
    place = row[:, None] * channels + lanes[None, :]
    g = tl.load(grad_output + place, mask=query_mask[:, None] & lane_mask[None, :], other=0.0).to(tl.float32)
    columns = tl.arange(0, BLOCK_N)
    if R != 0:
        top, normaliser = _softmax_terms(weights, row, points, query_mask, BLOCK_N)
        attention = tl.zeros([BLOCK_Q, BLOCK_N], dtype=tl.float32)
        grad_attention = tl.zeros([BLOCK_Q, BLOCK_N], dtype=tl.float32)
    for level in range(level_count):
        h, w = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
        start = tl.load(levels + 3 * level + 2)
        wf, hf = w.to(tl.float32), h.to(tl.float32)
        if R != 0:
            at = ((batch.to(tl.int64) * queries + query) * level_count + level) * R
            px = tl.load(reference + at, mask=query_mask, other=-9.0)
            py = tl.load(reference + at + 1, mask=query_mask, other=-9.0)
            rx = tl.zeros([BLOCK_Q], dtype=tl.float32)
            ry, rw, rh = rx, rx, rx
            if R == 4:
                sx = tl.load(reference + at + 2, mask=query_mask, other=0.0) * wf * (0.5 / point_count)
                sy = tl.load(reference + at + 3, mask=query_mask, other=0.0) * hf * (0.5 / point_count)
        for point in range(point_count):
            column = level * point_count + point
            index = row * points + column
            ox = tl.load(offsets + 2 * index, mask=query_mask, other=-9.0)
            oy = tl.load(offsets + 2 * index + 1, mask=query_mask, other=-9.0)
            a = tl.load(weights + index, mask=query_mask, other=0.0)
            if R == 0:
                x, fx = _axis(ox, 0.0, wf)
                y, fy = _axis(oy, 0.0, hf)
            else:
                a = tl.where(query_mask, tl.exp(a - top) / normaliser, 0.0)
                bx, by = ox, oy
                if R == 4:
                    bx, by = ox * sx, oy * sy
                x, fx = _axis(px, bx, wf)
                y, fy = _axis(py, by, hf)
            v00, p00, m00 = _corner(value, x, y, w, h, start, step, lanes, lane_mask)
            v01, p01, m01 = _corner(value, x + 1, y, w, h, start, step, lanes, lane_mask)
            v10, p10, m10 = _corner(value, x, y + 1, w, h, start, step, lanes, lane_mask)
            v11, p11, m11 = _corner(value, x + 1, y + 1, w, h, start, step, lanes, lane_mask)
            d00, d01 = tl.sum(g * v00, axis=1), tl.sum(g * v01, axis=1)
            d10, d11 = tl.sum(g * v10, axis=1), tl.sum(g * v11, axis=1)
            _add(grad_value, p00, m00, (a * (1 - fy) * (1 - fx))[:, None] * g, scale, DETERMINISTIC)
            _add(grad_value, p01, m01, (a * (1 - fy) * fx)[:, None] * g, scale, DETERMINISTIC)
            _add(grad_value, p10, m10, (a * fy * (1 - fx))[:, None] * g, scale, DETERMINISTIC)
            _add(grad_value, p11, m11, (a * fy * fx)[:, None] * g, scale, DETERMINISTIC)
            above, below = d00 + fx * (d01 - d00), d10 + fx * (d11 - d10)
            ga = above + fy * (below - above)
            gx = a * ((1 - fy) * (d01 - d00) + fy * (d11 - d10))
            gy = a * (below - above)
            if R == 0:
                tl.store(grad_weights + index, ga, mask=query_mask)
                gx, gy = gx * wf, gy * hf
            else:
                here = (columns == column)[None, :]
                attention = tl.where(here, a[:, None], attention)
                grad_attention = tl.where(here, ga[:, None], grad_attention)
                rx, ry = rx + gx, ry + gy
                if R == 4:  # outside, where an offset or a size may be infinite, nothing has a gradient
                    rw += tl.where(gx != 0, gx * ox, 0.0)
                    rh += tl.where(gy != 0, gy * oy, 0.0)
                    gx, gy = tl.where(gx != 0, gx * sx, 0.0), tl.where(gy != 0, gy * sy, 0.0)
            tl.store(grad_offsets + 2 * index, gx, mask=query_mask)
            tl.store(grad_offsets + 2 * index + 1, gy, mask=query_mask)
        if R != 0 and WITH_REFERENCE:
            # [B, Q, L, R] shared by the heads, or [M, B, Q, L, R] when the order of additions must not matter.
            to = grad_reference + at
            if DETERMINISTIC:
                to += head.to(tl.int64) * tl.num_programs(1) // heads * queries * level_count * R
            tl.atomic_add(to, rx * wf, mask=query_mask, sem="relaxed")
            tl.atomic_add(to + 1, ry * hf, mask=query_mask, sem="relaxed")
            if R == 4:
                tl.atomic_add(to + 2, rw * wf * (0.5 / point_count), mask=query_mask, sem="relaxed")
                tl.atomic_add(to + 3, rh * hf * (0.5 / point_count), mask=query_mask, sem="relaxed")
    if R != 0:
        mean = tl.sum(attention * grad_attention, axis=1)
        mask = query_mask[:, None] & (columns < points)[None, :]
        tl.store(grad_weights + row[:, None] * points + columns[None, :], attention * (grad_attention - mean[:, None]), mask=mask)


_CONFIGS = [triton.Config({"BLOCK_Q": block}, num_warps=warps) for block in (16, 32, 64) for warps in (2, 4, 8)]
_FORWARD_KEY = ["query_bucket", "level_count", "point_count", "R", "BLOCK_D"]


@functools.cache
def _kernel(direction: str) -> Any:
    """The kernel, tuned once per shape and type with the result kept in Triton's cache on disk; as it is when interpreted."""
    kernel = {"forward": _forward_kernel, "backward": _backward_kernel}[direction]
    if INTERPRETED:
        return functools.partial(_launch_interpreted, kernel)
    if direction == "forward":
        tuned = triton.autotune(_CONFIGS, key=_FORWARD_KEY, cache_results=True)(kernel)
    else:
        key = [*_FORWARD_KEY, "WITH_REFERENCE", "DETERMINISTIC"]
        tuned = triton.autotune(_CONFIGS, key=key, reset_to_zero=["grad_value", "grad_reference"], cache_results=True)(kernel)
    return functools.partial(_launch, tuned)


def _launch(tuned: Any, queries: int, pairs: int, *arguments: Any, **constants: Any) -> None:
    tuned[lambda meta: (triton.cdiv(queries, meta["BLOCK_Q"]), pairs)](*arguments, **constants)


def _launch_interpreted(kernel: Any, queries: int, pairs: int, *arguments: Any, **constants: Any) -> None:
    kernel[(triton.cdiv(queries, 16), pairs)](*arguments, BLOCK_Q=16, **constants)


@functools.lru_cache(maxsize=256)
def _levels(shapes: tuple[int, ...], device: torch.device) -> Tensor:
    """(h, w, first token) of each level, on the device; kept, because copying it there for each call would wait for the device."""
    rows, start = [], 0
    for h, w in zip(shapes[::2], shapes[1::2], strict=True):
        rows.append((h, w, start))
        start += h * w
    return torch.tensor(rows, dtype=torch.int32, device=device)


def _on_device(value: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(value.device) if value.is_cuda else contextlib.nullcontext()


def _sizes(value: Tensor, offsets: Tensor) -> tuple[int, ...]:
    """What both kernels are told about the shapes; the last one only separates tuned configurations."""
    _, tokens, heads, channels = value.shape
    queries, levels, points = offsets.shape[1], offsets.shape[3], offsets.shape[4]
    return queries, tokens, heads, channels, levels, points, queries.bit_length()


def _constants(value: Tensor, reference: Tensor | None, weights: Tensor) -> dict[str, int]:
    return {
        "R": 0 if reference is None else reference.shape[-1],
        "BLOCK_D": triton.next_power_of_2(value.shape[3]),
        "BLOCK_N": triton.next_power_of_2(weights.shape[3] * weights.shape[4]),
    }


def forward(value: Tensor, shapes: Sequence[int], reference: Tensor | None, offsets: Tensor, weights: Tensor) -> Tensor:
    """Attention output `[B, Q, M * D]` in the type of `value`; the arguments are those of `cpu.forward`."""
    batch, _, heads, channels = value.shape
    output = torch.zeros(batch, offsets.shape[1], heads * channels, dtype=value.dtype, device=value.device)
    if output.numel() == 0 or weights.numel() == 0:
        return output
    value, offsets, weights = (tensor.detach().contiguous() for tensor in (value, offsets, weights))
    given = offsets if reference is None else reference.detach().contiguous()
    levels = _levels(tuple(shapes), value.device)
    with _on_device(value):
        _kernel("forward")(
            offsets.shape[1], batch * heads, value, levels, given, offsets, weights, output,
            *_sizes(value, offsets), **_constants(value, reference, weights),
        )  # fmt: skip
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
    batch, _, heads, _ = value.shape
    deterministic = torch.are_deterministic_algorithms_enabled()
    with_reference = with_reference and reference is not None
    sums = torch.int64 if deterministic else torch.float32
    grad_value = torch.zeros(value.shape, dtype=sums, device=value.device)
    grad_offsets, grad_weights = offsets.new_zeros(offsets.shape), weights.new_zeros(weights.shape)
    grad_reference = offsets.new_zeros(())
    if with_reference and reference is not None:
        grad_reference = reference.new_zeros((heads, *reference.shape) if deterministic else reference.shape)
    scale = _fixed_point_scale(grad_output, reference, weights) if deterministic else grad_reference
    if grad_output.numel() > 0 and weights.numel() > 0:
        value, offsets, weights = (tensor.detach().contiguous() for tensor in (value, offsets, weights))
        given = offsets if reference is None else reference.detach().contiguous()
        levels = _levels(tuple(shapes), value.device)
        with _on_device(value):
            _kernel("backward")(
                offsets.shape[1], batch * heads, grad_output.detach().contiguous(), value, levels, given, offsets, weights, scale,
                grad_value, grad_reference, grad_offsets, grad_weights, *_sizes(value, offsets),
                WITH_REFERENCE=with_reference, DETERMINISTIC=deterministic, **_constants(value, reference, weights),
            )  # fmt: skip
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
