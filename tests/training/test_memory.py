import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from PIL import Image

from deformable_detr.config import RunConfig
from deformable_detr.criterion import SetCriterion
from deformable_detr.data.loader import build_dataset
from deformable_detr.model import build_model
from deformable_detr.settings import read_config
from deformable_detr.structures import ImageBatch, Target
from deformable_detr.training import learner, memory, train
from deformable_detr.training.memory import OutOfMemoryError, largest_canvas, set_gradient_checkpointing
from deformable_detr.training.preparation import build_accelerator

from .conftest import write_split


@pytest.mark.parametrize("most", [1, 2, 3, 7, 16, 31])
def test_the_largest_that_fits_is_found_on_a_gpu(config: RunConfig, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu: Any = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    trial = memory.Trial(build_model(config.model), config, (64, 64), 1, gpu)
    for limit in range(34):
        tried = []

        def too_large(size: int, limit: int = limit, tried: list[int] = tried) -> bool:
            tried.append(size)
            return size > limit

        monkeypatch.setattr(trial, "too_large", too_large)
        assert trial.largest(most) == min(limit, most)
        assert all(1 <= size <= most for size in tried)
        assert len(tried) <= most.bit_length() + 1


def run_with_memory(config: RunConfig, folder: Path, images: int, monkeypatch: pytest.MonkeyPatch, **settings) -> RunConfig:
    """Train an epoch on a machine that seems to have room for so many images; the config that was used."""
    kept = 10_000_000.0
    monkeypatch.setattr(memory.Trial, "_kept_by", lambda self, size: kept * size)
    weights = 3 * 4 * sum(value.numel() for value in build_model(config.model).parameters() if value.requires_grad)
    free = (weights + memory.WORKING_SHARE * kept * (images + 0.5)) / memory.SHARE_OF_MEMORY
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": free}))
    settings = {"batch_size": "auto", "accumulate": 1, "epochs": 1} | settings
    run = replace(config, output_dir=str(folder), train=replace(config.train, **settings))
    return read_config(train(run).output_dir / "config.yaml")


@pytest.mark.parametrize(("room", "target", "expected"), [(3, 6, (3, 2)), (9, 4, (4, 1)), (1, 4, (1, 4))])
def test_auto_takes_what_fits_and_accumulates_to_the_target(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, target: int, expected: tuple[int, int]
) -> None:
    used = run_with_memory(config, tmp_path / "run", room, monkeypatch, target_batch_size=target)
    assert (used.train.batch_size, used.train.accumulate) == expected


def test_nothing_fits(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutOfMemoryError, match=r"1 x 64 x 64 pixels does not fit.*gradient-checkpointing"):
        run_with_memory(config, tmp_path / "run", 0, monkeypatch)


@pytest.mark.slow
def test_the_trial_leaves_no_trace(config: RunConfig, tmp_path: Path) -> None:
    """A run whose batch size was searched for ends with the bits of one that was told it."""
    weights = []
    for size, extra in ((2, {}), ("auto", {"target_batch_size": 2})):
        settings = replace(config.train, epochs=1, batch_size=size, **extra)
        result = train(replace(config, output_dir=str(tmp_path / str(size)), train=settings))
        weights.append(result.last_weights.read_bytes()[-4000:])
    assert weights[0] == weights[1]


def test_crops_of_wide_images_may_be_tall(config: RunConfig, tmp_path: Path) -> None:
    write_split(tmp_path, "train", 1, size=100)
    path = tmp_path / "train" / "0.png"
    Image.open(path).crop((0, 0, 100, 50)).save(path)
    file = tmp_path / "annotations" / "instances_train.json"
    record = json.loads(file.read_text())
    record["images"][0]["height"] = 50
    record["annotations"][0]["bbox"], record["annotations"][1:] = [2, 2, 20, 20], []
    file.write_text(json.dumps(record))
    data = replace(config.data, train_short_sides=(50,), max_long_side=100, pad_size_divisor=1)
    dataset = build_dataset(tmp_path, "train", data, training=True)
    assert largest_canvas(replace(config, data=data), dataset) == (50, 100)
    # resized to 80 x 40 (width, height) and cut: the narrowest crop, 20 x 40, becomes 50 x 100
    cropped = replace(data, crop_short_sides=(30, 40), crop_range=(20, 45))
    assert largest_canvas(replace(config, data=cropped), dataset) == (100, 100)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_room_is_left_for_the_optimiser_and_the_average(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, ema_decay: float
) -> None:
    """Two numbers per trained weight, and a copy of the whole network: on a GPU as tensors beside the step that is tried."""
    network = build_model(config.model)
    network.backbone.requires_grad_(False)
    trained = sum(value.numel() for value in network.parameters() if value.requires_grad)
    whole = sum(value.numel() for value in (*network.parameters(), *network.buffers()))
    reserved: list[int] = []
    original = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda value: reserved.append(value.numel()) or original(value))
    run = replace(config, train=replace(config.train, ema_decay=ema_decay))
    trial = memory.Trial(network, run, (64, 64), 1, build_accelerator(config.train))
    monkeypatch.setattr(trial, "_run", lambda size: None)
    assert not trial.too_large(1)
    assert sum(reserved) == 2 * trained + (whole if ema_decay else 0)
    monkeypatch.setattr(trial, "_kept_by", lambda size: 1e6)
    free = 4 * (3 * trained + (whole if ema_decay else 0)) + memory.WORKING_SHARE * 3.5e6
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": free / memory.SHARE_OF_MEMORY}))
    assert trial.largest(8) == 3


def test_running_out_is_explained(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(learner, "train_step", no_memory)
    with pytest.raises(OutOfMemoryError) as error:
        train(replace(config, output_dir=str(tmp_path / "run")))
    text = str(error.value)
    assert "2 x " in text
    assert "Tried to allocate 20.00 MiB" in text
    assert text.index("--batch-size auto") < text.index("--gradient-checkpointing") < text.index("--max-long-side below 64")


def kept_bytes(model: torch.nn.Module, images: ImageBatch, targets: list[Target]) -> tuple[int, dict[str, torch.Tensor]]:
    """What is kept between forward and backward pass, and the gradients."""
    kept = {}  # the tensors themselves: an address may be given away again when its memory is freed
    own = {value.untyped_storage().data_ptr() for value in model.state_dict().values()}

    def pack(value: torch.Tensor) -> torch.Tensor:
        kept[value.untyped_storage().data_ptr()] = value.detach()
        return value

    torch.manual_seed(1)  # dropout
    criterion = SetCriterion(2)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        loss = criterion.weighted_sum(criterion(model(images), targets))
    loss.backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return sum(value.untyped_storage().nbytes() for pointer, value in kept.items() if pointer not in own), gradients


def test_gradient_checkpointing_keeps_less_and_changes_nothing() -> None:
    torch.manual_seed(0)
    model = build_model("tiny", num_classes=2, freeze_batch_norm=True, dropout=0.1, num_encoder_layers=3).double().train()
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = [Target(torch.tensor([[0.5, 0.5, 0.3, 0.3]], dtype=torch.float64), torch.tensor([1]))] * 2
    batch = ImageBatch.from_images(list(images))
    plain, expected = kept_bytes(model, batch, targets)
    set_gradient_checkpointing(model, True)
    less, gradients = kept_bytes(model, batch, targets)
    assert less < 0.7 * plain
    assert gradients.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(gradients[name], expected[name], msg=name)
    set_gradient_checkpointing(model, False)
    assert kept_bytes(model, batch, targets)[0] == plain
