import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deformable_detr.config import RunConfig
from deformable_detr.data.annotation_reader import read_annotation_file
from deformable_detr.data.facts import data_facts
from deformable_detr.data.transforms import resized_size
from deformable_detr.recipes import RECIPES, DataFacts, recipe_settings
from deformable_detr.settings import read_config
from deformable_detr.training.recipe import plan_run

from .command_lines import parse_config

FACTS = DataFacts(num_images=400, short_side=480, aspect=4 / 3, small_object=0.05, most_objects=31)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Twenty images of 640 x 480; the smallest tenth of the 20 boxes is 24 pixels high and less."""
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(20)]
    sides = [12, 24, *[96] * 18]
    boxes = [
        {"id": i, "image_id": 0 if i < 7 else i, "category_id": 1, "bbox": [5, 5, 200, side], "iscrowd": 0}
        for i, side in enumerate(sides)
    ]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    record = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cell"}]}
    for split in ("train", "val"):
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(record))
    return tmp_path


def test_the_facts(dataset: Path) -> None:
    facts = data_facts(read_annotation_file(dataset / "annotations" / "instances_train.json"))
    assert (facts.num_images, facts.short_side, facts.most_objects) == (20, 480, 7)
    assert facts.aspect == pytest.approx(4 / 3)
    assert facts.small_object == pytest.approx(np.quantile([12, 24, *[96] * 18], 0.1) / 480)


def test_the_rate_goes_with_the_root_of_the_batch() -> None:
    for name in RECIPES:
        one, sixteen = (recipe_settings(name, FACTS, batch)["optimizer.lr"] for batch in (4, 64))
        assert sixteen == pytest.approx(4 * one)


def test_small_objects_ask_for_large_images() -> None:
    facts = [replace(FACTS, small_object=share) for share in (0.2, 0.04, 0.01)]
    sides = [recipe_settings("small-data", entry, 4)["data.eval_short_side"] for entry in facts]
    assert sides == [256, 320, 704]  # 14 pixels of 0.04 of the side are 350; at most 1.5 times the image itself


@pytest.mark.parametrize("side", [128, 192, 256, 320, 768])
@pytest.mark.parametrize("aspect", [1.0, 4 / 3, 2.9])
def test_the_cells_of_all_levels_fit_the_canvas(side: int, aspect: float) -> None:
    chosen = recipe_settings("small-data", replace(FACTS, aspect=aspect), 4, short_side=side)
    sides = chosen["data.train_short_sides"]
    assert max(sides) == chosen["data.eval_short_side"] == side
    assert all(short % 64 == 0 and 0.6 * side <= short for short in (*sides, chosen["data.max_long_side"]))
    assert chosen["data.max_long_side"] >= side * aspect


@pytest.mark.parametrize("side", [540, 543, 672])
@pytest.mark.parametrize("aspect", [1.0, 1.1])
def test_a_size_beside_the_grid_is_reached(side: int, aspect: float) -> None:
    """540 pixels are nearer to 512 than to 576, which square images were evaluated at then."""
    chosen = recipe_settings("small-data", replace(FACTS, aspect=aspect), 4, short_side=side)
    assert resized_size(1000, round(1000 * aspect), side, chosen["data.max_long_side"])[0] == side


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("num_images", [1, 30, 400, 5000])
def test_every_choice_is_a_setting_that_makes_sense(name: str, num_images: int) -> None:
    chosen = recipe_settings(name, replace(FACTS, num_images=num_images), 4)
    groups: dict[str, dict] = {}
    for key, value in chosen.items():
        group, setting = key.split(".")
        groups.setdefault(group, {})[setting] = value
        assert hasattr(getattr(RunConfig(dataset=""), group), setting)
    train = groups["train"]
    epochs = train["steps"] / max(1, num_images // 4)
    assert groups["optimizer"]["warmup_steps"] < train["steps"]
    assert epochs / train["evaluate_every"] <= 30
    assert groups["data"]["eval_short_side"] in groups["data"]["train_short_sides"]
    assert groups["data"]["max_long_side"] >= max(groups["data"]["train_short_sides"]) * FACTS.aspect


def test_the_command_line_stands_above_the_recipe(dataset: Path) -> None:
    chosen = parse_config([str(dataset), "--recipe", "small-data"])
    facts = data_facts(read_annotation_file(dataset / "annotations" / "instances_train.json"))
    assert isinstance(chosen.train.batch_size, int)
    for key, value in recipe_settings("small-data", facts, chosen.train.batch_size).items():
        group, setting = key.split(".")
        assert getattr(getattr(chosen, group), setting) == value
    assert (chosen.preset, chosen.model.suppressor, chosen.train.nms_iou) == ("r18-fast", True, None)
    other = parse_config([str(dataset), "--recipe", "small-data", "--preset", "r50", "--lr", "1e-5", "--batch-size=8"])
    assert (other.preset, other.optimizer.lr, other.train.batch_size) == ("r50", 1e-5, 8)
    assert other.train.steps == recipe_settings("small-data", facts, 8)["train.steps"]


def test_a_size_that_is_asked_for_leads_the_others(dataset: Path) -> None:
    """They were those of the recipe's own size: trained smaller than evaluated, and cut to its longest side."""
    data = parse_config([str(dataset), "--recipe", "small-data", "--eval-short-side", "320"]).data
    assert data.train_short_sides == (256, 320)
    assert data.max_long_side >= 320 * 640 / 480
    data = parse_config([str(dataset), "--recipe", "small-data", "--eval-short-side", "320", "--train-short-sides", "[192]"]).data
    assert (data.eval_short_side, data.train_short_sides) == (320, (192,))


@pytest.mark.parametrize(("preset", "suppressor"), [("r18-two-stage", True), ("r50-hdetr", False)])
def test_every_network_that_is_named_learns_one_to_many(dataset: Path, preset: str, suppressor: bool) -> None:
    """By a suppressor, but where it has a branch for that already; its layers and widths stay its own."""
    model = parse_config([str(dataset), "--recipe", "small-data", "--preset", preset]).model
    assert (model.suppressor, bool(model.one_to_many_queries)) == (suppressor, not suppressor)
    assert (model.hidden_dim, model.num_encoder_layers) == (256, 6)


def test_python_and_command_line_choose_the_same(dataset: Path) -> None:
    arguments = [str(dataset), "--recipe", "small-data", "--lr", "1e-3", "--device", "cpu", "--output_dir", "out"]
    settings = {"dataset": dataset, "recipe": "small-data", "lr": 1e-3, "device": "cpu", "output_dir": "out"}
    assert plan_run(settings)[0] == parse_config(arguments)


def test_the_printed_config_is_the_one_that_is_used(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = [str(dataset), "--recipe", "small-data", "--epochs", "7"]
    with pytest.raises(SystemExit) as stopped:
        parse_config([*arguments, "--print-config"])
    assert not stopped.value.code
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    chosen = parse_config(arguments)
    assert (chosen.train.epochs, chosen.train.steps, chosen.model.num_queries) == (7, None, 100)
    assert read_config(path) == parse_config(["--config", str(path)]) == chosen


def test_a_file_stands_above_the_recipe_and_options_above_the_file(dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("recipe: small-data\nlr: 1e-5\ntrain: {patience: 3, ema_decay: 0.5}\n")
    config = parse_config([str(dataset), "--config", str(path), "--patience", "4"])
    assert (config.optimizer.lr, config.train.patience, config.train.ema_decay) == (1e-5, 4, 0.5)
    assert (config.preset, config.optimizer.schedule) == ("r18-fast", "cosine")


def test_finetune_needs_something_to_start_from(dataset: Path) -> None:
    with pytest.raises(ValueError, match=r"give --weights FILE.*--recipe small-data"):
        parse_config([str(dataset), "--recipe", "finetune"])
    assert parse_config([str(dataset), "--recipe", "finetune", "--weights", "a.pth"]).optimizer.schedule == "cosine"


def test_the_course_goes_with_the_length(dataset: Path) -> None:
    long, short, passes = (
        parse_config([str(dataset), "--recipe", "small-data", *length]) for length in ([], ["--steps", "200"], ["--epochs", "20"])
    )
    assert (long.train.steps, short.train.steps, passes.train.steps) == (2000, 200, None)
    assert long.optimizer.warmup_steps > short.optimizer.warmup_steps == passes.optimizer.warmup_steps  # 20 passes of 10 steps
    assert long.train.ema_decay > short.train.ema_decay == passes.train.ema_decay


def test_the_first_command_that_people_type(dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A small dataset and an ImageNet backbone: the recipe is taken, and one line says so."""
    caplog.set_level("INFO")
    config = parse_config([str(dataset), "--output", "out", "--device", "cpu"])
    assert config == parse_config([str(dataset), "--recipe", "small-data", "--output", "out", "--device", "cpu"])
    (line,) = [record.message for record in caplog.records if "small-data" in record.message]
    assert "20 training images" in line
    assert "--recipe none" in line
    assert parse_config([str(dataset), "--steps", "50", "--logger", "[]"]).recipe == "small-data"


@pytest.mark.parametrize(
    "options",
    [
        ["--recipe", "none"],
        ["--preset", "r50-refine"],
        ["--lr", "1e-3"],
        ["--weights", "a.pth"],
        ["--pretrained-backbone", "false"],
        ["--num-queries", "10"],
    ],
)
def test_what_keeps_the_settings_as_they_are(dataset: Path, options: list[str]) -> None:
    config = parse_config([str(dataset), *options])
    assert config.recipe == ("none" if options[0] == "--recipe" else None)
    assert config.optimizer.schedule == "step"


def test_a_large_dataset_is_no_case_for_it(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deformable_detr.training.recipe.SMALL_DATA", 19)
    assert parse_config([str(dataset)]).recipe is None


def test_what_is_wrong_with_the_dataset_is_said_by_the_training(tmp_path: Path) -> None:
    assert parse_config([str(tmp_path / "nothing")]).recipe is None
