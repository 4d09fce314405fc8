"""The journey of an image: the numbers against hand-computed ones, and no traces left in the model."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import get_ident

import pytest
import torch
from PIL import Image

from deformable_detr.checkpoints import save_weights
from deformable_detr.cli.__main__ import main
from deformable_detr.model import build_model
from deformable_detr.postprocessing import postprocess
from deformable_detr.visualize.inside.description import describe
from deformable_detr.visualize.inside.look import batch_of


@pytest.fixture(scope="module")
def built():
    torch.manual_seed(0)
    return build_model("r50", num_classes=5, num_queries=20, pretrained_backbone=False, num_encoder_layers=1, num_decoder_layers=2)


@pytest.fixture
def model(built):
    """The same network for all tests, each time with its own settings."""
    metadata = built.metadata
    yield built
    built.metadata = metadata


def photo(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 255, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def small(model, short_side: int):
    model.metadata = replace(model.metadata, eval_short_side=short_side)
    return model


def test_shapes_of_every_stage(model):
    description = describe(small(model, 64), photo(96, 128))  # resized to 64 x 85
    rows = {(row.part, row.name): row.shape for row in description.rows}
    levels = [(8, 11), (4, 6), (2, 3), (1, 2)]
    total = sum(h * w for h, w in levels)
    assert rows["image", "resized, normalised"] == (1, 3, 64, 85)
    assert [rows["neck", f"level {index}"] for index in range(4)] == [(1, 256, h, w) for h, w in levels]
    assert rows["backbone", "C5"] == (1, 2048, 2, 3)
    assert rows["flatten", "features"] == rows["encoder", "memory"] == (1, total, 256)
    assert rows["encoder, layer 1", "sampling locations"] == (1, total, 8, 4, 4, 2)
    assert rows["decoder, layer 1", "attention weights"] == (1, 20, 8, 4, 4)
    assert rows["decoder", "boxes"] == (2, 1, 20, 4)
    starts = next(row.note for row in description.rows if row.name == "level start index")
    assert starts == "0, 88, 112, 118"


def test_parameters_and_multiply_adds(model):
    description = describe(small(model, 64), photo(64, 64))
    costs = {cost.part: cost for cost in description.costs}
    assert sum(cost.trainable_parameters for cost in description.costs) == sum(
        parameter.numel() for parameter in model.parameters() if parameter.requires_grad
    )
    assert costs["backbone"].frozen_parameters == 222_400
    neck = 256 * (512 * 64 + 1024 * 16 + 2048 * 4 + 9 * 2048 * 1)  # maps of 8 x 8, 4 x 4, 2 x 2 and, by the 3 x 3, 1 x 1
    assert costs["neck"].gmacs == pytest.approx(neck / 1e9)
    assert costs["class_heads"].gmacs == pytest.approx(2 * 20 * 256 * 5 / 1e9)
    s, c = 85, 256
    linear = 2 * s * c * c + s * c * (256 + 128) + 2 * s * c * 1024  # value, output; offsets, weights; feed-forward
    assert costs["encoder"].gmacs == pytest.approx((linear + 5 * s * 4 * 4 * c) / 1e9)


def test_detections_are_those_of_the_network(model):
    image = photo(64, 64)
    found = describe(small(model, 64), image, num_detections=3).detections
    batch = [
        (image.float() / 255 - torch.tensor(model.metadata.mean)[:, None, None]) / torch.tensor(model.metadata.std)[:, None, None]
    ]
    with torch.no_grad():
        expected = postprocess(model.eval()(batch), [(64, 64)], top_k=3)[0]
    assert [item.score for item in found] == pytest.approx(expected["scores"].tolist(), abs=1e-5)
    torch.testing.assert_close(torch.tensor([item.boxes[-1] for item in found]), expected["boxes"], rtol=0, atol=1e-3)


def test_the_model_is_left_as_it_was(model):
    model = small(model.train(), 64)
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    describe(model, photo(64, 64))
    assert model.training
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == learning
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_other_threads_are_left_alone(model):
    """Meanwhile one predicts, one describes, and one would find all parameters learning."""
    model, image = small(model, 64), photo(64, 64)
    expected = describe(model, image)
    learning = [parameter.requires_grad for parameter in model.parameters()]

    def predict() -> torch.Tensor:
        with torch.no_grad():
            return model([batch_of(model, image).images[0]]).boxes

    def look(module: torch.nn.Module, args: tuple, output: object) -> None:
        if get_ident() == here:
            seen.extend(pool.submit(work).result() for work in (predict, lambda: describe(model, image)))
            seen.append([parameter.requires_grad for parameter in model.parameters()])

    boxes, seen, here = predict(), [], get_ident()
    handle = model.encoder.register_forward_hook(look)
    with ThreadPoolExecutor(1) as pool:
        found = describe(model, image)
    handle.remove()
    assert torch.equal(seen[0], boxes)
    assert seen[1].costs == found.costs == expected.costs
    assert seen[2] == learning


def test_command(tmp_path, capsys):
    Image.fromarray(photo(48, 64).permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    model = small(build_model("tiny", num_classes=2), 64)
    weights = save_weights(tmp_path / "weights.safetensors", model)
    assert main(["describe", str(tmp_path / "a.png"), "--weights", str(weights), "--json", str(tmp_path / "a.json")]) == 0
    shown = capsys.readouterr().out
    assert "The journey of the image" in shown
    assert "proposal logits" in shown
    record = json.loads((tmp_path / "a.json").read_text())
    assert set(record) == {"steps", "rows", "costs", "detections"}
    assert len(record["detections"]) == 5


def test_missing_image(capsys):
    assert main(["describe", "nowhere.png", "--preset", "tiny"]) == 2
    assert "nowhere.png" in capsys.readouterr().err
