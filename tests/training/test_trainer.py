import csv
import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from deformable_detr.acceleration.model import InferenceModel
from deformable_detr.categories import Categories
from deformable_detr.checkpoints import save_weights
from deformable_detr.checkpoints.load import load_pretrained
from deformable_detr.config import RunConfig
from deformable_detr.data.loader import build_dataset, build_loader
from deformable_detr.evaluation import Metrics, evaluate
from deformable_detr.model import build_model
from deformable_detr.settings import read_config
from deformable_detr.training.callbacks import Callback, Run, Samples, Step
from deformable_detr.training.preparation import build_network
from deformable_detr.training.run_folder import RunFolder
from deformable_detr.training.state import latest_state, load_state
from deformable_detr.training.trainer import TrainResult, train


@pytest.fixture(scope="module")
def run(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, list[Path]]:
    """A finished run and the folders that samples were drawn to."""
    drawn = []

    def draw_samples(model, dataset, folder: Path) -> None:
        assert not model.training
        assert len(dataset) == 4
        drawn.append(folder)

    config = replace(config, output_dir=str(tmp_path_factory.mktemp("runs") / "run"), train=replace(config.train, evaluate_every=1))
    return train(config, callbacks=[Samples(draw_samples)]), drawn


def test_the_run_folder_is_complete(run: tuple[TrainResult, list[Path]]) -> None:
    result, drawn = run
    folder = result.output_dir
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "tfevents" not in path.name}
    assert names == {
        *("config.yaml", "log.jsonl", "metrics.csv", "loss.png", "ap.png", "progress.json"),
        *("weights/best.safetensors", "weights/last.safetensors", "state/step-00000008.pt"),
    }
    assert len(list((folder / "tensorboard").glob("events.out.tfevents.*"))) == 1
    for name in ("loss.png", "ap.png"):
        with Image.open(folder / name) as image:
            assert image.width > 500
    assert drawn == [folder / "samples"] * 2
    assert (result.steps, result.best_weights, result.last_weights) == (
        *(8, folder / "weights" / "best.safetensors", folder / "weights" / "last.safetensors"),
    )


def test_the_log_says_everything(run: tuple[TrainResult, list[Path]]) -> None:
    folder = run[0].output_dir
    records = RunFolder(folder).read_log()
    steps = [(record["kind"], record["step"]) for record in records]
    train_steps = [("train", 2), ("train", 4), ("evaluation", 4), ("train", 6), ("train", 8), ("evaluation", 8)]
    assert steps == [("start", 0), *train_steps]
    layers = [f"loss_{kind}{layer}" for kind in ("class", "bbox", "giou") for layer in ("", "_0", "_enc")]
    for record in records:
        if record["kind"] == "train":
            assert {"epoch", "lr", "loss", "grad_norm", "images_per_second", *layers} <= record.keys()
            weights = {"class": 2, "bbox": 5, "giou": 2}
            total = sum(weights[name.split("_")[1]] * record[name] for name in layers)
            assert record["loss"] == pytest.approx(total, rel=1e-5)
    assert [entry["name"] for entry in records[-1]["per_class"]] == ["blue", "red"]
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "4"), ("2", "8")]
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    assert float(rows[0]["train_loss"]) == pytest.approx(sum(losses[:2]) / 2, rel=1e-6)
    assert float(rows[1]["train_loss"]) == pytest.approx(sum(losses[2:]) / 2, rel=1e-6)


def test_the_weights_know_what_they_are(run: tuple[TrainResult, list[Path]]) -> None:
    result = run[0]
    with safe_open(result.last_weights, framework="pt") as file:
        metadata = json.loads(file.metadata()["metadata"])
    assert metadata["categories"] == {"names": ["blue", "red"], "ids": [3, 7]}
    assert metadata["model"]["num_classes"] == 2
    assert (metadata["eval_short_side"], metadata["max_long_side"]) == (64, 64)
    assert (metadata["training"]["preset"], metadata["training"]["epoch"], metadata["training"]["step"]) == ("tiny", 2, 8)
    assert metadata["training"]["metrics"]["ap"] == result.metrics["ap"]
    model = load_pretrained(result.output_dir)
    assert model.metadata.categories is not None
    assert model.metadata.categories.names == ("blue", "red")


def test_the_config_is_complete_and_loads_again(run: tuple[TrainResult, list[Path]], config: RunConfig) -> None:
    again = read_config(run[0].output_dir / "config.yaml")
    assert again.model == replace(config.model, num_classes=2)
    assert (again.data, again.loss, again.optimizer) == (config.data, config.loss, config.optimizer)


def test_a_used_folder_is_refused(run: tuple[TrainResult, list[Path]], config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="holds a run already; continue it with --resume, or choose another --output"):
        train(replace(config, output_dir=str(run[0].output_dir)))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds files already"):
        train(replace(config, output_dir=str(tmp_path)))
    with pytest.raises(NotADirectoryError, match="is a file"):
        train(replace(config, output_dir=str(tmp_path / "notes.txt")))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_resuming_a_finished_run_changes_nothing(run: tuple[TrainResult, list[Path]], config: RunConfig) -> None:
    result = run[0]
    before = load_file(result.last_weights)
    again = train(replace(config, output_dir=str(result.output_dir), resume=True))
    assert (again.steps, again.metrics, again.best_metrics) == (result.steps, result.metrics, result.best_metrics)
    after = load_file(result.last_weights)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not read_config(result.output_dir / "config.yaml").resume  # it is to repeat the run in another folder


def test_resuming_with_other_settings_is_refused(run: tuple[TrainResult, list[Path]], config: RunConfig, tmp_path: Path) -> None:
    base = replace(config, output_dir=str(run[0].output_dir), resume=True)
    with pytest.raises(ValueError, match=r"optimizer\.lr was 0\.001, is 0\.002; train\.batch_size was 2, is 4"):
        train(replace(base, optimizer=replace(config.optimizer, lr=2e-3), train=replace(config.train, batch_size=4)))
    other = "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); print(); sys.stdin.read()"
    lock = run[0].output_dir / "state" / "lock"
    with subprocess.Popen([sys.executable, "-c", other, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(FileExistsError, match=r"a run goes on in .*, in another process"):
            train(base)
        process.communicate()
    lock.unlink()
    with pytest.raises(FileNotFoundError, match=r"no saved state in .*start the run without --resume"):
        train(replace(base, output_dir=str(tmp_path / "nothing")))
    broken = tmp_path / "broken" / "state"
    broken.mkdir(parents=True)
    (broken / "step-00000003.pt").write_bytes(b"half a fi")
    with pytest.raises(ValueError, match=r"step-00000003\.pt cannot be read as the state of a run"):
        train(replace(base, output_dir=str(broken.parent)))


def test_more_epochs_can_be_asked_for(run: tuple[TrainResult, list[Path]], config: RunConfig, tmp_path: Path) -> None:
    folder = tmp_path / "longer"
    shutil.copytree(run[0].output_dir, folder)
    longer = train(replace(config, output_dir=str(folder), resume=True, train=replace(config.train, epochs=3, evaluate_every=1)))
    assert longer.steps == 12
    assert [row["step"] for row in longer.history] == [4, 8, 12]


def test_steps_are_counted_over_epochs_and_states_saved_between(config: RunConfig, tmp_path: Path) -> None:
    """6 steps of 2 batches of 1 image: epochs of 4 steps, the last one cut short; state every 3 steps."""
    seen, states = [], []
    folder = tmp_path / "run"

    class Watch(Callback):
        def on_step(self, run: Run, step: Step) -> None:
            seen.append(step.step)
            path = latest_state(folder / "state")
            states.append(None if path is None else load_state(path)["step"])

    settings = replace(config.train, steps=6, batch_size=1, accumulate=2, checkpoint_every=3, evaluate_every=0)
    result = train(replace(config, output_dir=str(folder), train=settings), callbacks=[Watch()])
    assert seen == [1, 2, 3, 4, 5, 6]
    assert states == [None, None, None, 3, 4, 4]  # seen before the save that follows the step
    assert [row["step"] for row in result.history] == [6]


def test_without_validation_split(config: RunConfig, dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    alone = tmp_path / "data"
    shutil.copytree(dataset, alone)
    (alone / "annotations" / "instances_val.json").unlink()
    settings = {"data": replace(config.data, val_split="minival"), "train": replace(config.train, epochs=1)}  # `val` would be made
    run = replace(config, dataset=str(alone), output_dir=str(tmp_path / "run"), **settings)
    with caplog.at_level(logging.WARNING):
        result = train(run)
    assert "training without evaluation" in caplog.text
    assert "no split 'minival'" in caplog.text
    assert result.best_weights == result.last_weights
    assert result.last_weights.is_file()
    assert (result.metrics, result.history) == ({}, [])
    assert not (result.output_dir / "weights" / "best.safetensors").exists()


def test_a_broken_validation_split_is_an_error(config: RunConfig, dataset: Path, tmp_path: Path) -> None:
    broken = tmp_path / "data"
    shutil.copytree(dataset, broken)
    (broken / "annotations" / "instances_val.json").write_text("{")
    with pytest.raises(ValueError, match=r"instances_val\.json"):
        train(replace(config, dataset=str(broken), output_dir=str(tmp_path / "run")))


def test_starting_from_weights(run: tuple[TrainResult, list[Path]], config: RunConfig, tmp_path: Path) -> None:
    """With a learning rate of nearly nothing the weights stay those of the file. Gradients are computed wherever it is called."""
    start = run[0].last_weights
    settings = replace(config, weights=str(start), output_dir=str(tmp_path / "run"), train=replace(config.train, steps=1))
    with torch.inference_mode(), torch.no_grad():
        result = train(replace(settings, optimizer=replace(config.optimizer, lr=1e-12)))
    before, after = load_file(start), load_file(result.last_weights)
    for name in before:
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-9, msg=name)


def test_weights_of_other_images_and_classes(config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What they were normalised with is said; classes whose names are like each other are the dataset's matter."""
    model = build_model(replace(config.model, num_classes=3))
    model.metadata = replace(model.metadata, categories=Categories.from_names(["cat", "Dog", "dog"]), std=(1 / 255,) * 3)
    path = save_weights(tmp_path / "w.safetensors", model)
    network = build_network(replace(config, weights=str(path)), Categories(("dog", "Dog"), (3, 7)), resumed=False)
    assert f"{path} has learned from images with data.std (0.0039" in caplog.text
    assert "data.mean" not in caplog.text
    weight = model.get_parameter("class_heads.0.weight")
    assert torch.equal(network.get_parameter("class_heads.0.weight"), weight[[2, 1]])


class Norms(Callback):
    def __init__(self) -> None:
        self.found: list[float] = []

    def on_step(self, run: Run, step: Step) -> None:
        self.found.append(step.losses["grad_norm"])


def test_a_backbone_without_a_learning_rate_is_frozen(config: RunConfig, tmp_path: Path) -> None:
    """Its gradients do not pile up, and are no part of the norm that is clipped; its batch norms keep their statistics."""
    found = []
    for name, settings in (("rate", {"backbone_lr_scale": 0.0}), ("frozen", {"freeze": ("backbone",)})):
        norms = Norms()
        run = replace(config, output_dir=str(tmp_path / name), optimizer=replace(config.optimizer, **settings))
        result = train(replace(run, train=replace(config.train, epochs=1)), callbacks=[norms])
        found.append((norms.found, load_file(result.last_weights)))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(value, found[1][1][name]) for name, value in found[0][1].items())


def test_bf16_trains_under_autocast_and_is_evaluated_in_the_inference_form(config: RunConfig, tmp_path: Path) -> None:
    losses = []

    class Watch(Callback):
        def on_step(self, run: Run, step: Step) -> None:
            losses.append(step.losses["loss"])

        def on_evaluation(self, run: Run, metrics: Metrics) -> None:
            assert InferenceModel(run.result)._optimizable()

    for precision in ("fp32", "bf16"):
        settings = replace(config.train, steps=1, precision=precision)
        train(replace(config, output_dir=str(tmp_path / precision), train=settings), callbacks=[Watch()])
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize("name", ["epochs", "batch_size", "accumulate", "steps", "log_every"])
def test_numbers_that_make_no_sense(config: RunConfig, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"train\.{name} must be at least 1"):
        train(replace(config, output_dir=str(tmp_path / "run"), train=replace(config.train, **{name: 0})))
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def learned(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """Four images, listed 20 times for training and once for the evaluation, there with boxes a fifth narrower; no augmentation."""
    from .conftest import write_split

    root = tmp_path_factory.mktemp("learned")
    write_split(root / "data", "train", 4, seed=5)
    shutil.copytree(root / "data" / "train", root / "data" / "val")
    annotations = root / "data" / "annotations"
    record = json.loads((annotations / "instances_train.json").read_text())
    (annotations / "instances_train.json").write_text(json.dumps(repeated(record, 20)))
    for box in record["annotations"]:
        box["bbox"][2] *= 0.8
    (annotations / "instances_val.json").write_text(json.dumps(record))
    run = replace(
        config,
        dataset=str(root / "data"),
        output_dir=str(root / "run"),
        model=replace(config.model, dropout=0.0),
        data=replace(config.data, train_short_sides=(64,), horizontal_flip=0.0, transpose=0.0),
        optimizer=replace(config.optimizer, lr=2e-3, schedule="cosine", warmup_steps=20),
        train=replace(config.train, steps=120, batch_size=4, evaluate_every=3, log_every=20),
    )
    return train(run)


def repeated(record: dict, times: int) -> dict:
    """A COCO record with every image and its boxes so many times, under ids of their own."""
    offsets = [1000 * copy for copy in range(times)]
    images = [image | {"id": image["id"] + offset} for offset in offsets for image in record["images"]]
    annotations = [
        box | {"id": box["id"] + offset, "image_id": box["image_id"] + offset}
        for offset in offsets
        for box in record["annotations"]
    ]
    return record | {"images": images, "annotations": annotations}


def test_progress_is_told_to_who_watches(learned: TrainResult) -> None:
    found = json.loads((learned.output_dir / "progress.json").read_text())
    assert found["state"] == "finished"
    assert found["step"] == found["total_steps"] == learned.steps
    assert found["epoch"] == found["total_epochs"]
    assert found["seconds_left"] == 0
    assert isinstance(found["advice"], list)


def test_four_images_are_learned_by_heart(learned: TrainResult) -> None:
    """Evaluated on the images it trains on, a detector without augmentation finds everything."""
    last = [record for record in RunFolder(learned.output_dir).read_log() if record["kind"] == "train"][-1]
    assert last["loss_class"] < 0.02
    assert last["loss_bbox"] < 0.05
    assert last["loss_giou"] < 0.1
    assert learned.metrics["ap50"] == pytest.approx(1.0)


def test_the_numbers_are_those_of_the_plain_network(learned: TrainResult) -> None:
    """The run evaluates in the inference form; here the weights that it saved are evaluated as they are."""
    config = read_config(learned.output_dir / "config.yaml")
    network = load_pretrained(learned.last_weights)
    dataset = build_dataset(config.dataset, "val", config.data, training=False)
    plain = evaluate(network, build_loader(dataset, batch_size=4, training=False), dataset.categories, dataset.annotation_file)
    assert plain.ap < 0.9  # boxes with an IoU of .8 do not count at .85 and above, so a difference would show
    numbers = {name: value for name, value in plain.to_dict().items() if isinstance(value, float)}
    assert {"ap", "ap50", "ap75", "ar_1", "ar_100"} <= numbers.keys()
    assert {name: learned.metrics[name] for name in numbers} == pytest.approx(numbers, abs=1e-4)


def test_thresholds_of_the_evaluation_go_into_the_weights(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluated after the second and the third epoch: the weights of the first have none; of equal ones the earlier are best."""
    answers = iter([(0.25, 0.75), (0.5, 0.125)])
    evaluations = []

    def evaluate_as_told(*arguments, **keywords) -> Metrics:
        evaluations.append(load_pretrained(last).metadata.thresholds if last.exists() else "no file")
        return replace(evaluate(*arguments, **keywords), thresholds=next(answers), ap=0.5)

    monkeypatch.setattr("deformable_detr.training.validation.evaluate", evaluate_as_told)
    last = tmp_path / "run" / "weights" / "last.safetensors"
    settings = replace(config.train, epochs=3, steps=None, evaluate_every=2)
    result = train(replace(config, output_dir=str(tmp_path / "run"), train=settings), show_progress=False)
    assert evaluations == [None, (0.25, 0.75)]
    assert load_pretrained(result.last_weights).metadata.thresholds == (0.5, 0.125)
    assert load_pretrained(result.best_weights).metadata.thresholds == (0.25, 0.75)


def test_suppression_is_stored_with_the_weights(config: RunConfig, tmp_path: Path) -> None:
    run = replace(config, output_dir=str(tmp_path / "run"), train=replace(config.train, steps=1, nms_iou=0.7))
    result = train(run)
    assert load_pretrained(result.last_weights).metadata.nms_iou == 0.7
    with pytest.raises(ValueError, match=r"train\.nms_iou must lie in \(0, 1\]"):
        train(replace(run, output_dir=str(tmp_path / "other"), train=replace(config.train, nms_iou=2.0)))
