"""Convolutions that add and apply ReLU before they store: oneDNN's, and Winograd's for 3×3 ones."""

import functools
import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deformable_detr.ops.winograd import CHANNEL_UNIT, num_tiles, transform_weights, winograd_convolution

logger = logging.getLogger(__name__)

MIN_TILES = 8
"""With fewer 4 × 4 tiles, reading four times the weights costs more than is saved."""

MAX_WEIGHTS = 4_000_000
"""Largest number of transformed weights that are kept for one convolution (16 MB); 512 to 512 channels would need 38 MB."""


class FusedConvolution(nn.Module):
    """A convolution that adds another tensor and applies ReLU while its output is still in cache (oneDNN post-operations).

    In bfloat16 with AMX the weights lie in oneDNN's own layout. Elsewhere they do not: oneDNN has several, and packed for one image
    size they were up to ten times slower at another.

    Args:
        convolution: with constant float32 weights, on the CPU.
        relu: apply ReLU at the end.
        overwrite: the sum may be stored where the added tensor was.
        dtype: float32 or bfloat16, of input, weights and output; sums and bias are float32.
    """

    def __init__(self, convolution: nn.Conv2d, *, relu: bool, overwrite: bool = False, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.geometry = convolution.padding, convolution.stride, convolution.dilation, convolution.groups
        self.dtype = dtype
        self.weight = convolution.weight.detach().to(dtype)
        if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.geometry, None)
        self.bias = None if convolution.bias is None else convolution.bias.detach().to(dtype)
        self.activation = "relu" if relu else "none"
        self.overwrite = overwrite

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """`[B, C, h, w]`, and what is added to the result, → `[B, C', h', w']`."""
        x = self._prepared(x)
        inputs = x, self.weight, self.bias, *self.geometry
        if added is None:
            return torch.ops.mkldnn._convolution_pointwise(*inputs, self.activation, [], "")
        relu = "relu" if self.activation == "relu" else None
        if self.overwrite and added.dtype == self.dtype:
            return torch.ops.mkldnn._convolution_pointwise_.binary(self._prepared(added), *inputs, "add", 1.0, relu, [], "")
        return torch.ops.mkldnn._convolution_pointwise.binary(x, self._prepared(added), *inputs[1:], "add", 1.0, relu, [], "")

    def _prepared(self, x: Tensor) -> Tensor:
        """In the type of the weights, and in the only memory format that PyTorch's sum with ReLU has in bfloat16."""
        x = x.to(self.dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.dtype == torch.bfloat16 else x


class CudnnConvolution(FusedConvolution):
    """The same by cuDNN, on a GPU; nothing is overwritten."""

    def __init__(self, convolution: nn.Conv2d, *, relu: bool, overwrite: bool = False, dtype: torch.dtype = torch.float32) -> None:
        nn.Module.__init__(self)
        del overwrite
        self.geometry: Any = convolution.stride, convolution.padding, convolution.dilation, convolution.groups
        self.dtype, self.relu = dtype, relu
        self.weight = convolution.weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        bias = convolution.weight.new_zeros(convolution.out_channels) if convolution.bias is None else convolution.bias
        self.bias = bias.detach().to(dtype)

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """As that of :class:`FusedConvolution`."""
        x = x.to(self.dtype)
        if not self.relu:  # then nothing is added
            return F.conv2d(x, self.weight, self.bias, *self.geometry)
        if added is None:
            return torch.cudnn_convolution_relu(x, self.weight, self.bias, *self.geometry)
        return torch.cudnn_convolution_add_relu(x, self.weight, added.to(self.dtype), 1.0, self.bias, *self.geometry)


CONVOLUTIONS: dict[str, type[FusedConvolution]] = {"cpu": FusedConvolution, "cuda": CudnnConvolution}
"""The fused convolution of each type of device that has one."""


@functools.cache
def fused_convolutions_work(dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> bool:
    """Whether this build of PyTorch has fused convolutions of this type for this device, as used here, and they are right."""
    device = torch.device(device)
    available = {"cpu": torch.backends.mkldnn.is_available(), "cuda": torch.backends.cudnn.is_available()}
    if not available.get(device.type):
        return False
    convolution = nn.Conv2d(8, 8, 3, padding=1, dtype=torch.float32, device="meta").requires_grad_(False)
    numbers = {"weight": random_numbers(8, 8, 3, 3).to(device), "bias": random_numbers(8).to(device)}
    convolution.load_state_dict(numbers, assign=True)
    x, added = (one.to(device, dtype).contiguous(memory_format=torch.channels_last) for one in random_numbers(2, 1, 8, 6, 6))
    exact = F.conv2d(x.double(), numbers["weight"].double(), numbers["bias"].double(), padding=1)
    expected = (exact + added.double()).relu()
    form = functools.partial(CONVOLUTIONS[device.type], convolution, relu=True, dtype=dtype)
    try:
        with torch.autocast(device.type, enabled=False):
            found = [form(overwrite=overwrite)(x, added.clone()) for overwrite in (False, True)]
    except (AttributeError, RuntimeError, TypeError) as error:
        logger.info("no fused convolutions of %s on %s in this build of PyTorch: %s", dtype, device.type, error)
        return False
    # sums of 72 products of numbers about 1; cuDNN may round the factors of float32 to 10 bits (TF32)
    atol, rtol = (0.2, 0.02) if dtype != torch.float32 else (1e-4, 1e-5) if device.type == "cpu" else (0.02, 2e-3)
    return all(torch.allclose(one.double(), expected, atol=atol, rtol=rtol) for one in found)


def random_numbers(*shape: int) -> Tensor:
    """Normal numbers, whatever the process's default dtype and device; its random state stays as it is."""
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float32, device="cpu")


class WinogradConvolution(FusedConvolution):
    """A 3×3 convolution by Winograd's F(4×4, 3×3), where the maps are large enough; see `ops.winograd`.

    The transformed weights, four times as large, are made when they are first needed.
    """

    def __init__(self, convolution: nn.Conv2d, **settings: Any) -> None:
        super().__init__(convolution, **settings)
        self._transformed: Tensor | None = None

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """As that of :class:`FusedConvolution`."""
        if num_tiles(x.shape) < MIN_TILES:
            return super().forward(x, added)
        if self._transformed is None:
            self._transformed = transform_weights(self.weight)
        out = None
        if added is not None:
            added = added.float().contiguous(memory_format=torch.channels_last)
            out = added if self.overwrite else None
        return winograd_convolution(x.float(), self._transformed, self.bias, added, relu=self.activation == "relu", out=out)


def fits_winograd(convolution: nn.Conv2d) -> bool:
    """Whether it is 3×3 with stride 1, one pixel of zeros around, and with numbers of channels that fit the kernels and memory."""
    outputs, channels = convolution.weight.shape[:2]
    geometry = convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation, convolution.groups
    fits = outputs % CHANNEL_UNIT == channels % CHANNEL_UNIT == 0 and 36 * outputs * channels <= MAX_WEIGHTS
    return fits and geometry == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
