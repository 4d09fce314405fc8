"""An evaluation within a run: what it must leave as it was, and what it must not leave behind."""

import gc
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deformable_detr.acceleration.fused_convolutions import FusedConvolution
from deformable_detr.acceleration.model import InferenceModel
from deformable_detr.categories import Categories
from deformable_detr.config import RunConfig, TrainConfig
from deformable_detr.training import Samples, train, validation
from deformable_detr.training.run_folder import RunFolder


def test_training_goes_on_as_if_there_had_been_no_evaluation(config: RunConfig, tmp_path: Path) -> None:
    settings = replace(config.train, epochs=2, batch_size=4, log_every=1)
    found = []
    for every in (0, 1):
        folder = tmp_path / f"every-{every}"
        result = train(replace(config, output_dir=str(folder), train=replace(settings, evaluate_every=every)))
        assert len(result.history) == 1 + every  # after the last epoch in any case
        records = [record for record in RunFolder(folder).read_log() if record["kind"] == "train"]
        found.append(([{**record, "images_per_second": None} for record in records], load_file(result.last_weights)))
    (losses, weights), (losses_with, weights_with) = found
    assert [record["step"] for record in losses] == [1, 2, 3, 4]
    assert losses == losses_with
    assert all(torch.equal(weights[name], weights_with[name]) for name in weights)


@pytest.mark.parametrize("every", [0, 1, 3])
def test_evaluations_are_counted(every: int) -> None:
    """At once, however many epochs there are: a run until it is stopped."""
    one = validation.Validation(None, Categories(("cat",), (1,)), TrainConfig(evaluate_every=every), None)  # type: ignore[arg-type]
    assert one.count(0, 5) == 0  # there is nothing to measure on
    one.loader = []  # type: ignore[assignment]
    for end in range(8):
        for first in range(9):
            due = [one.due(epoch, last=epoch == end - 1) for epoch in range(first, end)]
            assert one.count(first, end) == sum(due)
    assert one.count(1, 10**18) == {0: 1, 1: 10**18 - 1, 3: 10**18 // 3 + 1}[every]


def test_the_folded_weights_are_freed(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the automatic garbage collector off, no convolution with a folded batch norm is left beside the network's own."""
    counts: list[int] = []

    def convolutions() -> int:
        return sum(type(thing) in (torch.nn.Conv2d, FusedConvolution) for thing in gc.get_objects())

    class Watched(InferenceModel):
        def forward(self, *arguments, **keywords):
            predictions = super().forward(*arguments, **keywords)
            counts.append(convolutions())
            return predictions

    def draw_samples(model, dataset, folder: Path) -> None:
        counts.append(convolutions())

    monkeypatch.setattr(validation, "InferenceModel", Watched)
    settings = replace(config.train, steps=1, batch_size=4)
    gc.collect()
    gc.disable()
    try:
        train(replace(config, output_dir=str(tmp_path / "run"), train=settings), callbacks=[Samples(draw_samples)])
    finally:
        gc.enable()
    while_evaluating, afterwards = counts
    assert while_evaluating - afterwards > 10


def test_a_validation_split_without_boxes(config: RunConfig, dataset: Path, tmp_path: Path, caplog, capsys) -> None:
    """Nothing can be measured: no AP of 0, the last weights are the best ones, and patience does not end the run."""
    root = tmp_path / "set"
    shutil.copytree(dataset, root)
    file = root / "annotations" / "instances_val.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    settings = replace(config.train, epochs=3, batch_size=4, evaluate_every=1, patience=1)
    result = train(replace(config, dataset=str(root), output_dir=str(tmp_path / "run"), train=settings))
    assert [(row["epoch"], row["ap"]) for row in result.history] == [(1, None), (2, None), (3, None)]
    assert result.metrics["ap"] is None
    best, last = load_file(result.best_weights), load_file(result.last_weights)
    assert all(torch.equal(best[name], last[name]) for name in last)
    assert "no box to find, so that nothing can be measured" in caplog.text
    assert "AP –" in caplog.text + capsys.readouterr().out
