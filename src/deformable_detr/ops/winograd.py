"""3×3 convolutions by Winograd's minimal filtering, F(4×4, 3×3): a quarter of the multiplications, native CPU kernels, float32.

A tile of 4×4 outputs depends on 6×6 inputs. Input and weights are transformed so that the convolution of a tile becomes 36 products
per pair of channels in place of 4 · 4 · 9 = 144; over all tiles these are 36 matrix products, which is what processors are best at.
The transforms are those of Toom and Cook (Lavin & Gray, 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.3, has
them with the roots ±1 and ±2). With 0, ±2/3, ±3/2 and infinity the entries of the transforms are of similar size, which makes the
rounding error smaller.
"""

import math

import torch
from torch import Tensor

from deformable_detr.ops import cpu

FAST_ISAS = ("avx2", "avx512")
CHANNEL_UNIT = 32
"""Both numbers of channels must be multiples of this."""

TILE_UNIT = 12
PANEL = 16
BUFFER_FLOATS = 1_500_000
"""Approximate number of floats in the buffer of the transformed input (as many in that of the products): both stay in the last
cache. Larger inputs are convolved in blocks of tiles."""

_ROOTS = (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)


def winograd_available() -> bool:
    """Whether the kernels are there and this processor has the instructions that make them worthwhile."""
    return cpu.missing_reason() is None and cpu.current_isa() in FAST_ISAS


def transform_weights(weight: Tensor) -> Tensor:
    """What `winograd_convolution` takes as weights: 4 times as large.

    Args:
        weight: `[O, C, 3, 3]`, both numbers of channels multiples of `CHANNEL_UNIT`.

    Returns:
        `[36, O / 16, C, 16]` float32.

    Raises:
        ValueError: another shape.
    """
    outputs, channels = weight.shape[:2]
    if weight.shape[2:] != (3, 3) or outputs % CHANNEL_UNIT or channels % CHANNEL_UNIT:
        raise ValueError(f"weights must be [O, C, 3, 3] with multiples of {CHANNEL_UNIT} channels, not {list(weight.shape)}")
    rows = []
    for root in _ROOTS:
        distances = math.prod(root - other for other in _ROOTS if other != root)
        rows.append([root**power / distances for power in range(3)])
    g = torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64, device="cpu")  # [6, 3]
    transform = torch.kron(g, g)  # [36, 9]
    result = cpu.new_tensor(36, outputs // PANEL, channels, PANEL)
    for panel, some in enumerate(weight.detach().cpu().split(PANEL)):  # one at a time: in float64 they are large
        taps = some.reshape(PANEL, channels, 9).permute(2, 1, 0).reshape(9, -1).double()
        result[:, panel] = (transform @ taps).view(36, channels, PANEL)
    return result


def num_tiles(shape: torch.Size) -> int:
    """Of `[B, C, H, W]`: how many 4 × 4 tiles its images have together."""
    batch, _, height, width = shape
    return batch * -(-height // 4) * -(-width // 4)


def winograd_convolution(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    added: Tensor | None = None,
    *,
    relu: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Convolve with 3×3 weights, stride 1 and one pixel of zeros around; inference only (no gradient).

    Args:
        x: `[B, C, H, W]` float32 on the CPU; fastest in the memory format channels_last.
        weights: `[36, O / 16, C, 16]` of `transform_weights`.
        bias: `[O]`.
        added: `[B, O, H, W]`, added to the result.
        relu: apply ReLU at the end.
        out: where the result goes: `[B, O, H, W]` in channels_last; may be `added`.

    Returns:
        `[B, O, H, W]` in channels_last.

    Raises:
        KernelsMissing: the native kernels were not built.
        ValueError: shapes, types or devices that do not fit.
    """
    (batch, channels, height, width), outputs = x.shape, weights.shape[1] * PANEL
    _check(x, weights, bias, added, out)
    layout = torch.channels_last
    if out is None:
        out = cpu.new_tensor(batch, height, width, outputs).permute(0, 3, 1, 2)
    total = num_tiles(x.shape)
    if total == 0:
        return out
    blocks = -(-total * 36 * max(channels, outputs) // BUFFER_FLOATS)
    tiles = -(-total // blocks)
    tiles += -tiles % TILE_UNIT
    maps = {"input": x, "added": added, "output": out}
    buffers = {name: t.contiguous(memory_format=layout).permute(0, 2, 3, 1) for name, t in maps.items() if t is not None}
    buffers |= {name: t.contiguous() for name, t in (("weights", weights), ("bias", bias)) if t is not None}
    for name, size in (("transformed", channels), ("products", outputs)):
        buffers[name] = cpu.new_tensor(36 * (tiles * size + PANEL))
    problem = cpu.WinogradProblem(batch, height, width, channels, outputs, tiles, int(relu), torch.get_num_threads())
    for name, tensor in buffers.items():
        cpu.attach(problem, name, tensor)
    cpu.run("winograd_convolution", problem)
    return out


def _check(x: Tensor, weights: Tensor, bias: Tensor | None, added: Tensor | None, out: Tensor | None) -> None:
    batch, channels, height, width = x.shape
    outputs = weights.shape[1] * PANEL
    if weights.shape[2] != channels:
        raise ValueError(f"the weights take {weights.shape[2]} channels, x has {channels}")
    if weights.shape != (36, outputs // PANEL, channels, PANEL):
        raise ValueError(f"weights must be [36, O / {PANEL}, C, {PANEL}] of transform_weights, not {list(weights.shape)}")
    result = (batch, outputs, height, width)
    for name, tensor, shape in (("bias", bias, (outputs,)), ("added", added, result), ("out", out, result)):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must be {list(shape)}, not {list(tensor.shape)}")
    for name, tensor in (("x", x), ("weights", weights), ("bias", bias), ("added", added), ("out", out)):
        if tensor is not None and (tensor.dtype != torch.float32 or tensor.device.type != "cpu"):
            raise ValueError(f"{name} must be float32 on the CPU, not {tensor.dtype} on {tensor.device}")
    if out is not None and not out.is_contiguous(memory_format=torch.channels_last):
        raise ValueError("out must be contiguous in channels_last")
