from pathlib import Path

import pytest

from deformable_detr.cli.train import parse_config
from deformable_detr.config import LossConfig, OptimizerConfig, TrainConfig
from deformable_detr.data.transforms import train_transform
from deformable_detr.presets import MODEL_PRESETS, demo_run
from deformable_detr.training.optimizer import build_schedule
from deformable_detr.training.preparation import check_train_config

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
OFFICIAL = {"r50-single-scale", "r50-single-scale-dc5", "r50", "r50-refine", "r50-two-stage"}


def test_they_are_all_there() -> None:
    assert {path.stem for path in CONFIGS} == OFFICIAL | {"demo", "own-data"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_loads(path: Path) -> None:
    config = parse_config(["--config", str(path)])
    check_train_config(config.train)
    optimizer = config.optimizer
    build_schedule(
        1000,
        schedule=optimizer.schedule,
        drop_at=optimizer.drop_at,
        drop_factor=optimizer.drop_factor,
        warmup_steps=optimizer.warmup_steps,
    )
    data = config.data
    train_transform(
        train_short_sides=data.train_short_sides,
        crop_short_sides=data.crop_short_sides,
        crop_range=data.crop_range,
        max_long_side=data.max_long_side,
        mean=data.mean,
        std=data.std,
        horizontal_flip=data.horizontal_flip,
        vertical_flip=data.vertical_flip,
        transpose=data.transpose,
    )
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("expected", "takes"):
        assert any(line.startswith(f"# {word} ") for line in header), word


@pytest.mark.parametrize("preset", sorted(OFFICIAL))
def test_the_official_ones_are_the_recipe(preset: str) -> None:
    config = parse_config(["--config", str(CONFIGS[0].parent / f"{preset}.yaml")])
    assert (config.preset, config.model) == (preset, MODEL_PRESETS[preset])
    assert (config.optimizer, config.loss) == (OptimizerConfig(), LossConfig())
    assert config.train == TrainConfig(epochs=50, batch_size=2)
    assert round(config.train.epochs * config.optimizer.drop_at) == 40


def test_the_demo_is_that_of_the_command() -> None:
    config = parse_config(["--config", str(CONFIGS[0].parent / "demo.yaml")])
    assert config == demo_run("demo/data", "demo/run")
    assert (config.model.pretrained_backbone, config.model.frozen_backbone_stages) == (False, 0)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("r50-two-stage", (2e-4, 0.1, 0.1, 50, 40)),
        ("r50-hdetr", (2e-4, 0.1, 0.1, 12, 11)),
        ("r50-dino", (1e-4, 0.1, 1.0, 12, 11)),
        ("swin-l-dino", (1e-4, 0.1, 1.0, 12, 11)),
    ],
)
def test_a_preset_brings_its_published_recipe(preset: str, expected: tuple[float, ...]) -> None:
    config = parse_config(["data", "--preset", preset])
    optimizer, epochs = config.optimizer, config.train.epochs
    found = (optimizer.lr, optimizer.backbone_lr_scale, optimizer.sampling_lr_scale, epochs, round(epochs * optimizer.drop_at))
    assert found == expected
    assert parse_config(["data", "--preset", preset, "--lr", "3e-4"]).optimizer.lr == 3e-4
