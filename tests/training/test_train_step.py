from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from deformable_detr.config import TrainConfig
from deformable_detr.criterion import SetCriterion
from deformable_detr.model import DeformableDETR, build_model
from deformable_detr.structures import ImageBatch, Target
from deformable_detr.training.memory import set_gradient_checkpointing
from deformable_detr.training.preparation import build_accelerator
from deformable_detr.training.train_step import NonFiniteLossError, train_step


@pytest.fixture
def accelerator() -> Accelerator:
    return build_accelerator(TrainConfig(device="cpu"))


@pytest.fixture
def model() -> DeformableDETR:
    torch.manual_seed(0)
    # frozen batch norm: with trained statistics a batch of four is not two batches of two, whatever the loss does
    model = build_model("tiny", num_classes=3, freeze_batch_norm=True).double()
    # at first the sampling points lie on pixel centres, where the gradient jumps: move them, or the last bit decides
    for name, parameter in model.named_parameters():
        if name.endswith("sampling_offsets.bias"):
            parameter.data += 0.3 * torch.rand_like(parameter)
    return model


def make_batch(counts: list[int], seed: int = 0) -> tuple[ImageBatch, list[Target]]:
    """Images of one size with so many objects each."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(len(counts), 3, 64, 64, generator=generator, dtype=torch.float64)
    targets = [
        Target(0.2 + 0.3 * torch.rand(count, 4, generator=generator), torch.arange(count) % 3, f"image-{index}")
        for index, count in enumerate(counts)
    ]
    return ImageBatch.from_images(list(images), [target.image_id for target in targets]), targets


def split(batch: tuple[ImageBatch, list[Target]]) -> list[tuple[ImageBatch, list[Target]]]:
    """One batch of one image each."""
    images, targets = batch
    return [(ImageBatch.from_images([image]), [target]) for image, target in zip(images.images, targets, strict=True)]


@pytest.mark.parametrize("counts", [[1, 5, 2, 3], [4, 0, 0, 1], [0, 0]])
def test_accumulation_equals_the_larger_batch(model: DeformableDETR, accelerator: Accelerator, counts: list[int]) -> None:
    criterion = SetCriterion(num_classes=3)
    batch = make_batch(counts)
    results = []
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for batches in ([batch], split(batch)):
        model.load_state_dict(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses = train_step(model.train(), criterion, optimizer, batches, accelerator, clip_grad_norm=0.1)
        results.append((losses, {name: parameter.detach().clone() for name, parameter in model.named_parameters()}))
    (whole_losses, whole), (parts_losses, parts) = results
    assert whole_losses == pytest.approx(parts_losses, rel=1e-6)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-7, atol=1e-9, msg=name)


def test_accumulation_counts_every_copy_of_an_object(accelerator: Accelerator) -> None:
    """H-DETR divides by the copies of all objects, also where one of the batches of a step has none."""
    torch.manual_seed(0)
    model = build_model("tiny", num_classes=3, freeze_batch_norm=True, one_to_many_queries=12).double()
    criterion, (images, targets) = SetCriterion(num_classes=3, one_to_many_copies=4), make_batch([0, 1])
    whole = criterion(model.train()(images), targets)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    parts = train_step(model, criterion, optimizer, split((images, targets)), accelerator)
    assert {name: parts[name] for name in whole} == pytest.approx({name: loss.item() for name, loss in whole.items()}, rel=1e-6)


def test_the_losses_are_those_of_the_criterion_and_the_gradient_is_clipped(model: DeformableDETR, accelerator: Accelerator) -> None:
    criterion = SetCriterion(num_classes=3)
    images, targets = make_batch([2, 1])
    expected = criterion(model.train()(images), targets)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    losses = train_step(model, criterion, torch.optim.SGD(model.parameters(), lr=1.0), [(images, targets)], accelerator, 0.25)
    assert losses["loss"] == pytest.approx(criterion.weighted_sum(expected).item(), rel=1e-6)
    assert losses == pytest.approx(
        {name: value.item() for name, value in expected.items()} | {key: losses[key] for key in ("loss", "grad_norm")}, rel=1e-6
    )
    moved = torch.cat([(new.detach() - old).flatten() for new, old in zip(model.parameters(), before, strict=True)])
    assert losses["grad_norm"] > 0.25
    assert moved.norm().item() == pytest.approx(0.25, rel=1e-4)  # learning rate 1: the step is the clipped gradient


def test_recomputed_activations_count_once_in_batch_norms(accelerator: Accelerator) -> None:
    """Gradient checkpointing runs the backbone once more in the backward pass: 0.19 of the new batch would count, not 0.1."""
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = build_model("tiny", num_classes=3, num_encoder_layers=1, num_decoder_layers=1).double()
        set_gradient_checkpointing(model, checkpointing)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        train_step(model.train(), SetCriterion(num_classes=3), optimizer, [make_batch([1, 2])], accelerator)
        found.append({name: value for name, value in model.named_buffers() if "bn1" in name})
    assert found[0]["backbone.body.bn1.num_batches_tracked"] == 1
    for name in found[0]:
        assert torch.equal(found[0][name], found[1][name]), name


def test_clipping_can_be_switched_off(model: DeformableDETR, accelerator: Accelerator) -> None:
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    losses = train_step(model.train(), SetCriterion(num_classes=3), optimizer, [make_batch([2, 1])], accelerator, 0.0)
    moved = torch.cat([(new.detach() - old).flatten() for new, old in zip(model.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(losses["grad_norm"], rel=1e-5)


def test_a_broken_image_stops_and_is_named(model: DeformableDETR, accelerator: Accelerator) -> None:
    images, targets = make_batch([1, 2])
    images.images[1, 0, 5, 5] = float("nan")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(NonFiniteLossError, match=r"image-1.*learning rate"):
        train_step(model.train(), SetCriterion(num_classes=3), optimizer, [(images, targets)], accelerator)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


class NanLoss(SetCriterion):
    """A criterion one of whose terms breaks."""

    def forward(self, predictions, targets, num_boxes=None):
        losses = super().forward(predictions, targets, num_boxes)
        return losses | {"loss_giou_0": losses["loss_giou_0"] * float("inf")}


def test_a_broken_loss_stops_and_names_the_term_and_the_images(model: DeformableDETR, accelerator: Accelerator) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(NonFiniteLossError, match=r"loss_giou_0=inf.*'image-0', 'image-1'"):
        train_step(model.train(), NanLoss(num_classes=3), optimizer, [make_batch([1, 2])], accelerator)


def test_a_broken_gradient_stops_before_the_weights_are_changed(model: DeformableDETR, accelerator: Accelerator) -> None:
    weight = next(parameter for name, parameter in model.named_parameters() if name.startswith("neck"))
    weight.register_hook(lambda gradient: gradient * float("nan"))
    before = weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(NonFiniteLossError, match=r"non-finite gradient, for 1 parameters: neck.*image-0"):
        train_step(model.train(), SetCriterion(num_classes=3), optimizer, [make_batch([1])], accelerator)
    assert torch.equal(before, weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"device": "tpu"}, "'tpu' is unknown; choose auto, cpu"), ({"device": "cpu", "precision": "fp16"}, "fp16 needs a GPU")],
)
def test_devices_that_are_not_there(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_accelerator(replace(TrainConfig(), **settings))


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_a_model_in_pieces_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ValueError, match=f"accelerate is set to {name}.*torchrun"):
        build_accelerator(TrainConfig(device="cpu"))
