"""`deformable-detr benchmark op` beside other projects' implementations, as far as they are installed.

    python benchmarks/operator_peers.py --case "300 queries" --output peers.json

Takes the options of `benchmark op`. Peers: transformers' module, mmcv, deformops, torch-ms-deform-attn. Install those that are
not dependencies of this project into an environment of their own.
"""

import importlib
import sys
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from deformable_detr.cli import benchmark_operator
from deformable_detr.cli.__main__ import main as command_line
from deformable_detr.ops import benchmark
from deformable_detr.ops.benchmark import Operator, Peers, unfused
from deformable_detr.ops.reference import sampling_locations_from_offsets

Shapes = list[tuple[int, int]]


def _device_shapes(shapes: Shapes, value: Tensor) -> tuple[Tensor, Tensor]:
    return _kept_shapes(tuple(shapes), value.device)


@cache
def _kept_shapes(shapes: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Made once, as a network would: making them would wait for the device."""
    sizes = torch.tensor(shapes, dtype=torch.int64, device=device)
    return sizes, torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]])


def _transformers(fused: bool) -> Operator:
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    module = MultiScaleDeformableAttention()

    def operator(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        sizes, starts = _device_shapes(shapes, value)
        return module(value, sizes, shapes, starts, locations, weights, 64)

    return unfused(operator, fused)


def _mmcv(fused: bool) -> Operator:
    from mmcv.ops import multi_scale_deform_attn as mmcv_ops

    def operator(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        sizes, starts = _device_shapes(shapes, value)
        if value.is_cuda:
            return mmcv_ops.MultiScaleDeformableAttnFunction.apply(value, sizes, starts, locations, weights, 64)
        return mmcv_ops.multi_scale_deformable_attn_pytorch(value, sizes, locations, weights)

    return unfused(operator, fused)


def _deformops(fused: bool, backend: str | None = None) -> Operator:
    from deformops.registry import Backend, msda

    chosen = None if backend is None else Backend[backend]
    if chosen is not None and not torch.cuda.is_available():
        raise ImportError("there is no GPU for this backend of deformops")

    def plain(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        return msda(value, *_device_shapes(shapes, value), locations, weights, backend=chosen)

    def whole(shapes: Shapes, value: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        locations = sampling_locations_from_offsets(reference, offsets, shapes).to(value.dtype)
        return msda(value, *_device_shapes(shapes, value), locations, logits.to(value.dtype), softmax=True, backend=chosen)

    return whole if fused else unfused(plain, fused)


def _torch_ms_deform_attn(fused: bool) -> Operator:
    function = importlib.import_module("torch_ms_deform_attn").MSDeformAttnFunction

    def operator(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        return function.apply(value, *_device_shapes(shapes, value), locations, weights, 64)

    return unfused(operator, fused)


PEERS = Peers(
    {
        "transformers": _transformers,
        "mmcv": _mmcv,
        "deformops": _deformops,
        "deformops CUDA": partial(_deformops, backend="CUDA"),
        "torch-ms-deform-attn": _torch_ms_deform_attn,
    },
    command=(sys.executable, str(Path(__file__).resolve()), "--memory-of"),
)


def main() -> int:
    """Measure one peer's memory for the process that asks, or run the command with all of them."""
    if sys.argv[1:2] == ["--memory-of"]:
        benchmark.main(sys.argv[2], PEERS)
        return 0
    benchmark_operator.PEERS = PEERS
    return command_line(["benchmark", "op", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
