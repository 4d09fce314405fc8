"""The commands and the Python of README and "Getting started", run as they stand there, with a small network and few steps."""

import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.cli import demo, demo_detector
from deformable_detr.cli.__main__ import main
from deformable_detr.cli.commands import find_command
from deformable_detr.data.scenes import generate_scenes

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXT = README + (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
BLOCKS = {
    language: re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL) for language in ("bash", "python")
}
COMMANDS = [line.split("   #")[0] for block in BLOCKS["bash"] for line in block.splitlines() if line.startswith("deformable-detr ")]
SERVERS = ("explore", "serve")
QUICK = ["--eval_short_side", "64", "--max_long_side", "96", "--train_short_sides", "[64]", "--num_workers", "0", "--device", "cpu"]
SMALL = ["--preset", "tiny", "--num_encoder_layers", "1", "--num_decoder_layers", "1", "--num_feature_levels", "2"]
SMALL += ["--backbone_options", '{"layers": [1, 1, 1, 1]}']  # half of a ResNet-18

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    generate_scenes(folder / "my_data", train=4, val=2, image_size=64)
    Image.new("RGB", (400, 200), (90, 120, 60)).save(folder / "street.jpg")
    writer = cv2.VideoWriter(str(folder / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (96, 64))
    for _ in range(2):
        writer.write(np.full((64, 96, 3), 90, np.uint8))
    writer.release()
    (folder / "photos").mkdir()
    Image.new("RGB", (96, 64), (90, 120, 60)).save(folder / "photos" / "one.jpg")
    return folder


def test_commands(workplace, monkeypatch):
    """In the order in which they stand there: each may use what the one before has made."""
    monkeypatch.chdir(workplace)
    own_data = ["doctor", "train", "evaluate", "predict", "train"]
    others = ["describe", "explain", "explore", "export", "predict", "serve"]
    assert [shlex.split(command)[1] for command in COMMANDS] == own_data + others
    for command in COMMANDS:
        arguments = shlex.split(command)[1:]
        if arguments[0] in SERVERS:  # these do not end
            assert find_command(arguments[0]).parse(arguments[1:]).weights == "runs/first"
            continue
        if arguments[0] == "export":
            arguments += ["--size", "96", "128", "--batch_size", "1"]
        if arguments[0] == "train" and "--resume" not in arguments:
            assert arguments[arguments.index("--recipe") + 1] == "small-data"
            budget = arguments.index("--budget")  # an epoch is enough here
            del arguments[budget : budget + 2]
            arguments += [*SMALL, "--num_queries", "4", "--epochs", "1", *QUICK]
        assert main(arguments) == 0, command
    assert (workplace / "runs/first/weights/best.safetensors").is_file()
    assert (workplace / "runs/first/report/report.html").is_file()
    assert (workplace / "runs/predict/street.jpg").is_file()
    assert (workplace / "runs/predict/one.jpg").is_file()
    assert (workplace / "journey.png").is_file()
    assert (workplace / "why.html").is_file()


def test_python(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    train, apart = BLOCKS["python"]
    quick = 'preset="tiny", eval_short_side=64, max_long_side=96, train_short_sides=(64,), num_workers=0, device="cpu"'
    assert 'preset="r50-two-stage", epochs=12' in train
    names: dict = {}
    exec(train.replace('preset="r50-two-stage", epochs=12', f"{quick}, epochs=1"), names)
    assert names["metrics"].num_images == 2
    torch.manual_seed(0)
    names = {}
    exec(apart.replace("480, 640", "96, 128").replace("512, 400", "104, 80"), names)
    assert names["predictions"].logits.shape == (6, 2, 300, 91)
    assert set(names["losses"]) >= {"loss_class", "loss_bbox_0", "loss_giou_4"}


def test_demo(tmp_path, monkeypatch, capsys):
    for module in (demo, demo_detector):
        monkeypatch.setattr(module, "TRAIN_IMAGES", 8)
        monkeypatch.setattr(module, "VAL_IMAGES", 4)
    assert main(["demo", "--steps", "2", "--device", "cpu", "--output", str(tmp_path / "demo")]) == 0
    assert re.search(r"^AP50: \d\.\d{3}$", capsys.readouterr().out, flags=re.MULTILINE)
    for name in ("samples/overview.png", "loss.png", "ap.png", "weights/best.safetensors"):
        assert (tmp_path / "demo" / "run" / name).is_file(), name


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name)
def test_linked_files_exist(page):
    """The site's build checks this within docs/; a forge shows README and docs as they lie there."""
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
