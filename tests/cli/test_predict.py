import functools
import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import supervision as sv
import torch
from PIL import Image

from deformable_detr.categories import Categories
from deformable_detr.checkpoints import save_weights
from deformable_detr.cli.__main__ import main
from deformable_detr.cli.predict import COMMAND
from deformable_detr.cli.predict_images import drawing_paths
from deformable_detr.config import Metadata
from deformable_detr.detector import Detector
from deformable_detr.model import build_model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = build_model("tiny", num_classes=2)
    metadata = Metadata(model.metadata.model, Categories(("cat", "dog"), (7, 3)), eval_short_side=80, max_long_side=112)
    return str(save_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors", model, metadata=metadata))


@pytest.fixture
def photos(tmp_path):
    generator = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, (name, mode) in enumerate([("a.jpg", "RGB"), ("b.png", "RGBA"), ("c.jpg", "L")]):
        pixels = generator.integers(0, 255, (60 + index, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / name)
    return folder


def test_images_and_json(weights, photos, tmp_path, capsys):
    output = tmp_path / "out"
    options = ["--threshold", "0", "--output", str(output), "--batch-size", "2", "--precision", "fp32"]
    assert main(["predict", weights, str(photos), *options]) == 0
    assert sorted(path.name for path in output.iterdir()) == ["a.jpg", "b.png", "c.jpg", "predictions.json"]
    record = json.loads((output / "predictions.json").read_text())
    assert record["info"] == {"image_dir": str(photos)}
    assert record["categories"] == [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    names = [(image["id"], image["file_name"], image["width"], image["height"]) for image in record["images"]]
    expected = [("a.jpg", 60), ("b.png", 61), ("c.jpg", 62)]
    assert names == [(number, name, 90, height) for number, (name, height) in enumerate(expected, 1)]
    found = Detector.load(weights, device="cpu").predict(photos / "b.png", 0.0)
    second = [entry for entry in record["annotations"] if entry["image_id"] == 2]
    assert sorted(entry["score"] for entry in second) == pytest.approx(sorted(found.confidence.tolist()), abs=1e-4)
    best = max(second, key=lambda entry: entry["score"])
    left, top, right, bottom = found.xyxy[0].tolist()
    assert best["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=0.05)
    assert best["category_id"] == found.data["category_id"][0]
    assert [entry["id"] for entry in record["annotations"]] == list(range(1, len(record["annotations"]) + 1))
    shown = capsys.readouterr().out
    assert "3 images" in shown
    assert "cat" in shown


def test_the_json_is_a_dataset_for_other_tools(weights, photos, tmp_path):
    sub = photos / "sub"
    sub.mkdir()
    (photos / "c.jpg").rename(sub / "a.jpg")
    output = tmp_path / "out"
    assert main(["predict", weights, f"{photos}/**/*", "--threshold", "0", "--output", str(output)]) == 0
    assert sorted(path.name for path in output.iterdir()) == ["a-2.jpg", "a.jpg", "b.png", "predictions.json"]
    dataset = sv.DetectionDataset.from_coco(str(photos), str(output / "predictions.json"))
    assert dataset.classes == ["dog", "cat"]
    assert sorted(Path(path).relative_to(photos).as_posix() for path in dataset.image_paths) == ["a.jpg", "b.png", "sub/a.jpg"]


def test_options_files_and_classes(weights, photos, tmp_path):
    chosen = [str(photos / "a.jpg"), str(photos / "b.png"), "--classes", "dog", "--threshold", "0"]
    arguments = [*chosen, "--output", str(tmp_path / "out"), "--json", str(tmp_path / "x" / "boxes.json"), "--no-draw"]
    assert main(["predict", weights, *arguments]) == 0
    assert not (tmp_path / "out").exists()
    record = json.loads((tmp_path / "x" / "boxes.json").read_text())
    assert len(record["images"]) == 2
    assert {entry["category_id"] for entry in record["annotations"]} == {3}


def test_an_image_that_is_given_several_times_counts_once(weights, photos, tmp_path, capsys):
    forms = [photos / "b.png", photos, f"{photos}/*.png", f"{photos}/../photos/a.jpg"]
    (photos / "link.jpg").symlink_to(photos / "c.jpg")  # another name is another image
    arguments = [*map(str, forms), "--threshold", "0", "--output", str(tmp_path / "out")]
    assert main(["predict", weights, *arguments]) == 0
    record = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [image["file_name"] for image in record["images"]] == ["b.png", "a.jpg", "c.jpg", "link.jpg"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.[jp][pn]g")) == ["a.jpg", "b.png", "c.jpg", "link.jpg"]
    assert "4 images" in capsys.readouterr().out


def test_names_and_patterns_that_begin_with_a_bracket(weights, photos, tmp_path, monkeypatch):
    """Options take lists in brackets; what is predicted on is named as it is."""
    monkeypatch.chdir(photos)
    (photos / "a.jpg").rename(photos / "[1] a.jpg")
    for number, (source, names) in enumerate({"[bc].*": ["b.png", "c.jpg"], "[1] a.jpg": ["[1] a.jpg"]}.items()):
        assert main(["predict", weights, source, "--classes", "[cat, dog]", "--output", str(tmp_path / str(number))]) == 0
        record = json.loads((tmp_path / str(number) / "predictions.json").read_text())
        assert [image["file_name"] for image in record["images"]] == names


def test_unreadable_images(weights, photos, tmp_path, capsys):
    (photos / "b.png").write_bytes(b"no image")
    arguments = ["predict", weights, str(photos), "--output", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "b.png: not an image" in capsys.readouterr().err
    assert main([*arguments, "--on_error", "skip"]) == 0
    captured = capsys.readouterr()
    assert "2 images (1 skipped)" in captured.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{weights}", "nowhere.jpg"], "no such image or folder: nowhere.jpg"),
        (["{weights}", "no/*.jpg"], "matches no image"),
        (["{weights}", "{photos}", "--classes", "fish"], "unknown class ['fish']; this detector knows cat, dog"),
        (["{weights}", "{photos}", "--threshold", "2"], "threshold must lie in [0, 1]"),
        (["{weights}", "{photos}", "--threshold", "high"], "threshold"),
        (["{weights}", "{photos}", "--treshold", "0.3"], "--treshold"),
        (["{weights}"], "SOURCE"),
        (["{weights}", "{photos}", "--tile-overlap", "0.3"], "--tile-overlap has no effect without --tiles"),
        (["runs/nowhere", "{photos}"], "no weights at runs/nowhere"),  # the hub is not asked
        (
            ["{weights}", "{photos}", "--output", "{photos}"],
            "the drawing of {photos}/a.jpg would replace {photos}/a.jpg; choose another --output",
        ),
        (["{weights}", "{photos}", "--output", "{photos}/out", "--json", "{photos}/out/b.png"], "would replace the drawing"),
        (["{weights}", "{photos}", "--track"], "--track is for videos"),
        (["{weights}", "{photos}", "--classes", "cat", "--classes", "dog"], "--classes is given twice"),
        (["{weights}", "{photos}", "--every", "2"], "--every is for videos"),
    ],
)
def test_errors_are_named(weights, photos, arguments, message, capsys):
    assert main(["predict", *(argument.format(weights=weights, photos=photos) for argument in arguments)]) == 2
    assert message.format(photos=photos) in capsys.readouterr().err


def test_help_has_all_options_and_examples(capsys):
    with pytest.raises(SystemExit, match="0"):
        COMMAND.parse(["--help"])
    shown = capsys.readouterr().out
    for text in ("--threshold", "--classes", "Smallest score", "examples:", "deformable-detr predict runs/first street.jpg"):
        assert text in shown


def test_images_of_the_same_name_get_numbers(tmp_path):
    paths = [tmp_path / "a" / "x.jpg", tmp_path / "b" / "X.JPEG", tmp_path / "b" / "x.bmp", tmp_path / "a" / "x.jpg"]
    targets = drawing_paths(paths, tmp_path / "out")
    assert [path.name for path in targets.values()] == ["x.jpg", "X-2.jpg", "x.png"]


def test_an_address(weights, photos, tmp_path):
    """An image by HTTP is what the file is; one that is not there is an error with the address."""
    handler = functools.partial(QuietFiles, directory=str(photos))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        for source, folder in ((f"{address}/b.png?size=large", "web"), (str(photos / "b.png"), "disk")):
            assert main(["predict", weights, source, "--threshold", "0", "--output", str(tmp_path / folder)]) == 0
        assert main(["predict", weights, f"{address}/none.png", "--output", str(tmp_path / "none")]) != 0
        server.shutdown()
        thread.join()
    web, disk = (json.loads((tmp_path / folder / "predictions.json").read_text()) for folder in ("web", "disk"))
    assert web["annotations"] == disk["annotations"]
    assert [(image["width"], image["file_name"]) for image in web["images"]] == [(90, f"{address}/b.png?size=large")]
    assert (tmp_path / "web" / "b.png").is_file()
    assert not (tmp_path / "none" / "predictions.json").exists()


class QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass
