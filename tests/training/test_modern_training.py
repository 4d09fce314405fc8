"""Training with queries that exist in training alone: exact resume, two processes, and broken numbers that name their part."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from deformable_detr.config import LossConfig, ModelConfig, RunConfig
from deformable_detr.criterion import SetCriterion
from deformable_detr.model import DeformableDETR, build_model
from deformable_detr.model.denoising import DenoisingNoise, draw_noise
from deformable_detr.presets import model_preset
from deformable_detr.structures import ImageBatch, Target
from deformable_detr.training.callbacks import Callback, Run, Step
from deformable_detr.training.interruption import TrainingInterrupted
from deformable_detr.training.non_finite import diagnose
from deformable_detr.training.trainer import train

from ..processes import run_two

DINO = replace(
    model_preset("r50-dino"),
    **{name: getattr(model_preset("tiny"), name) for name in ("backbone", "backbone_options", "pretrained_backbone")},
    frozen_backbone_stages=0,
    hidden_dim=32,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=2,
    ffn_dim=32,
    num_queries=10,
    denoising_queries=50,
    num_classes=2,
)
HYBRID = replace(
    DINO,
    query_position="proposal",
    proposal_classes=False,
    proposal_loss="all",
    shared_heads=False,
    decoder_norm=False,
    denoising_queries=0,
    one_to_many_queries=12,
)


@pytest.mark.parametrize("model", [DINO, HYBRID], ids=["dino", "hybrid"])
def test_a_resumed_run_ends_with_the_same_bits(config: RunConfig, tmp_path: Path, model: ModelConfig) -> None:
    config = replace(config, model=model, loss=LossConfig(one_to_many_copies=2))
    whole = train(replace(config, output_dir=str(tmp_path / "whole")))

    class Stop(Callback):
        def on_step(self, run: Run, step: Step) -> None:
            assert any(name.endswith(("_dn", "_one_to_many")) for name in step.losses)
            if step.step == 3:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(TrainingInterrupted, match="stopped after step 3"):
        train(replace(config, output_dir=str(tmp_path / "parts")), callbacks=[Stop()])
    train(replace(config, output_dir=str(tmp_path / "parts"), resume=True))
    weights = load_file(tmp_path / "parts" / "weights" / "last.safetensors")
    for name, value in load_file(whole.last_weights).items():
        assert torch.equal(value, weights[name]), name


def four_images() -> tuple[list[torch.Tensor], list[Target]]:
    """Two objects in each, so that the groups of a half are as large as those of the whole."""
    generator = torch.Generator().manual_seed(2)
    images = [torch.randn(3, 64, 64, generator=generator) for _ in range(4)]
    targets = [
        Target(torch.rand(2, 4, generator=generator) * 0.4 + 0.2, torch.randint(2, (2,), generator=generator)) for _ in images
    ]
    return images, targets


def losses_of(model: ModelConfig, rows: slice) -> dict[str, float]:
    """Of some of the images; the noise is that of the whole batch."""
    torch.manual_seed(0)
    network = build_model(model).train()
    network.backbone.eval()  # batch norms would see half of the batch
    images, targets = four_images()
    noise = None
    if model.denoising_queries:
        torch.manual_seed(1)
        copies, objects = 2 * 3, [index for image in range(4)[rows] for index in (2 * image, 2 * image + 1)]
        whole = draw_noise(copies * 8, 2, 0.0, 1.0)
        taken = [copy * 8 + index for copy in range(copies) for index in objects]
        noise = DenoisingNoise(whole.label_p[taken], whole.label_new, whole.box_sign[taken], whole.box_part[taken])
    predictions = network(ImageBatch.from_images(images[rows]), targets[rows], noise)
    losses = SetCriterion.from_config(model, LossConfig(one_to_many_copies=2))(predictions, targets[rows])
    return {name: loss.item() for name, loss in losses.items()}


def write_halves(rank: int, models: dict[str, ModelConfig], folder: Path) -> None:
    distributed.init_process_group("gloo")
    losses = {name: losses_of(model, slice(2 * rank, 2 * rank + 2)) for name, model in models.items()}
    (folder / f"{rank}.json").write_text(json.dumps(losses))
    distributed.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path) -> None:
    models = {"loss_class_dn": DINO, "loss_class_one_to_many": HYBRID}
    run_two(write_halves, models, tmp_path)
    halves = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for own, model in models.items():
        first, second = (half[own] for half in halves)
        mean = {name: (first[name] + second[name]) / 2 for name in first}
        assert mean == pytest.approx(losses_of(model, slice(None)), rel=1e-4)
        assert any(name.startswith(own) for name in mean)


def broken_model(part: str) -> DeformableDETR:
    """A model whose weight is finite, but so large that the output of one part overflows."""
    torch.manual_seed(0)
    model = build_model(replace(DINO, relation_bias=True)).train()
    with torch.no_grad():
        model.get_parameter(part).fill_(3e38)
    return model


@pytest.mark.parametrize(
    ("weight", "named"),
    [
        ("decoder.position_mlp.layers.0.weight", "decoder.position_mlp"),
        ("decoder.norm.weight", "decoder.norm"),
        ("decoder.relation.proj.weight", "decoder.relation"),
    ],
)
def test_broken_numbers_name_the_new_part(weight: str, named: str) -> None:
    images, targets = four_images()
    found = diagnose(broken_model(weight), SetCriterion(2), [(ImageBatch.from_images(images), targets)], torch.device("cpu"))
    assert found.where == "forward" and (found.layer or "").startswith(named)


def test_broken_denoising_names_its_part() -> None:
    torch.manual_seed(0)
    model = build_model(DINO).train()

    def to_nan(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        return replace(output, query=output.query * float("nan"))

    model.denoising.register_forward_hook(to_nan, prepend=True)
    images, targets = four_images()
    found = diagnose(model, SetCriterion(2), [(ImageBatch.from_images(images), targets)], torch.device("cpu"))
    assert (found.where, found.layer) == ("forward", "denoising")
