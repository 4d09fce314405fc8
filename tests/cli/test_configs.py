import math
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.config import DataConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig
from deformable_detr.data.transforms import train_transform
from deformable_detr.presets import MODEL_PRESETS, demo_run
from deformable_detr.settings import read_config
from deformable_detr.training.optimizer import build_schedule
from deformable_detr.training.preparation import check_train_config

from ..command_lines import parse_config

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
        vertical_flip=float(data.vertical_flip),
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


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("lr: 1e-3\nlr: 1e-5", r"not valid YAML: .*twice: lr"),
        ("optimizer: {lr: 1e-3}\noptimizer: {lora: 1}", r"not valid YAML: .*twice: optimizer"),
        ("lr: 1e-3\noptimizer: {lr: 1e-5}", r"optimizer\.lr is given twice, as 0\.001 and as 1e-05"),
        ("optimizer.lr: 1e-3\nlr: 1e-5", r"optimizer\.lr is given twice"),
        ("on: 1", "unknown setting True: names of settings are texts"),
        ("branch_weights: {loss_class_dn: x}", r"loss\.branch_weights: expected a mapping, got {'loss_class_dn': 'x'}"),
        ("branch_weights: [ab, cd]", r"loss\.branch_weights: expected a mapping, got \['ab', 'cd'\]"),
        ("branch_weights: {loss_class_dn: .nan}", r"loss\.branch_weights: expected a mapping, got {'loss_class_dn': nan}"),
        ("weight_decay: .nan", r"optimizer\.weight_decay: expected float, got nan"),
        ("scale_jitter: [0.5, .inf]", r"data\.scale_jitter: expected 2 values \[float, float\], got \[0\.5, inf\]"),
        ("weight_per_class: [1]", r"loss\.weight_per_class: expected a mapping"),
    ],
)
def test_settings_that_are_not_what_they_seem(tmp_path: Path, lines: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"dataset: set\nrecipe: none\n{lines}\n")
    with pytest.raises(ValueError, match=f"(?s)c\\.yaml.*{message}"):
        parse_config(["--config", str(file)])


def test_a_setting_may_stand_twice_where_it_is_the_same(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("dataset: set\nrecipe: none\nlr: 1e-3\noptimizer: {lr: 0.001}\ntrain: &t {epochs: 3}\nloss: {}\n")
    assert parse_config(["--config", str(file)]).optimizer.lr == 1e-3


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (LossConfig, {"class_weight": -1}, "class_weight must be at least 0, not -1"),
        (LossConfig, {"bbox_weight": math.nan}, "bbox_weight must be at least 0, not nan"),
        (LossConfig, {"branch_weights": {"loss_class": -1}}, "branch_weights: loss_class must be at least 0, not -1"),
        (LossConfig, {"focal_alpha": 2}, r"focal_alpha must be in \[0, 1\], not 2"),
        (ModelConfig, {"num_encoder_layers": -1}, "num_encoder_layers must be at least 0"),
        (ModelConfig, {"ffn_dim": 0}, "ffn_dim must be at least 1"),
        (ModelConfig, {"frozen_backbone_stages": 9}, r"frozen_backbone_stages must be in \[0, 5\]"),
        (ModelConfig, {"position_temperature": 0}, "position_temperature must be above 0"),
        (DataConfig, {"max_long_side": 0}, "max_long_side must be at least 1"),
        (DataConfig, {"pad_size_divisor": 0}, "pad_size_divisor must be at least 1"),
        (DataConfig, {"mean": (123.7, 116.3, 103.5)}, "divide what holds for 0 to 255 by 255"),
        (OptimizerConfig, {"clip_grad_norm": -1}, "clip_grad_norm must be at least 0"),
    ],
)
def test_numbers_out_of_range(kind: type, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_the_users_folder_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    (tmp_path / "run.yaml").write_text("dataset: ~/data\noutput_dir: ~/runs/first\nweights: ./~/w.pth\nrecipe: none\n")
    config = read_config(tmp_path / "run.yaml")
    assert (config.dataset, config.output_dir, config.weights) == (f"{home}/data", f"{home}/runs/first", "./~/w.pth")
