"""Training on a real GPU: the same numbers as on a CPU, and a whole run; skipped where there is none."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deformable_detr.acceleration.model import InferenceModel
from deformable_detr.config import LossConfig
from deformable_detr.criterion import SetCriterion
from deformable_detr.data.scenes import generate_scenes
from deformable_detr.model import build_model
from deformable_detr.model.denoising import draw_noise
from deformable_detr.presets import model_preset
from deformable_detr.structures import ImageBatch, Target
from deformable_detr.training import train
from deformable_detr.training.recipe import plan_run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_scenes(tmp_path_factory.mktemp("scenes"), train=12, val=4, image_size=96)


@pytest.mark.parametrize("sizes", [((96, 128), (96, 128)), ((96, 128), (128, 80))], ids=["equal sizes", "padded"])
def test_losses_and_gradients_are_those_of_the_cpu(sizes, exact) -> None:
    torch.manual_seed(0)
    settings = replace(model_preset("r18-fast"), num_classes=3, pretrained_backbone=False, suppressor=True, dropout=0.0)
    model = build_model(settings)
    criterion = SetCriterion.from_config(model.metadata.model, LossConfig(encoder_copies=4))
    images = ImageBatch.from_images([torch.randn(3, *size) for size in sizes], multiple_of=64)
    counts = 5, 2
    targets = [
        Target(torch.rand(count, 4) * 0.3 + torch.tensor([0.2, 0.2, 0.1, 0.1]), torch.randint(3, (count,)), index)
        for index, count in enumerate(counts)
    ]
    copies = 2 * (settings.denoising_queries // max(counts))
    noise = draw_noise(copies * sum(counts), 3, settings.label_noise, settings.box_noise)
    found = []
    for device in ("cpu", "cuda"):
        model.to(device).train().zero_grad()
        there = [target.to(device) for target in targets]
        loss = criterion.weighted_sum(criterion(model(images.to(device), there, noise), there))
        loss.backward()
        norm = torch.nn.utils.get_total_norm([value.grad for value in model.parameters() if value.grad is not None])
        found.append((loss.item(), norm.item()))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4)
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-3)


@pytest.mark.parametrize("length", [{"train.steps": 12}, {"train.budget": "40s"}], ids=["steps", "budget"])
def test_a_whole_run_with_the_recipe(length, dataset: Path, tmp_path: Path) -> None:
    asked = {"dataset": str(dataset), "output_dir": str(tmp_path / "run"), "recipe": "small-data", "train.device": "cuda"}
    asked |= {"model.pretrained_backbone": False, "data.num_workers": 1, "train.logger": [], **length}
    result = train(*plan_run(asked), show_progress=False)
    assert result.steps > 0
    assert result.history
    assert all(math.isfinite(row["train_loss"]) for row in result.history)


def test_the_backbone_is_optimised_although_its_factors_are_rounded(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = build_model(replace(model_preset("r18-fast"), num_classes=3, pretrained_backbone=False)).cuda().eval()
    images = ImageBatch.from_images([torch.randn(3, 96, 128), torch.randn(3, 64, 64)]).to("cuda")
    found = InferenceModel(model)(images)
    assert not caplog.records
    with torch.inference_mode():
        expected = model(images)

    def scores(predictions):  # of proposals of nearly the same score others may be chosen
        return predictions.logits[-1].sigmoid().sort(dim=1).values

    assert (scores(found) - scores(expected)).abs().mean() < 5e-3
