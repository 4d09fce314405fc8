import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.config import OptimizerConfig, RunConfig
from deformable_detr.detector import Detector
from deformable_detr.evaluation import Metrics
from deformable_detr.presets import model_preset
from deformable_detr.settings import GROUPS, asked_settings, build_config
from deformable_detr.visualize import look_inside

NAMES = {3: "circle", 8: "square"}
SMALL = {"train_short_sides": (64,), "crop_short_sides": (), "eval_short_side": 64, "max_long_side": 96, "num_workers": 0}


def make_dataset(root, counts=(("train", 6), ("val", 3))):
    """Images of 80 x 64 with one bright rectangle each; category ids with a gap."""
    generator = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for split, count in counts:
        (root / split).mkdir()
        images, annotations = [], []
        for index in range(count):
            left, top = (int(value) for value in generator.integers(0, 40, 2))
            pixels = np.full((64, 80, 3), 40, np.uint8)
            pixels[top : top + 20, left : left + 30] = 200
            Image.fromarray(pixels).save(root / split / f"{index}.png")
            images.append({"id": 100 + index, "file_name": f"{index}.png", "width": 80, "height": 64})
            category = 3 if index % 2 else 8
            annotation = {"id": index + 1, "image_id": 100 + index, "category_id": category, "iscrowd": 0, "area": 600}
            annotations.append(annotation | {"bbox": [left, top, 30, 20]})
        content = {"images": images, "annotations": annotations, "categories": [{"id": i, "name": n} for i, n in NAMES.items()]}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "first"
    detector = Detector.train(
        dataset, preset="tiny", output_dir=run, device="cpu", show_progress=False, steps=3, batch_size=2, data=SMALL, lr=1e-3
    )
    return detector, run


def test_train_gives_a_detector_with_the_classes_and_sizes_of_the_run(trained, dataset):
    detector, _ = trained
    assert isinstance(detector, Detector)
    assert detector.categories.names == ("circle", "square")
    assert detector.categories.ids == (3, 8)
    assert (detector.metadata.eval_short_side, detector.metadata.max_long_side) == (64, 96)
    assert detector.result is not None
    assert detector.result.steps == 3
    found = detector.predict(dataset / "val", 0.0, batch_size=2)
    assert len(found) == 3
    assert set(found[0].data["category_id"]) <= {3, 8}


def test_train_leaves_sample_images(trained):
    _, run = trained
    names = sorted(path.name for path in (run / "samples").iterdir())
    assert names == ["00000-0.png", "00001-1.png", "00002-2.png", "overview.png"]
    overview = np.asarray(Image.open(run / "samples" / "overview.png").convert("RGB"))
    assert overview.shape[1] == 4 * 400 + 5 * 10  # prediction, truth, prediction, truth


def test_eight_threads_load_while_others_predict(trained, dataset):
    """Loading changes nothing of the process: neither torch's calls nor its defaults nor its random numbers."""
    detector, run = trained
    image, stop = dataset / "val" / "0.png", threading.Event()
    expected = detector.predict(image, 0.0)
    net, x = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()).eval(), torch.ones(2, 8)
    of_torch, state = (torch.nn.Module.__call__, torch.nn.Module.__getattr__, torch.get_default_dtype()), torch.get_rng_state()

    def serve():
        while not stop.is_set():
            np.testing.assert_allclose(detector.predict(image, 0.0).confidence, expected.confidence, atol=1e-5)

    def run_foreign_modules():
        answer = net(x)
        while not stop.is_set():
            assert torch.equal(net(x), answer)
            assert torch.empty(1).device.type == "cpu"
            assert (torch.nn.Module.__call__, torch.nn.Module.__getattr__, torch.get_default_dtype()) == of_torch

    def load(_):
        found = Detector.load(run, device="cpu").predict(image, 0.0)
        np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=1e-3)

    with ThreadPoolExecutor(10) as pool:
        others = [pool.submit(serve), pool.submit(run_foreign_modules)]
        try:
            list(pool.map(load, range(8)))
        finally:
            stop.set()
        for other in others:
            other.result()
    assert torch.equal(torch.get_rng_state(), state)


def test_load_a_run_folder_and_save_and_load_a_file(trained, dataset, tmp_path):
    detector, run = trained
    image = dataset / "val" / "0.png"
    expected = detector.predict(image, 0.0)
    saved = detector.save(tmp_path / "new" / "detector.safetensors")
    for source in (run, saved, str(saved)):
        loaded = Detector.load(source, device="cpu")
        assert loaded.categories == detector.categories
        np.testing.assert_array_equal(loaded.predict(image, 0.0).xyxy, expected.xyxy)
    with pytest.raises(ValueError, match=r"call the file .*detector\.safetensors"):
        detector.save(tmp_path / "detector.pth")


def test_evaluate(trained, dataset, tmp_path):
    detector, _ = trained
    seen = []
    metrics = detector.evaluate(
        dataset, num_workers=0, results_file=tmp_path / "results.json", progress=lambda *seen_of: seen.append(seen_of)
    )
    assert isinstance(metrics, Metrics)
    assert metrics.num_images == 3
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert 0 <= metrics.ap <= 1
    assert {entry["image_id"] for entry in json.loads((tmp_path / "results.json").read_text())} == {100, 101, 102}
    assert detector.evaluate(dataset, "train", num_workers=0, batch_size=4).num_images == 6
    with pytest.raises(FileNotFoundError, match="no split 'test'"):
        detector.evaluate(dataset, "test")
    with pytest.raises(TypeError, match="worst must be a whole number"):
        detector.analyze(dataset, worst=2.5)  # type: ignore[arg-type]
    for measure in (detector.evaluate, detector.analyze):
        with pytest.raises(TypeError, match="unexpected keyword argument 'nms_iou'"):
            measure(dataset, nms_iou=0.7)  # type: ignore[call-arg]


def test_evaluating_what_predict_finds_gives_the_same_boxes(trained, dataset, tmp_path):
    detector, _ = trained
    detector.evaluate(dataset, num_workers=0, results_file=tmp_path / "results.json")
    first = [entry for entry in json.loads((tmp_path / "results.json").read_text()) if entry["image_id"] == 100]
    found = detector.predict(dataset / "val" / "0.png", 0.0)
    assert found.confidence is not None
    np.testing.assert_allclose(sorted(entry["score"] for entry in first), sorted(found.confidence), atol=1e-4)
    assert sorted(entry["category_id"] for entry in first) == sorted(found.data["category_id"])


def test_a_run_is_not_overwritten(trained, dataset):
    _, run = trained
    with pytest.raises(FileExistsError, match="holds a run already"):
        Detector.train(dataset, preset="tiny", output_dir=run, device="cpu", steps=1)


def test_settings_by_name_group_and_dotted_name():
    config = build_config(
        asked_settings(
            {
                "dataset": "data",
                "preset": "tiny",
                "epochs": 3,
                "lr": 1e-3,
                "num_queries": 7,
                "model": {"dropout": 0.2},
                "train": {"batch_size": 4},
                "optimizer.warmup_steps": 5,
                "data.train_short_sides": [64, 96],
                "weights": "start.safetensors",
            },
        )
    )
    assert isinstance(config, RunConfig)
    assert (config.train.epochs, config.train.batch_size) == (3, 4)
    assert (config.optimizer.lr, config.optimizer.warmup_steps) == (1e-3, 5)
    assert (config.model.num_queries, config.model.dropout) == (7, 0.2)
    assert config.model.hidden_dim == model_preset("tiny").hidden_dim
    assert config.data.train_short_sides == (64, 96)
    assert config.weights == "start.safetensors"
    assert build_config(asked_settings({"dataset": "data", "output_dir": Path("runs/x")})) == RunConfig("data", output_dir="runs/x")
    whole = build_config(asked_settings({"dataset": "data", "optimizer": OptimizerConfig(lr=0.5)}))
    assert whole.optimizer == OptimizerConfig(lr=0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_sise": 4}, r"unknown setting 'batch_sise'; did you mean train\.batch_size"),
        ({"model": {"num_querys": 4}}, r"unknown setting 'model\.num_querys'; did you mean model\.num_queries"),
        ({"optimizer.epochs": 4}, r"unknown setting 'optimizer\.epochs'; did you mean train\.epochs"),
        ({"train": 4}, "train takes settings by name"),
        ({"epochs": "many"}, r"train\.epochs"),
        ({"optimizer": {"schedule": "linear"}}, r"optimizer\.schedule"),
        ({"zzzz": 1}, "unknown setting 'zzzz'"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        build_config(asked_settings({"dataset": "data", **settings}))


def test_an_unknown_preset():
    with pytest.raises(ValueError, match="unknown preset 'r51'"):
        Detector.train("data", preset="r51")


def test_short_names_are_unique():
    """So that `lr=…` is enough: no two groups share the name of a setting."""
    names = [name for kind in GROUPS.values() for name in kind.__dataclass_fields__]
    assert len(names) == len(set(names))


def test_the_original_weights_are_not_changed_by_predicting(trained, dataset):
    detector, _ = trained
    before = {key: value.clone() for key, value in detector.model.state_dict().items()}
    detector.predict(dataset / "val", 0.0)
    assert all(torch.equal(before[key], value) for key, value in detector.model.state_dict().items())


def test_looking_inside(trained, dataset, tmp_path):
    detector, _ = trained
    image = dataset / "val" / "0.png"
    strongest = detector.explain(image)
    assert strongest.detection == look_inside(detector, image).detections(top_k=1)[0]
    assert detector.explain(image, 3).detection.query == 3
    assert detector.explain(image, box=strongest.detection.box).detection.box == strongest.detection.box
    assert strongest.save(tmp_path / "why.html").is_file()
    with pytest.raises(ValueError, match="query and point may not go together"):
        detector.explain(image, 3, point=(1, 2))
    with pytest.raises(ValueError, match=r"a point is x, y in pixels, not \[1, 2, 3\]"):
        detector.explain(image, point=(1, 2, 3))
    description = detector.describe(image, num_detections=2)
    assert len(description.detections) == 2
    assert description.detections[0].query == strongest.detection.query


def test_videos(trained, tmp_path):
    detector, _ = trained
    path = str(tmp_path / "clip.mp4")
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"mp4v"), 5, (80, 64))
    for _ in range(4):
        writer.write(np.full((64, 80, 3), 40, np.uint8))
    writer.release()
    frames = list(detector.stream(path, 0.0, every=2, top_k=3))
    assert [(frame.index, len(frame.detections), frame.detections.tracker_id) for frame in frames] == [(0, 3, None), (2, 3, None)]
    tracked = list(detector.track(path, 0.0, top_k=3))
    assert len(tracked) == 4
    assert all(frame.detections.tracker_id is not None for frame in tracked)
