import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deformable_detr.config import RunConfig
from deformable_detr.settings import to_record
from deformable_detr.training.callbacks import Callback, Run, Step
from deformable_detr.training.interruption import TrainingInterrupted
from deformable_detr.training.preparation import check_same_run, contents_of, describe_data, open_data
from deformable_detr.training.run_folder import RunFolder
from deformable_detr.training.state import latest_state, load_state
from deformable_detr.training.trainer import train


def newest_state(folder: Path) -> dict[str, Any]:
    path = latest_state(folder / "state")
    assert path is not None
    return load_state(path)


def same_run(config: RunConfig, folder: Path, **changes) -> RunConfig:
    return replace(config, output_dir=str(folder), train=replace(config.train, ema_decay=0.9), **changes)


def strip(folder: Path) -> list[dict]:
    """The logged numbers, without those of the clock and without the starts."""
    records = [record for record in RunFolder(folder).read_log() if record["kind"] != "start"]
    return [{key: value for key, value in record.items() if key != "images_per_second"} for record in records]


@pytest.fixture(scope="module")
def uninterrupted(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(same_run(config, tmp_path_factory.mktemp("runs") / "whole")).output_dir


# 8 images in batches of 2: an epoch is 4 steps; 3 is in the middle of an epoch, 4 at its end
@pytest.mark.parametrize("step", [3, 4])
def test_a_resumed_run_ends_with_the_same_bits(config: RunConfig, tmp_path: Path, uninterrupted: Path, step: int, stop_at) -> None:
    folder = tmp_path / "interrupted"
    with pytest.raises(TrainingInterrupted, match=rf"stopped after step {step} of 8.*--resume --output {folder}"):
        train(same_run(config, folder), callbacks=[stop_at(step)])
    assert newest_state(folder)["step"] == step

    result = train(same_run(config, folder, resume=True))

    assert result.steps == 8
    for name in ("last", "best"):
        whole = load_file(uninterrupted / "weights" / f"{name}.safetensors")
        resumed = load_file(folder / "weights" / f"{name}.safetensors")
        assert whole.keys() == resumed.keys()
        for key in whole:
            assert torch.equal(whole[key], resumed[key]), key
    assert (folder / "metrics.csv").read_text() == (uninterrupted / "metrics.csv").read_text()
    without_time = [strip(folder), strip(uninterrupted)]
    assert without_time[0] == without_time[1]
    final, expected = (newest_state(path) for path in (folder, uninterrupted))
    assert (final["position"], final["history"]) == (expected["position"], expected["history"])
    assert final["contents"] == expected["contents"]
    for key in ("network", "ema"):
        torch.testing.assert_close(final[key], expected[key], rtol=0, atol=0)
    torch.testing.assert_close(final["optimizer"]["state"], expected["optimizer"]["state"], rtol=0, atol=0)
    assert torch.equal(final["random"][0]["torch"], expected["random"][0]["torch"])


class EndsWithin(Callback):
    """Ends a run in the middle of its first epoch; the evaluation that comes then may be killed."""

    def __init__(self, killed: bool) -> None:
        self.killed = killed

    def on_step(self, run: Run, step: Step) -> None:
        if step.step == 2:
            run.stop("two are enough")

    def on_evaluation_step(self, run: Run, done: int, total: int) -> None:
        if self.killed:
            raise SystemExit


@pytest.mark.parametrize("killed", [False, True])
def test_a_run_that_ended_within_an_epoch_goes_on_there(
    config: RunConfig, tmp_path: Path, uninterrupted: Path, killed: bool
) -> None:
    with pytest.raises(SystemExit) if killed else nullcontext():
        assert train(same_run(config, tmp_path / "run"), callbacks=[EndsWithin(killed)]).steps == 2
    result = train(same_run(config, tmp_path / "run", resume=True))
    assert result.steps == 8
    whole, resumed = (load_file(RunFolder(folder).last_weights) for folder in (uninterrupted, result.output_dir))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_setting_that_a_saved_state_lacks_was_as_it_is_by_default(config: RunConfig, tmp_path: Path) -> None:
    run = same_run(config, tmp_path / "run")
    data = open_data(run)
    saved: dict[str, Any] = {"config": to_record(run), "processes": 1, "dataset": describe_data(data)}
    del saved["config"]["optimizer"]["drop_at"]
    check_same_run(run, saved, data, 1)
    with pytest.raises(ValueError, match=r"optimizer\.drop_at was 0\.8, is 0\.5"):
        check_same_run(replace(run, optimizer=replace(run.optimizer, drop_at=0.5)), saved, data, 1)


def test_the_log_is_json_whatever_the_numbers(tmp_path: Path) -> None:
    """The gradients of fp16 overflow in the first steps; JSON has neither infinity nor NaN."""
    folder = RunFolder(tmp_path)
    for step, norm in enumerate((float("inf"), float("nan"), 2.5)):
        folder.append_log({"kind": "train", "step": step, "loss": 1.0, "grad_norm": norm})
    folder.rewind_log(2, evaluated=True)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    rows = [json.loads(line, parse_constant=refuse) for line in folder.log.read_text().splitlines()]
    assert [(row["loss"], row["grad_norm"]) for row in rows] == [(1.0, None), (1.0, None), (1.0, 2.5)]


def test_what_has_changed_in_the_dataset_is_said(config: RunConfig, dataset: Path, tmp_path: Path, caplog) -> None:
    """Labels that were exchanged and images in another order make other steps, though the settings are the same."""
    data = tmp_path / "set"
    shutil.copytree(dataset, data)
    run = same_run(config, tmp_path / "run", dataset=str(data))
    opened = open_data(run)
    saved = {"config": to_record(run), "processes": 1, "dataset": describe_data(opened), "contents": contents_of(opened)}

    def told(split: str, change) -> list[str]:
        path = data / "annotations" / f"instances_{split}.json"
        before = path.read_text()
        record = json.loads(before)
        change(record)
        path.write_text(json.dumps(record))
        caplog.clear()
        check_same_run(run, saved, open_data(run), 1)
        path.write_text(before)
        return [record.message.rpartition(": ")[2] for record in caplog.records if "has changed" in record.message]

    assert told("train", lambda record: None) == []
    assert told("train", lambda record: record["annotations"].reverse()) == []
    assert told("train", lambda record: record["images"].reverse()) == ["training order of the images"]
    assert told("train", lambda record: record["annotations"][3].update(category_id=7, bbox=[1, 1, 9, 9])) == [
        "training boxes or their classes"
    ]
    assert told("val", lambda record: record["annotations"].pop()) == ["validation boxes or their classes"]
    assert told("val", lambda record: record["images"].pop() and record["annotations"].__delitem__(slice(-2, None))) == [
        "validation images"
    ]
    del saved["contents"]  # of an older version
    assert told("train", lambda record: record["images"].reverse()) == []


def test_a_run_that_has_made_more_steps_than_are_asked_for_is_refused(
    config: RunConfig, tmp_path: Path, uninterrupted: Path
) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    shorter = same_run(config, tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="has made 8 steps already, more than the 1 that are asked for"):
        train(replace(shorter, train=replace(shorter.train, steps=1)))


def test_what_else_stands_in_the_folder_of_a_run(config: RunConfig, tmp_path: Path, uninterrupted: Path, caplog) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(uninterrupted, folder.root)
    log = folder.read_log()
    folder.log.write_bytes(b"\xff\n[1]\n{}\n" + folder.log.read_bytes().replace(b"\n", b'\n{"kind": "tr\n', 1))
    assert folder.read_log() == log
    folder.best_weights.unlink()
    result = train(same_run(config, folder.root, resume=True))  # all steps are done
    assert result.best_weights == folder.last_weights
    assert "best.safetensors is gone" in caplog.text
    path = latest_state(folder.state)
    assert path is not None
    torch.save({"step": 8}, path)
    with pytest.raises(ValueError, match=r"step-00000008\.pt is not the state of a run"):
        load_state(path)
