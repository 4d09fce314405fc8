"""All classes as one: what is learned, what is measured, what the weights say of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deformable_detr import Detector
from deformable_detr.config import RunConfig
from deformable_detr.evaluation import CocoEvaluator
from deformable_detr.settings import asked_settings, build_config, to_yaml
from deformable_detr.training.preparation import build_network, open_data


def test_all_classes_are_one(config: RunConfig, dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    config = replace(config, data=replace(config.data, single_class=True))
    data, usual = open_data(config), open_data(replace(config, data=replace(config.data, single_class=False)))
    assert data.val is not None and usual.val is not None
    assert "are one: object" in caplog.text
    assert data.train.categories.names == data.val.categories.names == ("object",)
    for one, other in ((data.train, usual.train), (data.val, usual.val)):
        assert (one.boxes() == other.boxes()).all()
        assert {int(label) for index in range(len(one)) for label in one.target(index).labels} == {0}

    # boxes of another class are right, too: each of the objects found once is an AP of 1
    evaluator = CocoEvaluator(data.val.ground_truth, data.train.categories)
    for index, image_id in enumerate(data.val.image_ids):
        left, top, width, height = torch.from_numpy(data.val.ground_truth.boxes[data.val.ground_truth.images == index]).T
        boxes = torch.stack((left, top, left + width, top + height), 1)
        found = {"scores": torch.ones(len(boxes)), "labels": torch.zeros(len(boxes), dtype=torch.int64), "boxes": boxes}
        evaluator.update([image_id], [found])
        assert len(boxes) == len(usual.val.target(index))
    metrics = evaluator.compute()
    assert metrics.ap == pytest.approx(1.0)
    assert [row.name for row in metrics.per_class] == ["object"]

    detector = Detector(build_network(config, data.train.categories, resumed=True))
    detector = Detector.load(detector.save(tmp_path / "weights.safetensors"))
    caplog.clear()
    assert [row.name for row in detector.evaluate(dataset, num_workers=0).per_class] == ["object"]
    assert "all classes as one (object)" in caplog.text
    found = detector.predict(next((dataset / "val").glob("*.png")), threshold=0.0)
    assert set(found.data["class_name"]) == {"object"}
    kept = tmp_path / "config.yaml"
    kept.write_text(to_yaml(config))
    assert build_config(asked_settings({}, kept)).data.single_class
