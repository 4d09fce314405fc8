import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image

from deformable_detr.cli.__main__ import main
from deformable_detr.cli.command import spelled
from deformable_detr.config import DataConfig, LossConfig, OptimizerConfig, RunConfig, TrainConfig
from deformable_detr.presets import MODEL_PRESETS
from deformable_detr.training.run_folder import RunFolder

from ..command_lines import parse_config
from ..processes import start


def write_yaml(path: Path, **settings) -> str:
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def test_the_defaults_are_the_official_recipe() -> None:
    assert parse_config(["coco"]) == RunConfig(dataset="coco")


@pytest.mark.parametrize("preset", MODEL_PRESETS)
def test_a_preset_gives_the_network(preset: str) -> None:
    assert parse_config(["data", "--preset", preset]).model == MODEL_PRESETS[preset]


def test_each_source_overrides_the_one_before(tmp_path: Path) -> None:
    file = write_yaml(
        tmp_path / "run.yaml",
        dataset="from-file",
        preset="r50-two-stage",
        model={"num_queries": 50, "dropout": 0.2},
        train={"epochs": 7, "seed": 1},
    )
    expected = RunConfig(
        dataset="from-file",
        preset="r50-two-stage",
        model=replace(MODEL_PRESETS["r50-two-stage"], num_queries=50, dropout=0.0),
        train=TrainConfig(epochs=7, seed=2),
    )
    assert parse_config(["--config", file, "--model.dropout", "0.0", "--train.seed=2"]) == expected
    assert parse_config(["--model.dropout", "0.0", "--seed=2", f"--config={file}"]) == expected  # wherever it stands
    assert parse_config(["mine", "--config", file]).dataset == "mine"
    other = parse_config(["--config", file, "--preset", "r50"])
    assert (other.model.two_stage, other.model.num_queries) == (False, 50)


def test_epochs_on_the_command_line_count_even_if_the_file_counts_steps(tmp_path: Path) -> None:
    file = write_yaml(tmp_path / "run.yaml", dataset="data", train={"steps": 100})
    assert parse_config(["--config", file]).train.steps == 100
    assert (parse_config(["--config", file, "--epochs", "3"]).train) == TrainConfig(epochs=3)


def test_short_forms() -> None:
    config = parse_config(
        ["data", "--epochs", "3", "--batch-size=4", "--lr", "1e-4", "--num_queries", "9", "--resume", "--output-dir=x"]
    )
    assert config.train == TrainConfig(epochs=3, batch_size=4)
    assert config.optimizer == OptimizerConfig(lr=1e-4)
    assert (config.model.num_queries, config.resume, config.output_dir) == (9, True, "x")
    assert parse_config(["data", "--no-resume"]).resume is False
    words = ["--data.train_short_sides=[1]", "--model.weights=r50.pth", "--output_dir", "my_data", "--", "--a_b"]
    assert spelled(words) == ["--train-short-sides=[1]", "--weights=r50.pth", "--output", "my_data", "--", "--a_b"]


def test_lists_and_nested_values() -> None:
    config = parse_config(["d", "--data.train_short_sides", "[480, 512]", "--model.backbone_options", "{layers: [1, 1]}"])
    assert config.data == DataConfig(train_short_sides=(480, 512))
    assert config.model.backbone_options == {"layers": [1, 1]}
    config = parse_config(["d", "--train-short-sides", "480", "512", "--crop-short-sides", "[]", "--color-jitter", "[0, 0, 1, 0]"])
    assert config.data == DataConfig(train_short_sides=(480, 512), crop_short_sides=(), color_jitter=(0.0, 0.0, 1.0, 0.0))
    assert parse_config(["d", "--color-jitter", "0.3"]).data.color_jitter == 0.3
    assert parse_config(["d", "--weights", "null"]).weights is None


def test_flags_may_have_a_value() -> None:
    for given, expected in (
        ("--two-stage", True),
        ("--no-two-stage", False),
        ("--two_stage=false", False),
        ("--model.two_stage=True", True),
    ):
        assert parse_config(["d", "--box-refinement", given]).model.two_stage is expected
    assert parse_config(["--box-refinement", "true", "--two_stage", "false", "d", "--dilation"]).model.two_stage is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["d", "--num_querys", "3"], "--num-querys.*did you mean --num-queries"),
        (["d", "--train.epoch", "3"], "--train.epoch.*did you mean --epochs"),
        (["d", "--num_queries", "many"], "model.num_queries: expected int, got 'many'"),
        (["d", "--train.precision", "fp8"], "train.precision: expected one of 'fp32', 'bf16', 'fp16', got 'fp8'"),
        (["d", "--data.crop_range", "[1]"], "data.crop_range"),
        (["d", "--preset", "r51"], r"unknown preset 'r51'; did you mean 'r50'\? known are r50, "),
        (["d", "--preset", "r50", "--model.two_stage"], "two_stage needs box_refinement"),
        (["d", "--two-stage", "perhaps"], "unexpected perhaps"),
        (["--epochs", "3"], "which dataset"),
        (["--resume", "--output", "no_such_run"], "no run to resume in no_such_run: give the folder"),
        (["d", "--config", "missing.yaml"], "missing.yaml: no such file"),
        (["d", "--config"], "--config: expected one argument"),
    ],
)
def test_errors_name_the_setting(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        parse_config(arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epoks: 3}", "epoks"),
        ("trian: {epochs: 3}", "trian"),
        ("train: {epochs: three}", "train.epochs"),
        ("- a\n- b", "holds no settings"),
        ("a: [", "not valid YAML"),
    ],
)
def test_errors_in_the_file(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        parse_config(["data", "--config", str(path)])


def test_the_help_is_a_manual(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Queries from the encoder's best proposals" in text  # the string below the attribute
    assert "Largest norm of the whole gradient. 0: do not clip. (default: 0.1)" in text
    for heading in ("model: the network:", "loss: matching and losses:", "data: images and augmentation:", "presets:", "examples:"):
        assert heading in text


def test_all_settings_as_yaml(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "data", "--preset", "demo", "--lr", "0.5", "--print_config"])
    assert stopped.value.code == 0
    path = tmp_path / "run.yaml"
    path.write_text(capsys.readouterr().out)
    again = parse_config(["--config", str(path)])
    assert (again.dataset, again.preset, again.model) == ("data", "demo", MODEL_PRESETS["demo"])
    assert (again.optimizer, again.loss) == (OptimizerConfig(lr=0.5), LossConfig())


def test_a_missing_dataset_is_one_line(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    status = main(["train", str(tmp_path / "nothing"), "--output_dir", str(tmp_path / "run"), "--device", "cpu"])
    assert status == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'nothing'}: no such dataset folder\n"
    assert not (tmp_path / "run").exists()


def write_data(root: Path) -> None:
    """Six images with one box each."""
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / split).mkdir()
        images = [{"id": number, "file_name": f"{number}.png", "width": 64, "height": 64} for number in range(6)]
        boxes = [
            {"id": number + 1, "image_id": number, "category_id": 1, "bbox": [8, 8, 30, 30], "area": 900, "iscrowd": 0}
            for number in range(6)
        ]
        for image in images:
            Image.new("RGB", (64, 64), (40 * image["id"], 90, 0)).save(root / split / image["file_name"])
        record = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(record))


def run_alone(arguments: list[str], output: Path) -> None:
    """The program, as the first of a group of processes, with what it shows in a file."""
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # workers start as they do below a program that a person starts
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(main(arguments))


def stop_in_the_middle(root: Path, number: signal.Signals) -> str:
    """Train with worker processes, send a signal to all processes at once, as a terminal or a cluster does; give the output."""
    write_data(root / "data")
    arguments = ["train", str(root / "data"), "--preset", "tiny", "--output_dir", str(root / "run"), "--device", "cpu"]
    arguments += ["--train_short_sides", "[48]", "--crop_short_sides", "[]", "--eval_short_side", "48", "--batch_size", "1"]
    arguments += ["--steps", "100000", "--evaluate_every", "0", "--log_every", "1", "--num_workers", "2"]
    running = start(run_alone, arguments, root / "output.txt")
    assert running.pid is not None
    deadline = time.monotonic() + 240
    while not any(record["kind"] == "train" for record in RunFolder(root / "run").read_log()):
        assert running.is_alive(), (root / "output.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(running.pid, number)
    running.join(120)
    output = (root / "output.txt").read_text()
    assert running.exitcode == 130, output
    assert "Traceback" not in output
    return output


@pytest.mark.slow
def test_ctrl_c_and_resume_as_a_user_does_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = stop_in_the_middle(tmp_path, signal.SIGINT)
    assert f"deformable-detr train --resume --output {tmp_path / 'run'}" in output

    done = int(RunFolder(tmp_path / "run").state.glob("step-*.pt").__next__().stem.removeprefix("step-"))
    assert main(["train", "--resume", "--output_dir", str(tmp_path / "run"), "--steps", str(done + 2)]) == 0
    assert f"Finished after {done + 2} steps." in capsys.readouterr().out
    assert (tmp_path / "run" / "samples" / "overview.png").is_file()


@pytest.mark.slow
def test_a_cluster_takes_the_machine_back(tmp_path: Path) -> None:
    assert "the state is in " in stop_in_the_middle(tmp_path, signal.SIGTERM)
    assert len(list((tmp_path / "run" / "state").glob("step-*.pt"))) == 1
