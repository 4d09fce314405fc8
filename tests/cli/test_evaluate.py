import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.boxes import xyxy_to_xywh
from deformable_detr.categories import Categories
from deformable_detr.checkpoints import save_weights
from deformable_detr.cli.__main__ import main
from deformable_detr.cli.evaluate import COMMAND, EvaluateOptions
from deformable_detr.config import Metadata
from deformable_detr.detector import Detector
from deformable_detr.model import build_model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = build_model("tiny", num_classes=2)
    metadata = Metadata(model.metadata.model, Categories(("cat", "dog"), (7, 3)), eval_short_side=80, max_long_side=112)
    return str(save_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors", model, metadata=metadata))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    (root / "annotations").mkdir()
    (root / "val").mkdir()
    generator = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(generator.integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(root / "val" / f"{index}.png")
    box = {"bbox": [10, 10, 40, 30], "area": 1200, "iscrowd": 0}
    content = {
        "images": [{"id": index, "file_name": f"{index}.png", "width": 90, "height": 60} for index in range(3)],
        "annotations": [{"id": index + 1, "image_id": index, "category_id": 12, **box} for index in range(2)],
        "categories": [{"id": 12, "name": "cat"}, {"id": 5, "name": "dog"}],
    }
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return str(root)


def test_table_json_results_and_curves(weights, dataset, tmp_path, capsys):
    files = {name: tmp_path / "out" / name for name in ("numbers.json", "results.json", "curves.png")}
    options = ["--json", "numbers.json", "--results", "results.json", "--curves", "curves.png"]
    arguments = [str(files.get(option, option)) for option in options]
    assert main(["evaluate", weights, dataset, "--num-workers", "0", "--batch_size=2", *arguments]) == 0
    shown = capsys.readouterr().out
    for text in ("AP50", "AR 100", "3 images", "cat", "dog"):
        assert text in shown
    numbers = json.loads(files["numbers.json"].read_text())
    assert numbers["num_images"] == 3
    assert sorted(entry["name"] for entry in numbers["per_class"]) == ["cat", "dog"]
    results = json.loads(files["results.json"].read_text())
    assert {entry["category_id"] for entry in results} <= {12, 5}
    assert files["curves.png"].stat().st_size > 1000


def test_the_batch_size_does_not_change_the_numbers(weights, dataset, tmp_path):
    numbers = []
    for batch_size in (1, 3):
        path = tmp_path / f"{batch_size}.json"
        assert main(["evaluate", weights, dataset, "--num_workers=0", f"--batch_size={batch_size}", "--json", str(path)]) == 0
        numbers.append(json.loads(path.read_text()))
    assert numbers[0]["ap"] == pytest.approx(numbers[1]["ap"], abs=1e-6)


@pytest.fixture(scope="module")
def answered(weights, dataset, tmp_path_factory):
    """The images again, where the best detection of the network in each is the truth."""
    root = tmp_path_factory.mktemp("answered")
    (root / "annotations").mkdir()
    (root / "val").symlink_to(Path(dataset) / "val")
    found = Detector.load(weights).predict(str(root / "val"), 0.0, top_k=1)
    boxes = [xyxy_to_xywh(torch.from_numpy(one.xyxy))[0].tolist() for one in found]
    content = {
        "images": [{"id": index, "file_name": f"{index}.png", "width": 90, "height": 60} for index in range(3)],
        "annotations": [
            {"id": index + 1, "image_id": index, "category_id": int(one.data["category_id"][0]), "bbox": box, "iscrowd": 0}
            for index, (one, box) in enumerate(zip(found, boxes, strict=True))
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return str(root)


def test_report(weights, answered, tmp_path, capsys):
    folder = tmp_path / "new" / "report"
    numbers = tmp_path / "numbers.json"
    arguments = ["--num_workers=0", "--report", str(folder), "--worst=1", "--json", str(numbers)]
    assert main(["evaluate", weights, answered, *arguments]) == 0
    assert f"written: {folder / 'report.html'}" in capsys.readouterr().out
    record = json.loads((folder / "report.json").read_text())
    assert record["metrics"] == json.loads(numbers.read_text())
    assert record["all_classes"]["true_positives"] > 0
    assert len(list((folder / "worst").iterdir())) == 1
    page = (folder / "report.html").read_text()
    assert f"tiny.safetensors on {Path(answered).name}, val split" in page


def test_saved_thresholds_are_what_predict_uses(weights, answered, tmp_path, capsys):
    own = tmp_path / "own.safetensors"
    shutil.copy(weights, own)
    images = str(Path(answered) / "val")
    assert len(Detector.load(own).predict(images)[0]) == 0  # random weights are not sure of anything
    assert main(["evaluate", str(own), answered, "--num_workers=0", "--save_thresholds"]) == 0
    assert f"written: {own} (the thresholds of 2 classes)" in capsys.readouterr().out
    detector = Detector.load(own)
    thresholds = detector.metadata.thresholds
    numbers = detector.evaluate(answered, num_workers=0)
    assert thresholds is not None and thresholds == numbers.thresholds
    for found, everything in zip(detector.predict(images), detector.predict(images, 0.0), strict=True):
        kept = [score >= thresholds[label] for score, label in zip(everything.confidence, everything.class_id, strict=True)]
        assert len(found) == sum(kept) > 0
    assert detector.analyze(answered, num_workers=0).analysis.thresholds_from == "given"


def test_thresholds_have_no_place_in_foreign_files(weights, answered, tmp_path, capsys):
    foreign = tmp_path / "foreign.pth"
    torch.save(Detector.load(weights).model.state_dict(), foreign)
    assert main(["evaluate", str(foreign), answered, "--save_thresholds"]) == 2
    assert "not a weights file of our own" in capsys.readouterr().err


def test_no_thresholds_where_nothing_is_right(weights, dataset, tmp_path, capsys):
    own = tmp_path / "own.safetensors"
    shutil.copy(weights, own)
    assert main(["evaluate", str(own), dataset, "--top_k=1", "--num_workers=0", "--save_thresholds"]) == 2
    assert "there are no thresholds to store" in capsys.readouterr().err
    assert own.read_bytes() == Path(weights).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{weights}", "nowhere"], "nowhere"),
        (["{weights}", "{dataset}", "--split", "test"], "no split 'test'"),
        (["nowhere.safetensors", "{dataset}"], "nowhere.safetensors"),
        (["{weights}", "{dataset}", "--batch_size", "two"], "--batch-size: expected int, got 'two'"),
        (["{weights}", "{dataset}", "--device", "gpu"], "unknown device 'gpu'"),
        (["{weights}", "{dataset}", "--report", "nowhere", "--worst", "-1"], "worst must be at least 0, not -1"),
        (["{weights}"], "DATASET"),
    ],
)
def test_errors_are_named(weights, dataset, arguments, message, capsys):
    assert main(["evaluate", *(argument.format(weights=weights, dataset=dataset) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--results", "--json"])
def test_annotations_are_not_written_over(option, weights, dataset, tmp_path, capsys):
    annotations = tmp_path / "instances_val.json"
    annotations.write_text('{"images": [], "annotations": [], "categories": []}')
    assert main(["evaluate", weights, str(dataset), option, str(annotations)]) != 0
    assert "holds annotations" in capsys.readouterr().err
    assert json.loads(annotations.read_text())["categories"] == []


def test_options():
    options = COMMAND.parse(["runs/first", "my_data", "--split=test", "--top-k", "300", "--no-per-class"])
    assert options == EvaluateOptions(weights="runs/first", dataset="my_data", split="test", top_k=300, per_class=False)


def test_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        COMMAND.parse(["--help"])
    shown = capsys.readouterr().out
    for text in ("--split", "Part of the dataset. By default", "examples:", "torchrun"):
        assert text in shown


def test_settings_for_loading(monkeypatch):
    loaded = []
    monkeypatch.setattr(Detector, "load", lambda weights, **settings: loaded.append((weights, settings)))
    for words in (["--precision", "bf16", "--device=cpu"], ["--dilation", "--no-ema"]):
        COMMAND.parse(["w", "d", *words]).open()
    always = {"optimize": True, "compile": False}
    assert loaded == [
        ("w", {"device": "cpu", "precision": "bf16", "ema": None, **always}),
        ("w", {"device": "auto", "precision": "fp32", "ema": False, "dilation": True, **always}),
    ]


@pytest.mark.parametrize(("name", "runtime"), [("a.onnx", "onnx"), ("a.xml", "openvino"), ("a.PT2", "pt2")])
def test_the_suffix_chooses_the_runtime(name, runtime, weights, dataset, tmp_path, monkeypatch):
    opened = []

    def load_exported(path, runtime):
        opened.append((path, runtime))
        return Detector.load(weights, device="cpu")

    monkeypatch.setattr("deformable_detr.export.load_exported", load_exported)
    numbers = {}
    for source in (weights, name):
        arguments = ["evaluate", source, dataset, "--num-workers", "0", "--json", str(tmp_path / "numbers.json")]
        assert main(arguments) == 0
        numbers[source] = json.loads((tmp_path / "numbers.json").read_text())
    assert opened == [(name, runtime)]
    assert numbers[name] == numbers[weights]


@pytest.mark.parametrize("words", [["--precision", "bf16"], ["--compile"], ["--no-optimize"], ["--ema"], ["--device", "cuda"]])
def test_options_that_an_exported_file_does_not_take(words):
    with pytest.raises(ValueError, match="leave out --" + words[0].strip("-")):
        COMMAND.parse(["a.onnx", "data", *words]).open()
