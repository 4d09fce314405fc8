import numpy as np
import pytest
from PIL import Image

from deformable_detr.cli.__main__ import main
from deformable_detr.cli.preview import COMMAND
from deformable_detr.data.scenes import generate_scenes

from ..command_lines import parse_config

SIZES = ["--train_short_sides", "[96]", "--crop_short_sides", "[]", "--max_long_side", "160", "--eval_short_side", "96"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return str(generate_scenes(tmp_path_factory.mktemp("scenes"), train=6, val=2, image_size=64, seed=1))


def read(path, size=None):
    with Image.open(path) as image:
        return np.asarray(image if size is None else image.resize(size)).astype(float)


def test_images_and_overview(scenes, tmp_path, capsys):
    output = tmp_path / "out"
    assert main(["preview", scenes, *SIZES, "--num-images", "4", "--output", str(output), "--mosaic=1"]) == 0
    assert len(list(output.glob("00?-0*.png"))) == 4
    assert read(output / "overview.png").shape[1] > 1000
    assert "4 images" in capsys.readouterr().out


def test_one_row_per_augmentation(scenes, tmp_path):
    output = tmp_path / "out"
    assert main(["preview", scenes, *SIZES, "--each", "--num-images", "2", f"--output={output}"]) == 0
    names = [path.name for path in sorted(output.iterdir())]
    assert names[0] == "00-as-it-is.png"
    assert names[-2:] == ["09-all-as-they-are-set.png", "overview.png"]
    assert {name[3:-4] for name in names[1:-2]} == {
        *("horizontal_flip", "vertical_flip", "transpose", "color_jitter", "scale_jitter", "mosaic", "copy_paste", "mixup")
    }


def test_another_split_is_shown_as_in_evaluation(scenes, tmp_path):
    arguments = [*SIZES, "--batch-size", "1", "--mixup", "1", "--split", "val", "--output", str(tmp_path)]
    assert main(["preview", scenes, *arguments]) == 0
    images = sorted(tmp_path.glob("00?-*.png"))
    assert [path.name for path in images] == ["000-000001.png", "001-000002.png"]
    difference = read(images[0], (96, 96)) - read(f"{scenes}/val/000001.png", (96, 96))
    assert np.median(np.abs(difference)) < 4  # all but the boxes


def test_the_options_are_those_of_train(scenes):
    rest = ["--config", "configs/own-data.yaml", "--mosaic", "0.5", "--data.color_jitter", "[0.1, 0.2, 0.3, 0.0]", "--lr", "0.1"]
    options = COMMAND.parse([scenes, "--num-images", "3", *rest, "--output=x"])
    assert options.run.config == parse_config([scenes, *rest])
    assert (options.num_images, options.output, options.split) == (3, "x", None)
    assert (options.run.config.data.mosaic, options.run.config.data.color_jitter) == (0.5, (0.1, 0.2, 0.3, 0.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{scenes}", "--num-images", "0"], "num_images must be at least 1"),
        (["{scenes}", "--mosaik", "1"], "did you mean --mosaic"),
        (["{scenes}", "--mosaic", "2"], "mosaic must be in [0, 1]"),
        (["{scenes}", "--scale_jitter", "[0, 1]"], "scale_jitter must be two numbers above 0"),
        (["{scenes}", "--split", "test"], "no split 'test'"),
        ([], "dataset"),
    ],
)
def test_errors_are_named(scenes, arguments, message, capsys):
    assert main(["preview", *(argument.format(scenes=scenes) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err
