from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.categories import Categories
from deformable_detr.cli.__main__ import main
from deformable_detr.cli.replay import draw_images
from deformable_detr.config import LossConfig
from deformable_detr.model import build_model
from deformable_detr.structures import ImageBatch, Target
from deformable_detr.training.non_finite import replay, save_step
from deformable_detr.visualize.drawing import training_images


def kept_step(folder: Path, broken: bool, image: torch.Tensor | None = None) -> Path:
    torch.manual_seed(0)
    model = build_model("tiny", num_classes=2).train()
    model.metadata = replace(model.metadata, categories=Categories(("cat", "dog"), (7, 3)), mean=(0.5,) * 3, std=(0.25,) * 3)
    if broken:
        model.get_parameter("class_heads.1.weight").data[0, 0] = float("nan")
    left = torch.rand(3, 64, 96) if image is None else image
    images = ImageBatch.from_images([left, torch.rand(3, 96, 64)], ["left", "right"])
    targets = [Target(torch.tensor([[0.5, 0.5, 0.4, 0.4]]), torch.tensor([1]), name) for name in ("left", "right")]
    path = save_step(folder, 3, "step 4: non-finite loss", [(images, targets)], model, LossConfig())
    assert path is not None
    return path


@pytest.mark.parametrize(("broken", "status", "text"), [(True, 1, "Now (weights)"), (False, 0, "Now (nowhere)")])
def test_a_step_is_done_again(broken: bool, status: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = kept_step(tmp_path, broken)
    assert main(["replay", str(path), "--output", str(tmp_path / "drawn")]) == status
    shown = capsys.readouterr().out
    assert "Then: step 4: non-finite loss" in shown
    assert text in shown
    assert ("class_heads.1.weight" in shown) == broken
    assert "['left', 'right']" in shown
    assert sorted(file.name for file in (tmp_path / "drawn").iterdir()) == ["0.png", "1.png"]


def test_images_are_drawn_as_the_network_got_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    original = training_images.draw_detections
    monkeypatch.setattr(training_images, "draw_detections", lambda *a: texts.extend(a[1].data["class_name"]) or original(*a))
    image = torch.full((3, 480, 640), 0.8)  # grey: (0.8 * 0.25 + 0.5) * 255 = 178.5
    image[:, :20, :20] = float("nan")
    draw_images(replay(kept_step(tmp_path, broken=False, image=image))[0], tmp_path / "drawn")
    assert texts == ["dog", "dog"]
    with Image.open(tmp_path / "drawn" / "0.png") as drawn:
        pixels = np.asarray(drawn)
    assert pixels.shape == (480, 640, 3)
    assert (pixels[:19, :19] == (255, 0, 255)).all()
    assert abs(pixels[400:470, 20:100].astype(int) - 178.5).max() <= 0.5
    assert (pixels[144, 300:340] != 178).any()  # the upper edge of the box


def test_no_such_file(capsys: pytest.CaptureFixture) -> None:
    assert main(["replay", "missing.pt"]) == 2
    assert "broken steps lie in the folder non_finite of a run" in capsys.readouterr().err
