"""The self-attention of the decoder beside torch's own module with the same weights."""

import math

import pytest
import torch
from torch import nn

from deformable_detr.model.decoder import SelfAttention


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("per_head", [False, True])
def test_equals_torchs_module(masked: bool, per_head: bool) -> None:
    torch.manual_seed(0)
    ours = SelfAttention(12, 3).double()
    theirs = nn.MultiheadAttention(12, 3, batch_first=True).double()
    nn.init.normal_(ours.in_proj_bias)
    theirs.load_state_dict(ours.state_dict())
    query, key, value = (torch.randn(2, count, 12, dtype=torch.float64) for count in (4, 6, 6))
    mask = torch.randn(*((2, 3) if per_head else ()), 4, 6, dtype=torch.float64)
    mask = mask.masked_fill(torch.rand(mask.shape) < 0.3, -math.inf) if masked else mask
    found, weights = ours(query, key, value, mask)
    expected, _ = theirs(query, key, value, attn_mask=mask.flatten(0, 1) if per_head else mask, need_weights=False)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert weights is None


def test_weights_are_dropped_in_training_alone() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(8, 2, dropout=0.5)
    query = torch.randn(1, 20, 8)
    one, other = (attention(query, query, query)[0] for _ in range(2))
    assert not torch.equal(one, other)
    kept = nn.MultiheadAttention(8, 2, batch_first=True)
    kept.load_state_dict(attention.eval().state_dict())
    torch.testing.assert_close(attention(query, query, query)[0], kept(query, query, query, need_weights=False)[0])
