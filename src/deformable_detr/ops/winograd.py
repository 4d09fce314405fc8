"""3×3 convolutions by Winograd's minimal filtering, F(4×4, 3×3): a quarter of the multiplications, native CPU kernels, float32.

The transforms with roots 0, ±2/3, ±3/2 and infinity are those of Toom and Cook (Lavin & Gray, 2016, "Fast Algorithms for
Convolutional Neural Networks", section 4.3, has them with ±1 and ±2).
"""

import ctypes

import torch
from torch import Tensor

from deformable_detr.ops import cpu

FAST_ISAS = ("avx2", "avx512")
CHANNEL_UNIT = 32
"""Both numbers of channels must be multiples of this."""

TILE_UNIT = 12
PANEL = 16
BUFFER_FLOATS = 1_500_000
"""About so many floats of the transformed input are there at once: they and the products stay in the last cache."""

_ROOTS = (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)
_SIZES = ("batch", "height", "width", "channels", "out_channels", "tiles", "relu", "threads")
_POINTERS = ("input", "weights", "bias", "added", "transformed", "products", "output")


class _Problem(ctypes.Structure):
    """`winograd_problem` of csrc/problem.h."""

    _fields_ = [(name, ctypes.c_int64) for name in _SIZES] + [(name, ctypes.c_void_p) for name in _POINTERS]


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
    rows = [[root**power / _others(root) for power in range(3)] for root in _ROOTS]
    g = torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)  # [6, 3]
    transform = torch.kron(g, g)  # [36, 9]
    result = torch.empty(36, outputs // PANEL, channels, PANEL)
    for panel, some in enumerate(weight.detach().cpu().split(PANEL)):  # one at a time: in float64 they are large
        taps = some.reshape(PANEL, channels, 9).permute(2, 1, 0).reshape(9, -1).double()
        result[:, panel] = (transform @ taps).view(36, channels, PANEL)
    return result


def _others(root: float) -> float:
    """The product of the root's distances to the other ones."""
    product = 1.0
    for other in _ROOTS:
        product *= root - other if other != root else 1.0
    return product


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
        ValueError: numbers of channels that do not fit.
    """
    outputs = weights.shape[1] * PANEL
    if weights.shape[2] != x.shape[1]:
        raise ValueError(f"the weights take {weights.shape[2]} channels, x has {x.shape[1]}")
    (batch, channels, height, width), total = x.shape, num_tiles(x.shape)
    layout = torch.channels_last
    x = x.contiguous(memory_format=layout)
    added = None if added is None else added.contiguous(memory_format=layout)
    if out is None:
        out = torch.empty(batch, outputs, height, width, memory_format=layout)
    if total == 0:
        return out
    blocks = -(-total * 36 * max(channels, outputs) // BUFFER_FLOATS)
    tiles = -(-total // blocks)
    tiles += -tiles % TILE_UNIT
    buffers = [torch.empty(36 * (tiles * width_of + PANEL)) for width_of in (channels, outputs)]
    threads = torch.get_num_threads()
    problem = _Problem(batch, height, width, channels, outputs, tiles, int(relu), threads)
    tensors = (x, weights, bias, added, *buffers, out)
    for name, tensor in zip(_POINTERS, tensors, strict=True):
        setattr(problem, name, None if tensor is None else tensor.data_ptr())
    function = getattr(cpu.library(), f"winograd_convolution_{cpu.current_isa()}")
    function.argtypes, function.restype = [ctypes.POINTER(_Problem)], None
    function(ctypes.byref(problem))
    return out
