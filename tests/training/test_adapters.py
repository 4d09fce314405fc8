"""Training with adapters of peft: what learns, what is written, and that every way to the merged network gives the same answers."""

import copy
import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deformable_detr.acceleration.model import InferenceModel
from deformable_detr.checkpoints import load_checkpoint, load_pretrained, save_weights
from deformable_detr.config import RunConfig
from deformable_detr.criterion import SetCriterion
from deformable_detr.export.network import plain_network
from deformable_detr.model import DeformableDETR, build_model
from deformable_detr.model.adapters import HEADS, add_adapters, merged
from deformable_detr.structures import ImageBatch, Predictions, Target
from deformable_detr.training.callbacks import Callback, Run, Step
from deformable_detr.training.interruption import TrainingInterrupted
from deformable_detr.training.trainer import train

IMAGE = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
BATCH = ImageBatch(IMAGE, torch.zeros(1, 48, 64, dtype=torch.bool))


def assert_same(found: Predictions, expected: Predictions) -> None:
    torch.testing.assert_close(found.logits[-1], expected.logits[-1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.boxes[-1], expected.boxes[-1], atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def adapted() -> DeformableDETR:
    """A network whose adapters change something: at first their product is zero."""
    torch.manual_seed(0)
    model = build_model("tiny", pretrained_backbone=False)
    add_adapters(model, 3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def test_adapters_and_heads_alone_learn() -> None:
    torch.manual_seed(0)
    plain = build_model("tiny", pretrained_backbone=False).eval()
    model = copy.deepcopy(plain)
    add_adapters(model, 2)
    assert_same(model(BATCH), plain(BATCH))

    targets = [Target(torch.tensor([[0.5, 0.5, 0.3, 0.4]]), torch.tensor([1]))]
    criterion = SetCriterion.from_config(model.metadata.model)
    criterion.weighted_sum(criterion(model(BATCH, targets), targets)).backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learning == {name for name, _ in model.named_parameters() if ".lora_" in name or name.startswith(HEADS)}
    config = model.metadata.model
    # four maps of each attention and two of each feed-forward network, each with two matrices
    maps = 6 * (config.num_encoder_layers + config.num_decoder_layers)
    assert len([name for name in learning if ".lora_" in name]) == 2 * maps


def test_every_form_has_the_adapters_in_it(adapted: DeformableDETR, tmp_path: Path) -> None:
    expected = adapted(BATCH)
    with pytest.raises(AssertionError), torch.no_grad():
        assert_same(load_pretrained(save_without(adapted, tmp_path / "without.safetensors")).eval()(BATCH), expected)
    before = copy.deepcopy(adapted.state_dict())
    joined = merged(adapted)
    assert not [name for name, _ in joined.named_modules() if "lora" in name]
    forms = [joined, InferenceModel(adapted), InferenceModel(joined), plain_network(adapted).model]
    forms.append(load_pretrained(save_weights(tmp_path / "merged.safetensors", adapted)).eval())
    for form in forms:
        assert_same(form(BATCH), expected)
    for name, tensor in adapted.state_dict().items():
        assert torch.equal(tensor, before[name])


def save_without(model: DeformableDETR, path: Path) -> Path:
    """The same weights as if there were no adapters."""
    bare = {name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items() if ".lora_" not in name}
    return save_weights(path, model, state_dict=bare)


def test_a_run(config: RunConfig, tmp_path: Path) -> None:
    """Stopped and continued like one that was not, with an average; what it leaves is read with and without its base."""
    torch.manual_seed(0)
    base = save_weights(tmp_path / "base.safetensors", build_model(config.model.replace(num_classes=5, pretrained_backbone=False)))
    settings = replace(config.train, steps=2, ema_decay=0.5, logger=())
    config = replace(config, weights=str(base), optimizer=replace(config.optimizer, lora=2), train=settings)
    config = replace(config, data=replace(config.data, val_split="none"))
    whole = train(replace(config, output_dir=str(tmp_path / "whole")), show_progress=False)

    class Stop(Callback):
        def on_step(self, run: Run, step: Step) -> None:
            if step.step == 1:
                signal.raise_signal(signal.SIGINT)

    stopped = replace(config, output_dir=str(tmp_path / "stopped"))
    with pytest.raises(TrainingInterrupted):
        train(stopped, callbacks=[Stop()], show_progress=False)
    other = stopped.model.replace(num_queries=7)  # the network is that of the weights, in a resumed run, too
    again = train(replace(stopped, model=other, resume=True), show_progress=False)
    once, twice = (load_file(run.last_weights) for run in (whole, again))
    assert all(torch.equal(twice[name], tensor) for name, tensor in once.items())

    loaded, start = load_pretrained(whole.last_weights), load_pretrained(base)
    assert loaded.metadata.categories is not None and loaded.metadata.categories.names == ("blue", "red")
    assert torch.equal(loaded.neck.state_dict()["projections.0.0.weight"], start.neck.state_dict()["projections.0.0.weight"])
    name = "layers.0.ffn.linear1.weight"
    assert torch.linalg.matrix_rank(loaded.encoder.get_parameter(name) - start.encoder.get_parameter(name), rtol=1e-3) == 2
    with pytest.raises(ValueError, match="holds no weights without averaging"):
        load_checkpoint(whole.last_weights.with_name("last-adapter"), ema=False)
    alone = load_checkpoint(whole.last_weights.with_name("last-adapter"))
    folder = whole.last_weights.with_name("last-adapter")
    content = json.loads((folder / "adapter_config.json").read_text())
    for change, message in (
        ({"target_modules": r"encoder\.layers\.0\.ffn\.linear1"}, "do not fit together: base_model.model"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path is 5"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps(content | change))
        with pytest.raises(ValueError, match=message):
            load_pretrained(folder)
    (folder / "adapter_config.json").write_text(json.dumps(content))
    assert alone.model.metadata.categories == loaded.metadata.categories
    assert_same(alone.model.eval()(BATCH), loaded.eval()(BATCH))

    base.rename(tmp_path / "moved.safetensors")
    torch.manual_seed(1)
    save_weights(base, build_model(config.model.replace(num_classes=5, pretrained_backbone=False)))
    with pytest.raises(ValueError, match=r"last-adapter was trained beside other weights than those .*base\.safetensors now"):
        load_pretrained(folder)
    base.unlink()
    with pytest.raises(FileNotFoundError, match=r"last-adapter is an adapter of '.*base\.safetensors'"):
        load_pretrained(whole.last_weights.with_name("last-adapter"))
    with pytest.raises(ValueError, match=r"optimizer\.lora trains beside fixed weights"):
        train(replace(config, weights=None, output_dir=str(tmp_path / "other")), show_progress=False)
