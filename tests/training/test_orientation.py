"""`vertical_flip: auto` and `transpose: auto`: what is measured, when it is decided, and what the training then sees."""

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
from deformable_detr.data.loader import Allowed, TrainingSampler, build_dataset, build_loader
from deformable_detr.evaluation.metrics import Metrics
from deformable_detr.settings import asked_settings
from deformable_detr.structures import ImageBatch, Predictions
from deformable_detr.training import orientation, train
from deformable_detr.training.interruption import TrainingInterrupted
from deformable_detr.training.orientation import Orientation, SquareWindow, UpsideDown
from deformable_detr.training.run_folder import RunFolder
from deformable_detr.training.state import latest_state, load_state
from deformable_detr.training.validation import Validation

from ..processes import run_two


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


def bright(height: int, width: int, y: int, x: int) -> Tensor:
    """A grey image with one bright pixel."""
    image = torch.full((3, height, width), 0.5)
    image[:, y, x] = 1
    return image


def test_boxes_of_flipped_images_are_in_the_frame_of_the_images() -> None:
    """Also where the images of a batch are padded: what is above is compared with what is below, not with the padding."""

    batch = ImageBatch.from_images([bright(10, 20, 2, 3), bright(16, 8, 15, 0)])
    before = batch.images.clone()
    found = UpsideDown(BrightPixel())(batch)
    torch.testing.assert_close(found.boxes[0, 0, 0], torch.tensor([3.5 / 20, 2.5 / 10, 1 / 20, 1 / 10]))
    torch.testing.assert_close(found.boxes[0, 1, 0], torch.tensor([0.5 / 8, 15.5 / 16, 1 / 8, 1 / 16]))
    assert torch.equal(batch.images, before)


@pytest.mark.parametrize("transposed", [False, True])
def test_boxes_in_squares_are_in_the_frame_of_the_images(transposed: bool) -> None:
    """A wide image, a tall one, whose squares differ in size, and a bright pixel beside the square that must not be seen."""
    wide, tall = bright(10, 20, 2, 6), bright(16, 8, 11, 0)
    wide[:, 9, 1] = tall[:, 3, 7] = 2
    found = SquareWindow(BrightPixel(), transposed=transposed)(ImageBatch.from_images([wide, tall]))
    torch.testing.assert_close(found.boxes[0, 0, 0], torch.tensor([6.5 / 20, 2.5 / 10, 1 / 20, 1 / 10]))
    torch.testing.assert_close(found.boxes[0, 1, 0], torch.tensor([0.5 / 8, 11.5 / 16, 1 / 8, 1 / 16]))


def test_the_squares_are_transposed() -> None:
    class Rows(nn.Module):
        def forward(self, images: ImageBatch) -> Predictions:
            assert torch.equal(images.images[0, 0], torch.tensor([[1.0, 4.0], [2.0, 5.0]]))
            return Predictions(torch.zeros(1, 1, 1, 1), torch.tensor([[[[0.25, 0.75, 0.2, 0.4]]]]))

    image = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).expand(3, 2, 3)  # the square: the first two columns
    found = SquareWindow(Rows(), transposed=True)(ImageBatch.from_images([image]))
    torch.testing.assert_close(found.boxes[0, 0, 0], torch.tensor([0.75 * 2 / 3, 0.25, 0.4 * 2 / 3, 0.2]))


def metrics(ap: float, ap50: float = 1.0) -> Metrics:
    rest: dict[str, Any] = {field.name: nan for field in fields(Metrics) if field.default is MISSING}
    return Metrics(**rest | {"ap": ap, "ap50": ap50, "per_class": (), "num_images": 1})


def measured(
    monkeypatch: pytest.MonkeyPatch, *aps: float, undecided: tuple[str, ...] = ("vertical_flip", "transpose")
) -> Orientation:
    """One that would find these APs: upside down, on squares, on squares transposed."""
    validation = Validation(None, Categories(("cat",), (1,)), TrainConfig(), None)  # type: ignore[arg-type]
    left = iter(aps)

    def measure(network: object, progress: object, form: Any) -> Metrics:
        seen = form(nn.Identity())
        asked.append("upside down" if isinstance(seen, UpsideDown) else "transposed" if seen.transposed else "square")
        return metrics(next(left))

    asked: list[str] = []
    monkeypatch.setattr(validation, "measure", measure)
    monkeypatch.setattr(validation, "asked", asked, raising=False)
    return Orientation(validation, undecided)


@pytest.mark.parametrize(
    ("aps", "free"),
    [
        ((0.58, 0.2, 0.2), ("vertical_flip", "transpose")),
        ((0.54, 0.2, 0.181), ("vertical_flip", "transpose")),
        ((0.54, 0.2, 0.17), ("vertical_flip",)),
        ((0.53,), ()),
        ((0.0,), ()),
    ],
)
def test_images_are_free_where_the_model_keeps_nine_tenths(
    aps: tuple[float, ...], free: tuple[str, ...], monkeypatch, caplog
) -> None:
    """Upright AP .6; images that have an up are not asked about transposing."""
    found = measured(monkeypatch, *aps)
    with caplog.at_level("INFO"):
        found.decide(None, metrics(0.6), 40)  # type: ignore[arg-type]
    assert found.free == free
    assert found.validation.asked == ["upside down", "square", "transposed"][: len(aps)]  # type: ignore[attr-defined]
    assert f"upside down the model detects {'as well' if free else 'worse'}" in caplog.text
    assert f"AP {aps[0]:.3f}, upright 0.600" in caplog.text
    assert not found.due(metrics(0.6), 0.3, 100)  # decided for good
    resumed = measured(monkeypatch)
    resumed.load_state_dict(found.state_dict())
    assert (resumed.free, resumed.due(metrics(0.6), 0.3, 100)) == (free, False)


def test_transposing_alone_is_asked_where_flips_were_asked_for(monkeypatch) -> None:
    assert DataConfig(vertical_flip=0.5, transpose="auto").undecided_turns == ("transpose",)
    assert DataConfig(vertical_flip=0.0, transpose="auto").undecided_turns == ()
    assert DataConfig(vertical_flip="auto").undecided_turns == ("vertical_flip",)
    found = measured(monkeypatch, 0.2, 0.2, undecided=("transpose",))
    found.decide(None, metrics(0.6), 40)  # type: ignore[arg-type]
    assert found.free == ("transpose",)


def test_when_it_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch)
    assert found.due(metrics(0.3, 0.5), 0.5, 12)
    assert not found.due(metrics(0.3, 0.49), 0.5, 12)  # knows too little
    assert not found.due(metrics(nan, nan), 0.5, 12)  # a validation split without objects
    assert not found.due(metrics(0.3, 0.5), 0.51, 12)  # too late
    assert not found.due(metrics(0.3, 0.5), 0.5, 11)  # too short a run
    assert not measured(monkeypatch, undecided=()).due(metrics(0.3, 0.5), 0.5, 12)


def test_images_are_turned_with_their_boxes(config: RunConfig) -> None:
    """Against rows in the opposite order, and columns as rows; without being named in the key all are as without the setting."""
    plain = replace(config.data, train_short_sides=(64,), horizontal_flip=0.0)
    upright, auto = (
        build_dataset(config.dataset, "train", replace(plain, vertical_flip=setting, transpose=setting), training=True)
        for setting in (0.0, "auto")
    )
    expected, boxes = upright[0][0], upright[0][1].boxes
    mirrored = boxes * torch.tensor([1, -1, 1, 1]) + torch.tensor([0, 1, 0, 0])
    turned = {
        (): (expected, boxes),
        ("vertical_flip",): (expected.flip(1), mirrored),
        ("transpose",): (expected.mT, boxes[:, [1, 0, 3, 2]]),
        ("vertical_flip", "transpose"): (expected.flip(1).mT, mirrored[:, [1, 0, 3, 2]]),
    }
    for turns, (image, target) in turned.items():
        found = auto[SampleKey(0, 5, turns=turns)]
        torch.testing.assert_close(found[0], image, atol=1e-4, rtol=0)
        torch.testing.assert_close(found[1].boxes, target)


def test_every_second_batch_is_turned_as_a_whole() -> None:
    """In all processes alike, wherever in the epoch one starts, and the order of the images stays what it was."""

    def keys(turns: tuple[str, ...], skip: int = 0, **changes: Any) -> list[SampleKey]:
        settings: dict[str, Any] = {"batch_size": 4, "seed": 3} | changes
        sampler = TrainingSampler(400, **settings)
        sampler.set_epoch(2, skip, Allowed(turns=turns))
        return list(sampler)

    both = ("vertical_flip", "transpose")
    found, plain = keys(both), keys(())
    assert [key[:3] for key in found] == [key[:3] for key in plain]
    batches = [found[start : start + 4] for start in range(0, 400, 4)]
    assert all(len({key.turns for key in batch}) == 1 for batch in batches)
    for name in both:
        assert 30 < sum(name in batch[0].turns for batch in batches) < 70
    assert 10 < sum(batch[0].turns == both for batch in batches) < 40
    assert keys(both, skip=30) == found[120:]
    for rank in (0, 1):
        part = keys(both, batch_size=2, rank=rank, world_size=2)
        assert part == [key for batch in batches for key in batch[2 * rank : 2 * rank + 2]]


def test_the_sampler_hands_it_on_to_the_workers(config: RunConfig) -> None:
    data = replace(config.data, vertical_flip="auto")
    dataset = build_dataset(config.dataset, "train", data, training=True)

    def images(workers: int, turns: tuple[str, ...]) -> list[Tensor]:
        loader = build_loader(dataset, batch_size=2, training=True, num_workers=workers, seed=3)
        assert isinstance(loader.sampler, TrainingSampler)
        loader.sampler.set_epoch(1, allowed=Allowed(turns=turns))
        return [batch.images for batch, _ in loader]

    flipped, upright = images(0, ("vertical_flip",)), images(0, ())
    assert not all(map(torch.equal, flipped, upright))
    assert all(map(torch.equal, flipped, images(1, ("vertical_flip",))))


def test_a_run_that_found_out_goes_on_so_when_it_is_resumed(config: RunConfig, tmp_path: Path, monkeypatch, stop_at) -> None:
    """Two epochs, decided after the first; stopped in the second, the rest has the same bits."""
    for name, value in (("AS_WELL", 0.0), ("KNOWS_ENOUGH", 0.0), ("LEAST_PASSES", 2)):
        monkeypatch.setattr(orientation, name, value)

    def run(folder: str, **changes: Any) -> RunConfig:
        train_config = replace(config.train, epochs=2, evaluate_every=1)
        return replace(config, output_dir=str(tmp_path / folder), train=train_config, **changes)

    free = replace(config.data, vertical_flip="auto", transpose="auto")
    whole, upright = train(run("whole", data=free)), train(run("upright", data=replace(free, vertical_flip=0.0, transpose=0.0)))
    with pytest.raises(TrainingInterrupted):
        train(run("part", data=free), callbacks=[stop_at(6)])
    saved = latest_state(tmp_path / "part" / "state")
    assert saved is not None
    assert load_state(saved)["orientation"] == {"undecided": (), "free": ("vertical_flip", "transpose")}
    part = train(run("part", data=free, resume=True))
    weights = [load_file(result.last_weights) for result in (whole, part, upright)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    losses = [[row["train_loss"] for row in result.history] for result in (whole, upright)]
    assert losses[0][0] == losses[1][0]  # before it is decided nothing differs
    assert losses[0][1] != losses[1][1]


def train_asking(rank: int, config: RunConfig) -> None:
    """A run that decides after its first epoch, whatever it has learned."""
    orientation.AS_WELL, orientation.KNOWS_ENOUGH, orientation.LEAST_PASSES = 0.0, 0.0, 2
    train(config)


@pytest.mark.slow
def test_several_processes_decide_alike_and_turn_the_same_steps(config: RunConfig, tmp_path: Path, monkeypatch) -> None:
    """Two processes go on like one with twice the batch."""
    for name in ("AS_WELL", "KNOWS_ENOUGH", "LEAST_PASSES"):
        monkeypatch.setattr(orientation, name, getattr(orientation, name))  # for putting it back
    config = replace(
        config,
        # what depends on the composition of a batch; Adam would amplify rounding at lr 1e-3
        model=replace(config.model, freeze_batch_norm=True, dropout=0.0),
        data=replace(config.data, train_short_sides=(64,), vertical_flip="auto", transpose="auto"),
        optimizer=replace(config.optimizer, lr=1e-4),
        train=replace(config.train, evaluate_every=1, batch_size=4),
    )
    one = replace(config, output_dir=str(tmp_path / "one"))
    train_asking(0, one)
    two = replace(config, output_dir=str(tmp_path / "two"), train=replace(config.train, batch_size=2))
    run_two(train_asking, two)
    weights, states = [], []
    for run in (one, two):
        folder = RunFolder(run.output_dir)
        weights.append(load_file(folder.last_weights))
        saved = latest_state(folder.state)
        assert saved is not None
        states.append(load_state(saved)["orientation"])
    assert states == [{"undecided": (), "free": ("vertical_flip", "transpose")}] * 2
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, rtol=0, atol=1e-5, msg=name)


def test_other_words_are_refused() -> None:
    for name in ("vertical_flip", "transpose"):
        with pytest.raises(ValueError, match=name):
            replace(DataConfig(), **{name: 1.5})
        with pytest.raises(ValueError, match=name):
            asked_settings({"dataset": "set", f"data.{name}": "sometimes"})
