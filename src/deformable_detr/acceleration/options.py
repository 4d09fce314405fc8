"""The switches of the optimised forward pass, and which arithmetic is the fastest here."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from deformable_detr.acceleration.fused_convolutions import random_numbers
from deformable_detr.ops.benchmark import median_times
from deformable_detr.precision import Precision, autocast_dtype, cpu_multiplies_bfloat16

WORTHWHILE = 1.2
"""Lower precision must be this many times faster than float32 to be chosen."""


@dataclass(frozen=True)
class InferenceOptions:
    """What `optimize` does. No switch changes the predictions beyond rounding; docs/inference.md says what each gives."""

    fold_batch_norm: bool = True
    """Multiply batch norms into the convolutions before them."""

    channels_last: bool = True
    """Run backbone and neck in the memory format `[B, H, W, C]`."""

    inplace_activations: bool = True
    """Activations of the backbone overwrite their input."""

    fuse_convolutions: bool = True
    """Convolutions of oneDNN (on a GPU of cuDNN) with sum and ReLU inside."""

    winograd: bool = True
    """With `fuse_convolutions` and `channels_last`: 3×3 convolutions with a quarter of the multiplications; four times their
    weights are kept once more."""

    chunk_tokens: int | None = 2048
    """On a CPU: the encoder works on this many tokens at a time, in cache. None: the model's own encoder."""

    constant_sizes: int = 4
    """Number of image sizes whose positions, masks and reference points are kept. 0: computed each time."""

    answer_only: bool = True
    """Give the last decoder layer alone, `[1, B, Q, …]`, and no encoder proposals: what training needs is not computed."""

    packed_weights: bool = True
    """In bf16 on a CPU that multiplies bfloat16 or a GPU: weights are converted once, instead of at each call by autocast."""

    compile: bool = False
    """Compile backbone and encoder with inductor: once per image size, a minute each; needs a C++ compiler (or Triton)."""

    cuda_graphs: bool = False
    """On a CUDA GPU: record the kernels of each batch shape once and replay them; costs memory per shape."""


PLAIN = InferenceOptions(False, False, False, False, False, None, 0, False, False)
"""Nothing but inference mode: the model as it is."""


def fastest_precision(device: torch.device) -> Precision:
    """What a convolution of a ResNet runs fastest in on this device, measured: `bf16` (`fp16` on old GPUs) or `fp32`.

    On a CPU only AMX, or AVX-512 with BF16, makes bfloat16 worth a try.
    """
    if device.type == "cuda":
        candidate: Precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    elif device.type == "cpu" and cpu_multiplies_bfloat16():
        candidate = "bf16"
    else:
        return "fp32"
    x, weight = (
        random_numbers(*shape).to(device).contiguous(memory_format=torch.channels_last)
        for shape in ((1, 128, 50, 50), (128, 128, 3, 3))
    )
    dtypes = torch.float32, autocast_dtype(candidate) or torch.float32
    runs = {dtype: partial(F.conv2d, x.to(dtype), weight.to(dtype), padding=1) for dtype in dtypes}
    for rounds in (2, 5):  # the first ones are slow
        seconds = median_times(runs, rounds, str(device))
    return candidate if seconds[dtypes[0]] > WORTHWHILE * seconds[dtypes[1]] else "fp32"
