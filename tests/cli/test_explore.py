import sys

import pytest
from PIL import Image

from deformable_detr.cli import demo_detector as module
from deformable_detr.cli.__main__ import main
from deformable_detr.cli.demo_detector import cache_folder, check_replaceable, demo_detector, demo_folders
from deformable_detr.data.scenes import generate_scenes
from deformable_detr.presets import demo_run
from deformable_detr.settings import to_yaml
from deformable_detr.training import TrainingInterrupted


def fake_training(calls: list):
    def train_demo(folder, *, steps, device):
        calls.append((folder, steps, device))
        (folder / "run" / "weights").mkdir(parents=True)
        (folder / "run" / "weights" / "best.safetensors").write_bytes(b"")
        (folder / "data" / "val").mkdir(parents=True)
        for name in ("2.png", "10.png"):
            Image.new("RGB", (8, 8)).save(folder / "data" / "val" / name)

    return train_demo


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "deformable-detr" / "explorer"


def test_the_small_detector_is_trained_once(cache, monkeypatch):
    calls: list = []
    monkeypatch.setattr(module, "train_demo", fake_training(calls))
    for _ in range(2):
        run, images = demo_detector("cpu")
        assert run == cache / "run"
        assert [path.name for path in images] == ["2.png", "10.png"]
    assert [call[1:] for call in calls] == [(module.FIRST_STEPS, "cpu")]
    assert [path.name for path in cache.parent.iterdir()] == ["explorer"]


def test_a_demo_that_was_run_here_comes_first(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "train_demo", None)
    (tmp_path / "demo" / "run" / "weights").mkdir(parents=True)
    (tmp_path / "demo" / "run" / "weights" / "best.safetensors").write_bytes(b"")
    run, images = demo_detector("cpu")
    assert run.resolve() == tmp_path / "demo" / "run"
    assert images == []


def test_what_is_left_of_an_earlier_one_is_replaced(cache, monkeypatch):
    (cache / "run").mkdir(parents=True)
    (cache / "run" / "log.jsonl").touch()
    monkeypatch.setattr(module, "train_demo", fake_training([]))
    run, images = demo_detector("cpu")
    assert (run, len(images)) == (cache / "run", 2)
    assert [path.name for path in run.rglob("*")] == ["weights", "best.safetensors"]


def test_a_training_that_was_stopped_leaves_nothing(cache, monkeypatch):
    def stopped(folder, **settings):
        (folder / "data").mkdir(parents=True)
        raise TrainingInterrupted("go on with --resume")

    monkeypatch.setattr(module, "train_demo", stopped)
    with pytest.raises(TrainingInterrupted, match="nothing of it is kept"):
        demo_detector("cpu")
    assert list(cache.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("darwin", "HOME", "Library/Caches/deformable-detr/explorer"),
        ("win32", "LOCALAPPDATA", "deformable-detr/explorer"),
        ("linux", "XDG_CACHE_HOME", "deformable-detr/explorer"),
    ],
)
def test_where_the_cache_is(platform, variable, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    assert cache_folder() == tmp_path / expected


def test_mistakes_are_named(tmp_path, capsys):
    assert main(["explore", "nowhere", "no/*.png"]) == 2
    assert "matches no image" in capsys.readouterr().err
    assert main(["explore", "nowhere.safetensors"]) == 2
    assert "nowhere.safetensors" in capsys.readouterr().err
    assert main(["explore", "--prot", "7"]) == 2
    assert "--prot" in capsys.readouterr().err
    assert main(["explore", "--port", "70000"]) == 2
    assert "port must be in [0, 65535]" in capsys.readouterr().err


def test_without_gradio_the_message_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "deformable_detr.visualize.explorer.page", raising=False)
    assert main(["explore"]) == 2
    assert 'pip install "deformable-detr[explorer]"' in capsys.readouterr().err


def test_an_image_that_is_not_there(tmp_path, capsys):
    assert main(["explore", "run", str(tmp_path / "no.png")]) == 2
    assert f"no such image or folder: {tmp_path / 'no.png'}" in capsys.readouterr().err


@pytest.mark.parametrize("there", ["data/notes.txt", "data/annotations/instances_train.json", "run/config.yaml", "run/notes.txt"])
def test_a_demo_replaces_demos_alone(there, tmp_path, capsys):
    own = tmp_path / there
    own.parent.mkdir(parents=True)
    own.write_text(
        {"config": "dataset: data\n", "instances_train": '{"categories": [{"id": 1, "name": "circle"}]}'}.get(own.stem, "x")
    )
    assert main(["demo", "--output", str(tmp_path), "--steps", "1"]) == 2
    assert f"{own.parents[len(own.relative_to(tmp_path).parts) - 2]} holds something else" in capsys.readouterr().err
    assert own.is_file()


def test_a_demo_may_be_run_again(tmp_path):
    data, run = demo_folders(tmp_path)
    generate_scenes(data, train=1, val=1)
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(demo_run("elsewhere", "elsewhere")))
    check_replaceable(data, run)
