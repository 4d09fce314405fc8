from typing import cast

import pytest
import torch
from torch import nn

from deformable_detr.training.ema import ExponentialMovingAverage


def test_numbers_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    ema = ExponentialMovingAverage(model, decay=0.15)
    # decays 1/10, min(0.15, 2/11), min(0.15, 3/12):
    # 0.1 * 1 + 0.9 * 2 = 1.9; 0.15 * 1.9 + 0.85 * 3 = 2.835; 0.15 * 2.835 + 0.85 * 5 = 4.67525
    for value, expected in ((2.0, 1.9), (3.0, 2.835), (5.0, 4.67525)):
        nn.init.constant_(model.weight, value)
        ema.update(model)
        assert ema.module.weight.item() == pytest.approx(expected)
    assert not ema.module.weight.requires_grad
    assert ema.updates == 3


def test_the_decay_is_warmed_up() -> None:
    ema = ExponentialMovingAverage(nn.Linear(1, 1), decay=0.999)
    assert ema.decay_at(0) == pytest.approx(0.1)
    assert ema.decay_at(90) == pytest.approx(0.91)
    assert ema.decay_at(100_000) == 0.999


def test_a_layer_that_stands_twice_is_averaged_once() -> None:
    shared = nn.Linear(1, 1, bias=False)
    nn.init.constant_(shared.weight, 1.0)
    model = nn.ModuleList([shared, shared])
    ema = ExponentialMovingAverage(model, decay=0.1)
    nn.init.constant_(shared.weight, 2.0)
    ema.update(model)
    first, second = (cast(nn.Linear, layer) for layer in ema.module)
    assert first.weight.item() == pytest.approx(1.9)
    assert first.weight is second.weight


def test_statistics_are_averaged_and_counters_copied() -> None:
    model = nn.BatchNorm1d(1)
    ema = ExponentialMovingAverage(model, decay=0.1)
    assert model.running_mean is not None and model.num_batches_tracked is not None
    model.running_mean.fill_(10.0)
    model.num_batches_tracked.fill_(7)
    ema.update(model)
    assert ema.module.running_mean is not None and ema.module.num_batches_tracked is not None
    assert ema.module.running_mean.item() == pytest.approx(9.0)
    assert ema.module.num_batches_tracked.item() == 7


def test_state_goes_on() -> None:
    model = nn.Linear(2, 2)
    ema = ExponentialMovingAverage(model, decay=0.5)
    ema.update(model)
    other = ExponentialMovingAverage(nn.Linear(2, 2), decay=0.5)
    other.load_state_dict(ema.state_dict())
    assert other.updates == 1
    assert torch.equal(other.module.weight, ema.module.weight)


@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5])
def test_impossible_decays(decay: float) -> None:
    with pytest.raises(ValueError, match="ema_decay must be in"):
        ExponentialMovingAverage(nn.Linear(1, 1), decay)
