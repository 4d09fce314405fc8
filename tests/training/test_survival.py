"""Runs that meet what long runs meet: a worker that dies, an image that cannot be read, a full disk, a kill, no progress."""

import errno
import multiprocessing
import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from deformable_detr.config import RunConfig
from deformable_detr.data.coco import CocoDataset
from deformable_detr.training import Callback, batches, train, trainer, validation
from deformable_detr.training.batches import DeadWorkerError
from deformable_detr.training.callbacks import Run, Step
from deformable_detr.training.preparation import open_data
from deformable_detr.training.recipe import plan_run
from deformable_detr.training.result import Position
from deformable_detr.training.run_folder import RunFolder
from deformable_detr.training.state import latest_state, load_state

from ..processes import start


def die_at(monkeypatch: pytest.MonkeyPatch, marker: Path, times: int) -> None:
    """Let the process that reads the third image be killed, so many times."""
    original = CocoDataset.image

    def image(self: CocoDataset, index: int) -> torch.Tensor:
        deaths = len(list(marker.iterdir()))
        if torch.utils.data.get_worker_info() is not None and index == 2 and deaths < times:
            (marker / str(deaths)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, index)

    monkeypatch.setattr(CocoDataset, "image", image)


def test_a_dead_worker_is_replaced_and_nothing_else_changes(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(config, data=replace(config.data, num_workers=1), train=replace(config.train, epochs=1, evaluate_every=0))
    undisturbed = train(replace(config, output_dir=str(tmp_path / "undisturbed")))
    (tmp_path / "deaths").mkdir()
    die_at(monkeypatch, tmp_path / "deaths", times=2)
    result = train(replace(config, output_dir=str(tmp_path / "run")))
    assert len(list((tmp_path / "deaths").iterdir())) == 2
    assert sum("lower data.num_workers" in record.getMessage() for record in caplog.records) == 2
    first, second = load_file(undisturbed.last_weights), load_file(result.last_weights)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_workers_that_die_again_and_again_end_the_run(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deaths").mkdir()
    die_at(monkeypatch, tmp_path / "deaths", times=1000)
    config = replace(config, data=replace(config.data, num_workers=1), output_dir=str(tmp_path / "run"))
    with pytest.raises(DeadWorkerError, match=f"{batches.MOST_RESTARTS + 1} workers died.*lower data.num_workers"):
        train(config)


def test_an_unreadable_image(config: RunConfig, dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = shutil.copytree(dataset, tmp_path / "set")
    image = broken / "train" / "3.png"
    image.write_bytes(image.read_bytes()[:60])
    config = replace(config, dataset=str(broken), train=replace(config.train, epochs=1, evaluate_every=0))
    with pytest.raises(ValueError, match=r"3\.png: the image is damaged"):
        train(replace(config, output_dir=str(tmp_path / "stops")))
    skipping = replace(config, data=replace(config.data, on_bad_image="skip"), output_dir=str(tmp_path / "goes on"))
    assert train(skipping).steps == 4
    assert any("3.png" in record.getMessage() and "next image" in record.getMessage() for record in caplog.records)


def test_an_image_of_the_validation_that_is_missing_is_said_before_the_training(
    config: RunConfig, dataset: Path, tmp_path: Path
) -> None:
    """Also where training skips such images: the first evaluation ended the run, an epoch later."""
    lacking = shutil.copytree(dataset, tmp_path / "set")
    config = replace(config, dataset=str(lacking), data=replace(config.data, on_bad_image="skip"))
    (lacking / "train" / "3.png").unlink()
    open_data(config)
    (lacking / "val" / "3.png").unlink()
    with pytest.raises(ValueError, match=r"val: images that are not there \(3\.png"):
        open_data(config)


def test_a_yolo_image_without_a_header_is_left_out_from_the_recipe_on(tmp_path: Path) -> None:
    """The recipe, the checks and the training bear it alike; the whole dataset was refused."""
    for number in range(20):
        for part in ("images", "labels"):
            (tmp_path / part / "train").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20), (10 * number, 90, 90)).save(tmp_path / f"images/train/{number}.png")
        (tmp_path / f"labels/train/{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "images/train/3.png").write_bytes(b"")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [cat]\n")
    asked = {"dataset": str(tmp_path), "recipe": "small-data", "data.val_split": "none", "pretrained_backbone": False}
    config, dataset = plan_run(asked | {"on_bad_image": "skip"})
    assert len(open_data(config, dataset).train) == 19
    with pytest.raises(ValueError, match=r"3\.png: not an image that can be read.*images that cannot be decoded"):
        open_data(*plan_run(asked))


@contextmanager
def no_room_for_files_above(size: int) -> Iterator[None]:
    """Files of this process cannot grow beyond so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_in_between_costs_a_state_but_not_the_run(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original, calls = trainer.save_state, []

    def save_state(*arguments: object) -> object:
        calls.append(arguments)
        with no_room_for_files_above(300_000 if len(calls) == 3 else 10**9):
            return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "save_state", save_state)
    settings = replace(config.train, checkpoint_every=1, evaluate_every=0, epochs=1)
    result = train(replace(config, output_dir=str(tmp_path / "run"), train=settings))
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert "step-00000003.pt" in errors[0]
    assert "step-00000002.pt is where it resumes" in errors[0]
    names = [path.name for path in (result.output_dir / "state").iterdir()]
    assert names == ["step-00000004.pt"]  # no half a file


def test_weights_that_cannot_be_written_at_the_end_are_an_error(config: RunConfig, tmp_path: Path) -> None:
    config = replace(config, train=replace(config.train, steps=1, evaluate_every=0), output_dir=str(tmp_path / "run"))
    with (
        pytest.raises(OSError, match=r"last\.safetensors .*is the disk full.*no state could be saved either"),
        no_room_for_files_above(300_000),
    ):
        train(config)
    assert not (tmp_path / "run" / "weights" / "last.safetensors").exists()
    assert not list((tmp_path / "run" / "weights").iterdir())


def test_a_log_that_cannot_be_written_costs_nothing_else(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: RunFolder, record: dict) -> None:
        if record["kind"] != "start":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.log))

    monkeypatch.setattr(RunFolder, "append_log", full)
    result = train(replace(config, train=replace(config.train, steps=2, log_every=1), output_dir=str(tmp_path / "run")))
    assert result.steps == 2
    assert any("log.jsonl" in record.getMessage() and "goes on" in record.getMessage() for record in caplog.records)


def test_a_script_without_main_guard(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where workers are started afresh, each runs the script again: it says what the script lacks, and so does the parent."""
    run = replace(config, output_dir=str(tmp_path / "run"))
    with monkeypatch.context() as worker:
        worker.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
        with pytest.raises(RuntimeError, match='if __name__ == "__main__":'):
            train(run)
    assert not (tmp_path / "run").exists()

    class Loader:
        sampler = SimpleNamespace(set_epoch=lambda *arguments, **settings: None)

        def __iter__(self):
            raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")

    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    with pytest.raises(DeadWorkerError, match='if __name__ == "__main__":'):
        next(batches.step_batches(Loader(), Position(), 1))  # type: ignore[arg-type]


class Slow(Callback):
    """So that the run cannot end before it is killed."""

    def on_step(self, run: Run, step: Step) -> None:
        time.sleep(0.05)


def train_slowly(config: RunConfig) -> None:
    train(config, callbacks=[Slow()])


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_the_steps_since_the_last_state_alone(config: RunConfig, tmp_path: Path) -> None:
    """SIGKILL at two moments of a run with a state after every step: it goes on, and the end is that of an undisturbed run."""
    settings = replace(config.train, checkpoint_every=1, evaluate_every=0, epochs=3)
    config = replace(config, train=settings)
    expected = load_file(train(replace(config, output_dir=str(tmp_path / "undisturbed"))).last_weights)
    run = replace(config, output_dir=str(tmp_path / "run"))
    folder = RunFolder(tmp_path / "run")
    for resume, killed_after in ((False, 2), (True, 5)):
        process = start(train_slowly, replace(run, resume=resume))
        deadline = time.monotonic() + 120
        while ((path := latest_state(folder.state)) is None or load_step(path) < killed_after) and process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        left = latest_state(folder.state)
        assert left is not None
        assert killed_after <= load_state(left)["step"] < 12  # whole, and readable
    found = load_file(train(replace(run, resume=True)).last_weights)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def load_step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def test_stopping_early(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best AP is the second; two evaluations later it is enough, and a resumed run sees that, too."""
    original, ap = validation.evaluate, iter([0.1, 0.5, 0.4, 0.5, 0.9])

    def evaluate(*arguments: object, **settings: object) -> object:
        return replace(original(*arguments, **settings), ap=next(ap))  # type: ignore[arg-type, type-var]

    monkeypatch.setattr(validation, "evaluate", evaluate)
    run = replace(config, output_dir=str(tmp_path / "run"), train=replace(config.train, epochs=9, evaluate_every=1, patience=2))
    result = train(run)
    assert (result.steps, len(result.history), result.best_metrics["ap"]) == (16, 4, 0.5)
    assert train(replace(run, resume=True)).steps == 16
