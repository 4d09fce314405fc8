"""`vertical_flip: auto`: what is measured, when it is decided, and what the training then sees."""

from dataclasses import MISSING, fields, replace
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from deformable_detr.categories import Categories
from deformable_detr.config import DataConfig, RunConfig, TrainConfig
from deformable_detr.data.coco import SampleKey
from deformable_detr.data.loader import TrainingSampler, build_dataset, build_loader
from deformable_detr.evaluation.metrics import Metrics
from deformable_detr.settings import asked_settings
from deformable_detr.structures import ImageBatch, Predictions
from deformable_detr.training import orientation, train
from deformable_detr.training.interruption import TrainingInterrupted
from deformable_detr.training.orientation import Orientation, UpsideDown
from deformable_detr.training.state import latest_state, load_state
from deformable_detr.training.validation import Validation


class BrightPixel(nn.Module):
    """One box around the brightest pixel of each image."""

    def forward(self, images: ImageBatch) -> Predictions:
        boxes = []
        assert images.image_sizes is not None
        for image, (height, width) in zip(images.images, images.image_sizes, strict=True):
            assert (image[:, height:] == 0).all()
            assert (image[:, :, width:] == 0).all()
            y, x = divmod(int(image[0].argmax()), image.shape[2])
            boxes.append(torch.tensor([[(x + 0.5) / width, (y + 0.5) / height, 1 / width, 1 / height]]))
        return Predictions(torch.zeros(1, len(boxes), 1, 1), torch.stack(boxes)[None])


def test_boxes_of_flipped_images_are_in_the_frame_of_the_images() -> None:
    """Also where the images of a batch are padded: what is above is compared with what is below, not with the padding."""

    def bright(height: int, width: int, y: int, x: int) -> Tensor:
        image = torch.full((3, height, width), 0.5)
        image[:, y, x] = 1
        return image

    batch = ImageBatch.from_images([bright(10, 20, 2, 3), bright(16, 8, 15, 0)])
    before = batch.images.clone()
    found = UpsideDown(BrightPixel())(batch)
    torch.testing.assert_close(found.boxes[0, 0, 0], torch.tensor([3.5 / 20, 2.5 / 10, 1 / 20, 1 / 10]))
    torch.testing.assert_close(found.boxes[0, 1, 0], torch.tensor([0.5 / 8, 15.5 / 16, 1 / 8, 1 / 16]))
    assert torch.equal(batch.images, before)


def metrics(ap: float, ap50: float = 1.0) -> Metrics:
    rest: dict[str, Any] = {field.name: nan for field in fields(Metrics) if field.default is MISSING}
    return Metrics(**rest | {"ap": ap, "ap50": ap50, "per_class": (), "num_images": 1})


def measured(ap: float, monkeypatch: pytest.MonkeyPatch) -> Orientation:
    """One that would find this AP upside down."""
    validation = Validation(None, Categories(("cat",), (1,)), TrainConfig(), None)  # type: ignore[arg-type]
    monkeypatch.setattr(validation, "measure", lambda network, progress, form: metrics({UpsideDown: ap}[form]))
    return Orientation(validation, undecided=True)


@pytest.mark.parametrize(("turned", "free"), [(0.58, True), (0.54, True), (0.53, False), (0.0, False)])
def test_images_are_free_where_the_model_keeps_nine_tenths(turned: float, free: bool, monkeypatch, caplog) -> None:
    found = measured(turned, monkeypatch)
    with caplog.at_level("INFO"):
        found.decide(None, metrics(0.6), 40)  # type: ignore[arg-type]
    assert found.free is free
    assert f"AP {turned:.3f}, upright 0.600" in caplog.text
    assert not found.due(metrics(0.6), 0.3, 100)  # decided for good
    resumed = measured(nan, monkeypatch)
    resumed.load_state_dict(found.state_dict())
    assert (resumed.free, resumed.due(metrics(0.6), 0.3, 100)) == (free, False)


def test_when_it_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(0.5, monkeypatch)
    assert found.due(metrics(0.3, 0.5), 0.5, 12)
    assert not found.due(metrics(0.3, 0.49), 0.5, 12)  # knows too little
    assert not found.due(metrics(nan, nan), 0.5, 12)  # a validation split without objects
    assert not found.due(metrics(0.3, 0.5), 0.51, 12)  # too late
    assert not found.due(metrics(0.3, 0.5), 0.5, 11)  # too short a run
    assert not Orientation(found.validation, undecided=False).due(metrics(0.3, 0.5), 0.5, 12)


def test_half_of_the_images_are_flipped_with_their_boxes(config: RunConfig) -> None:
    """Against rows in the opposite order; the other half, and all as long as it isn't allowed, are as without the setting."""
    plain = replace(config.data, train_short_sides=(64,), horizontal_flip=0.0, transpose=0.0)
    upright, auto = (
        build_dataset(config.dataset, "train", replace(plain, vertical_flip=flip), training=True) for flip in (0.0, "auto")
    )
    expected, boxes = upright[0][0], upright[0][1].boxes
    mirrored = boxes * torch.tensor([1, -1, 1, 1]) + torch.tensor([0, 1, 0, 0])
    flipped = 0
    for seed in range(40):
        image, target = auto[SampleKey(0, seed)]
        assert torch.equal(image, expected)
        assert torch.equal(target.boxes, boxes)
        image, target = auto[SampleKey(0, seed, flip=True)]
        if torch.equal(image, expected):
            assert torch.equal(target.boxes, boxes)
        else:
            flipped += 1
            assert torch.equal(image, expected.flip(1))
            torch.testing.assert_close(target.boxes, mirrored)
        image, _ = upright[SampleKey(0, seed, flip=True)]
        assert torch.equal(image, expected)  # the setting is off
    assert 10 < flipped < 30


def test_the_sampler_hands_it_on_to_the_workers(config: RunConfig) -> None:
    data = replace(config.data, vertical_flip="auto")
    dataset = build_dataset(config.dataset, "train", data, training=True)

    def images(workers: int, flipping: bool) -> list[Tensor]:
        loader = build_loader(dataset, batch_size=2, training=True, num_workers=workers, seed=3)
        assert isinstance(loader.sampler, TrainingSampler)
        loader.sampler.set_epoch(1, flipping=flipping)
        return [batch.images for batch, _ in loader]

    flipped, upright = images(0, True), images(0, False)
    assert not all(map(torch.equal, flipped, upright))
    assert all(map(torch.equal, flipped, images(1, True)))


def test_a_run_that_found_out_goes_on_so_when_it_is_resumed(config: RunConfig, tmp_path: Path, monkeypatch, stop_at) -> None:
    """Two epochs, decided after the first; stopped in the second, the rest has the same bits."""
    for name, value in (("AS_WELL", 0.0), ("KNOWS_ENOUGH", 0.0), ("LEAST_PASSES", 2)):
        monkeypatch.setattr(orientation, name, value)

    def run(folder: str, **changes: Any) -> RunConfig:
        train_config = replace(config.train, epochs=2, evaluate_every=1)
        return replace(config, output_dir=str(tmp_path / folder), train=train_config, **changes)

    free = replace(config.data, vertical_flip="auto")
    whole, upright = train(run("whole", data=free)), train(run("upright"))
    with pytest.raises(TrainingInterrupted):
        train(run("part", data=free), callbacks=[stop_at(6)])
    saved = latest_state(tmp_path / "part" / "state")
    assert saved is not None
    assert load_state(saved)["orientation"] == {"undecided": False, "free": True}
    part = train(run("part", data=free, resume=True))
    weights = [load_file(result.last_weights) for result in (whole, part, upright)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    losses = [[row["train_loss"] for row in result.history] for result in (whole, upright)]
    assert losses[0][0] == losses[1][0]  # before it is decided nothing differs
    assert losses[0][1] != losses[1][1]


def test_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match="vertical_flip"):
        DataConfig(vertical_flip=1.5)
    with pytest.raises(ValueError, match="vertical_flip"):
        asked_settings({"dataset": "set", "data.vertical_flip": "sometimes"})
