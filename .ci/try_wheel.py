"""An installed wheel: it is what is imported, its kernels are there, and they compute what the reference computes."""

import sys
from pathlib import Path

import torch

import deformable_detr
from deformable_detr.ops import available_backends, ms_deform_attn

torch.manual_seed(0)
levels = [(12, 10), (6, 5)]
value = torch.randn(2, 150, 4, 8)
locations, weights = torch.rand(2, 7, 4, 2, 4, 2), torch.rand(2, 7, 4, 2, 4)
fast, exact = (ms_deform_attn(value, levels, locations, weights, backend=name) for name in ("cpu", "reference"))
torch.testing.assert_close(fast, exact)
assert Path(deformable_detr.__file__).is_relative_to(sys.prefix), deformable_detr.__file__
sys.stdout.write(f"deformable-detr {deformable_detr.__version__}, backends: {', '.join(available_backends())}\n")
