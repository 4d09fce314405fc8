"""MLflow and W&B without a network, where they are installed: what they kept is read back. `make test-others` installs them."""

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deformable_detr.config import RunConfig
from deformable_detr.training import Samples, TrainResult, train
from deformable_detr.training.run_folder import RunFolder


def run_with(logger: str, config: RunConfig, folder: Path) -> TrainResult:
    """A run of few steps, means every second one, with a drawing."""

    def draw(model: Any, dataset: Any, folder: Path) -> None:
        Image.fromarray(np.full((4, 6, 3), 200, dtype=np.uint8)).save(folder / "overview.png")

    settings = replace(config.train, logger=(logger,))
    return train(replace(config, output_dir=str(folder / "first"), train=settings), callbacks=[Samples(draw)])


def losses(result: TrainResult) -> list[tuple[int, Any]]:
    """By the run's own log."""
    records = RunFolder(result.output_dir).read_log()
    return [(record["step"], pytest.approx(record["loss"])) for record in records if record["kind"] == "train"]


def size_of(path: str | Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_mlflow(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a store in a local folder."""
    mlflow = pytest.importorskip("mlflow", reason="make test-others")
    store = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    result = run_with("mlflow", config, tmp_path)
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("deformable-detr").experiment_id])
    assert (run.info.run_name, run.info.status) == ("first", "FINISHED")
    assert run.data.params["optimizer.lr"] == str(config.optimizer.lr)
    curve = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in curve] == losses(result)
    assert run.data.metrics["best/ap"] == pytest.approx(result.best_metrics["ap"])
    (drawing,) = client.list_artifacts(run.info.run_id, "samples/step-00000008")
    assert size_of(client.download_artifacts(run.info.run_id, drawing.path, str(tmp_path))) == (6, 4)


def test_wandb(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With WANDB_MODE=offline, for `wandb sync` later on."""
    pytest.importorskip("wandb", reason="make test-others")
    monkeypatch.setenv("WANDB_MODE", "offline")
    result = run_with("wandb", config, tmp_path)
    (file,) = (tmp_path / "first").glob("wandb/offline-run-*/run-*.wandb")
    kept: dict[str, list[Any]] = {}
    for record in wandb_records(file.read_bytes()):
        kind = record.WhichOneof("record_type")
        kept.setdefault(kind, []).append(getattr(record, kind))
    assert (kept["run"][0].project, kept["run"][0].display_name) == ("deformable-detr", "first")
    settings = {item.key: json.loads(item.value_json) for record in kept["config"] for item in record.update}
    assert settings["optimizer.lr"] == config.optimizer.lr
    rows = [{"/".join(item.nested_key): json.loads(item.value_json) for item in row.item} for row in kept["history"]]
    assert [(row["_step"], row["train/loss"]) for row in rows] == losses(result)
    assert rows[-1]["best/ap"] == pytest.approx(result.best_metrics["ap"])
    (drawing,) = (file.parent / "files" / "media" / "images").glob("samples_8_*.png")
    assert size_of(drawing) == (6, 4)
    assert kept["exit"][0].exit_code == 0


def wandb_records(content: bytes) -> Iterator[Any]:
    """A file of W&B is LevelDB's log behind seven bytes: blocks of 32 KiB, records in pieces, the kinds 1 and 4 end one."""
    from wandb.proto import wandb_internal_pb2  # type: ignore[import-not-found]

    place, pieces = 7, b""
    while place + 7 <= len(content):
        if -place % 32768 and -place % 32768 < 7:
            place += -place % 32768  # no room for a head
            continue
        _, size, kind = struct.unpack_from("<IHB", content, place)
        pieces, place = pieces + content[place + 7 : place + 7 + size], place + 7 + size
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(pieces)
            pieces = b""
