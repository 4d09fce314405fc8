from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deformable_detr.config import RunConfig
from deformable_detr.criterion import SetCriterion
from deformable_detr.model import DeformableDETR, build_model
from deformable_detr.structures import ImageBatch, Target
from deformable_detr.training import NonFiniteLossError, learner, train
from deformable_detr.training.learner import MOST_SKIPPED
from deformable_detr.training.non_finite import MOST_SAVED, diagnose, replay, save_step
from deformable_detr.training.run_folder import RunFolder
from deformable_detr.training.train_step import train_step

CPU = torch.device("cpu")


@pytest.fixture
def model() -> DeformableDETR:
    torch.manual_seed(0)
    return build_model("tiny", num_classes=2, freeze_batch_norm=True).train()


def make_batch(seed: int = 0) -> tuple[ImageBatch, list[Target]]:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    targets = [Target(torch.tensor([[0.5, 0.5, 0.3, 0.3]]), torch.tensor([1]), name, (64, 64)) for name in ("a", "b")]
    return ImageBatch.from_images(list(images), ["a", "b"]), targets


def break_output(module: torch.nn.Module) -> None:
    def to_nan(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output * float("nan")

    module.register_forward_hook(to_nan)


def test_a_sound_step_is_called_sound(model: DeformableDETR) -> None:
    found = diagnose(model, SetCriterion(2), [make_batch()], CPU)
    assert (found.where, found.layer) == ("nowhere", None)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_first_broken_layer_is_named(model: DeformableDETR) -> None:
    layer = model.get_submodule("encoder.layers.0.ffn.linear1")
    break_output(layer)
    found = diagnose(model, SetCriterion(2), [make_batch()], CPU)
    assert (found.where, found.layer) == ("forward", "encoder.layers.0.ffn.linear1")
    assert "Linear, " in str(found)
    assert "its input: [-" in str(found)


def test_broken_weights_are_named_before_anything_is_computed(model: DeformableDETR) -> None:
    name, weight = next((name, value) for name, value in model.named_parameters() if name.startswith("neck"))
    weight.data.flatten()[3] = float("inf")
    found = diagnose(model, SetCriterion(2), [make_batch()], CPU)
    assert (found.where, found.layer) == ("weights", name)
    assert f"0 NaN and 1 infinite of {weight.numel()} values" in str(found)


def test_broken_images_are_named(model: DeformableDETR) -> None:
    images, targets = make_batch()
    images.images[1, 0, 3, 3] = float("nan")
    found = diagnose(model, SetCriterion(2), [(images, targets)], CPU)
    assert found.where == "images"
    assert "['b']" in str(found)


def test_a_gradient_that_breaks_on_the_way_back_is_found_where_it_begins(model: DeformableDETR) -> None:
    def break_gradient(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        output.register_hook(lambda gradient: gradient * float("inf"))

    model.get_submodule("encoder.layers.0.self_attn_norm").register_forward_hook(break_gradient)
    found = diagnose(model, SetCriterion(2), [make_batch()], CPU)
    assert found.where == "backward"
    assert found.layer == "the output of encoder.layers.0.self_attn_norm (LayerNorm)"
    assert "It reaches " in str(found)


class BrokenLoss(SetCriterion):
    def forward(self, predictions, targets, num_boxes=None):
        losses = super().forward(predictions, targets, num_boxes)
        return losses | {"loss_giou": losses["loss_giou"] * float("inf")}


def test_a_loss_that_breaks_is_named(model: DeformableDETR) -> None:
    found = diagnose(model, BrokenLoss(2), [make_batch()], CPU)
    assert found.where == "loss"
    assert "'loss_giou': inf" in str(found)


def test_a_kept_step_breaks_again_at_the_same_place(model: DeformableDETR, tmp_path: Path) -> None:
    weight = model.get_parameter("encoder.layers.0.ffn.linear1.weight")
    weight.data *= 1e30
    model.get_parameter("encoder.layers.0.ffn.linear2.weight").data *= 1e30
    before = diagnose(model, SetCriterion(2), [make_batch()], CPU)
    loss = RunConfig(dataset="").loss
    path = save_step(tmp_path / "non_finite", 7, "it broke", [make_batch()], model, loss)
    assert path is not None
    step, again = replay(path)
    assert (step.message, step.metadata) == ("it broke", model.metadata)
    for (images, targets), (kept_images, kept_targets) in zip([make_batch()], step.batches, strict=True):
        assert torch.equal(images.images, kept_images.images)
        assert [target.labels.tolist() for target in targets] == [target.labels.tolist() for target in kept_targets]
    assert again == before
    assert again.where == "forward"
    assert again.layer == "encoder.layers.0.ffn.linear2"


def test_only_a_few_steps_are_kept(model: DeformableDETR, tmp_path: Path) -> None:
    loss = RunConfig(dataset="").loss
    paths = [save_step(tmp_path, step, "", [make_batch()], model, loss) for step in range(MOST_SAVED + 1)]
    assert paths[-1] is None
    assert len(list(tmp_path.iterdir())) == MOST_SAVED


def test_files_that_are_no_steps(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="folder non_finite of a run"):
        replay(tmp_path / "missing.pt")
    (tmp_path / "other.pt").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"other\.pt cannot be read as a saved training step"):
        replay(tmp_path / "other.pt")


def broken_at(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Losses that are NaN at these steps of a run, counted from 0."""
    calls = iter(range(10**6))

    class Breaking(SetCriterion):
        def forward(self, predictions, targets, num_boxes=None):
            losses = super().forward(predictions, targets, num_boxes)
            return losses | {"loss_bbox": losses["loss_bbox"] * float("nan")} if next(calls) in steps else losses

    monkeypatch.setattr("deformable_detr.training.learner.SetCriterion", Breaking)


def test_a_run_stops_and_keeps_the_step(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_at(monkeypatch, {1})
    with pytest.raises(NonFiniteLossError, match=r"step 2: .*loss_bbox=nan.*\[10\d, 10\d\].*replay .*step-00000001\.pt"):
        train(replace(config, output_dir=str(tmp_path / "run")))
    step, found = replay(tmp_path / "run" / "non_finite" / "step-00000001.pt")
    assert found.where == "nowhere"  # the losses as they should be are sound
    assert len(step.batches[0][1]) == 2


def test_a_run_leaves_the_step_out_and_goes_on(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # the criterion is also called once for the diagnosis of each broken step: calls 1 and 3 are steps 2 and 3
    broken_at(monkeypatch, {1, 3})
    config = replace(config, train=replace(config.train, on_non_finite="skip", log_every=1))
    result = train(replace(config, output_dir=str(tmp_path / "run")))
    logged = [record["step"] for record in RunFolder(result.output_dir).read_log() if record["kind"] == "train"]
    assert logged == [1, 4, 5, 6, 7, 8]
    left_out = [record.getMessage() for record in caplog.records if record.getMessage().startswith("left out")]
    assert [text.split(":")[1].strip() for text in left_out] == ["step 2", "step 3"]


def test_a_broken_image_leaves_nothing_in_the_statistics(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The forward pass has brought NaN into the batch norms: they are neither the cause nor kept."""
    steps = iter(range(10**6))

    def with_broken_image(model, criterion, optimizer, batches, *others):
        if next(steps) == 2:
            batches[0][0].images[0, 0, 3, 3] = float("nan")
        return train_step(model, criterion, optimizer, batches, *others)

    monkeypatch.setattr(learner, "train_step", with_broken_image)
    assert not config.model.freeze_batch_norm
    result = train(replace(config, output_dir=str(tmp_path / "run"), train=replace(config.train, on_non_finite="skip")))
    (left_out,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("left out")]
    assert left_out.startswith("left out: step 3") and "are non-finite after normalisation" in left_out
    weights = load_file(result.last_weights)
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert {int(value) for name, value in weights.items() if name.endswith("num_batches_tracked")} == {7}


def test_a_diagnosis_changes_no_statistics() -> None:
    model = build_model("tiny", num_classes=2).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    assert diagnose(model, SetCriterion(2), [make_batch()], CPU, "bf16").where == "nowhere"
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_a_run_that_breaks_all_the_time_ends(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_at(monkeypatch, set(range(1000)))
    settings = replace(config.train, on_non_finite="skip", epochs=20, evaluate_every=0)
    with pytest.raises(NonFiniteLossError, match=f"{MOST_SKIPPED} steps in a row"):
        train(replace(config, output_dir=str(tmp_path / "run"), train=settings))


def test_the_criterion_of_a_replay_is_that_of_the_run(model: DeformableDETR, tmp_path: Path) -> None:
    loss = replace(RunConfig(dataset="").loss, giou_weight=3e38)
    path = save_step(tmp_path, 0, "", [make_batch()], model, loss)
    assert path is not None
    found = replay(path)[1]
    assert found == diagnose(model, SetCriterion.from_config(model.metadata.model, loss), [make_batch()], CPU)
    assert found.where == "backward"
