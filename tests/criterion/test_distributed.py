"""Two processes with half of the batch each: their losses and metrics are those of one process with the whole."""

import json

import pytest
import torch
from torch import distributed

from deformable_detr.criterion import SetCriterion
from deformable_detr.structures import Predictions, Target

from ..processes import run_two

COUNTS = (3, 0, 1, 1)


def batch():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 4, 5, 2, generator=generator)
    boxes = torch.rand(2, 4, 5, 4, generator=generator) * 0.4 + 0.1
    targets = [
        Target(torch.rand(count, 4, generator=generator) * 0.4 + 0.1, torch.randint(2, (count,), generator=generator))
        for count in COUNTS
    ]
    return Predictions(logits, boxes), targets


def losses_of_half(rank, folder):
    distributed.init_process_group("gloo")
    predictions, targets = batch()
    half = slice(2 * rank, 2 * rank + 2)
    losses = SetCriterion(2)(Predictions(predictions.logits[:, half], predictions.boxes[:, half]), targets[half])
    (folder / f"{rank}.json").write_text(json.dumps({name: loss.item() for name, loss in losses.items()}))
    distributed.destroy_process_group()


def test_mean_over_processes_is_the_loss_of_the_whole_batch(tmp_path):
    run_two(losses_of_half, tmp_path)
    halves = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    whole = SetCriterion(2)(*batch())
    mean = {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}
    assert mean == pytest.approx({name: loss.item() for name, loss in whole.items()}, rel=1e-5)
