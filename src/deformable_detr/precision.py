"""The names of precisions, and their meanings, for training, evaluation, inference and the command line."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
"""The autocast dtype of forward passes; weights stay float32."""

AUTOCAST_DTYPES: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_dtype(precision: str) -> torch.dtype | None:
    """The dtype that autocast runs in, None for `fp32`.

    Raises:
        ValueError: no such precision.
    """
    if precision not in AUTOCAST_DTYPES:
        raise ValueError(f"unknown precision {precision!r}: use {', '.join(AUTOCAST_DTYPES)}")
    return AUTOCAST_DTYPES[precision]


def cpu_multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for products of bfloat16: AMX, or BF16 of AVX-512 (Zen 4, Cooper Lake and later)."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def autocast(precision: str, device: torch.device | str) -> AbstractContextManager:
    """The context that a forward pass of this precision runs in; one that does nothing for `fp32`.

    Raises:
        ValueError: no such precision.
    """
    dtype = autocast_dtype(precision)
    return nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype)
