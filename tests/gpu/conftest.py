"""Arithmetic on a GPU that can be compared with a CPU's."""

import pytest
import torch


@pytest.fixture
def exact():
    """Convolutions and matrix products of float32 with all their digits."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
