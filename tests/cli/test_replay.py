from pathlib import Path

import pytest
import torch
from PIL import Image

from deformable_detr.cli.__main__ import main
from deformable_detr.config import LossConfig
from deformable_detr.model import build_model
from deformable_detr.structures import ImageBatch, Target
from deformable_detr.training.non_finite import save_step


def kept_step(folder: Path, broken: bool) -> Path:
    torch.manual_seed(0)
    model = build_model("tiny", num_classes=2).train()
    if broken:
        model.get_parameter("class_heads.1.weight").data[0, 0] = float("nan")
    images = ImageBatch.from_images([torch.rand(3, 64, 96), torch.rand(3, 96, 64)], ["left", "right"])
    targets = [Target(torch.tensor([[0.5, 0.5, 0.4, 0.4]]), torch.tensor([1]), name) for name in ("left", "right")]
    path = save_step(folder, 3, "step 4: the loss is not finite", [(images, targets)], model, model.metadata.model, LossConfig())
    assert path is not None
    return path


@pytest.mark.parametrize(("broken", "status", "text"), [(True, 1, "Now (weights)"), (False, 0, "Now (nowhere)")])
def test_a_step_is_done_again(broken: bool, status: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = kept_step(tmp_path, broken)
    assert main(["replay", str(path), "--pictures", str(tmp_path / "drawn")]) == status
    shown = capsys.readouterr().out
    assert "Then: step 4: the loss is not finite" in shown
    assert text in shown
    assert ("class_heads.1.weight" in shown) == broken
    assert "['left', 'right']" in shown
    for number, size in enumerate([(96, 64), (64, 96)]):
        with Image.open(tmp_path / "drawn" / f"{number}.png") as picture:
            assert picture.size == size


def test_no_such_file(capsys: pytest.CaptureFixture) -> None:
    assert main(["replay", "missing.pt"]) == 2
    assert "broken steps lie in the folder non_finite of a run" in capsys.readouterr().err
