"""The whole network: shapes, padding, precision, gradients, odd batches."""

import copy
import dataclasses
from typing import cast

import pytest
import torch

from deformable_detr.model import build_model
from deformable_detr.model.decoder import DeformableDecoder
from deformable_detr.model.heads import BoxHead
from deformable_detr.structures import ImageBatch

PRESETS = {
    "tiny": {},
    "refine": {"two_stage": False},
    "plain": {"two_stage": False, "box_refinement": False},
    "single-scale": {"two_stage": False, "box_refinement": False, "num_feature_levels": 1, "dilation": False},
    "five-levels": {"num_feature_levels": 5, "num_encoder_points": 2, "num_decoder_points": 3},
}


def build(name: str, **overrides):
    torch.manual_seed(0)
    model = build_model("tiny", num_classes=3, **(PRESETS[name] | overrides))
    for module in model.modules():  # away from the special initial values
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)  # timm starts each block's last norm at 0
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, 0, module.in_features**-0.5)
    return model.eval()


def sample_images(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


@pytest.mark.parametrize("name", PRESETS)
def test_shapes_and_ranges(name):
    model = build(name)
    with torch.no_grad():
        predictions = model(sample_images((70, 90), (64, 128)))
    assert predictions.logits.shape == (2, 2, 10, 3)
    assert predictions.boxes.shape == (2, 2, 10, 4)
    assert predictions.boxes.dtype == torch.float32
    assert torch.isfinite(predictions.logits).all()
    assert ((predictions.boxes >= 0) & (predictions.boxes <= 1)).all()
    if PRESETS[name].get("two_stage", True):
        assert predictions.encoder_logits.shape[::2] == (2, 3)
        assert torch.isfinite(predictions.encoder_boxes).all()
    else:
        assert predictions.encoder_logits is None


@pytest.mark.parametrize("name", PRESETS)
def test_alone_and_padded_give_the_same_boxes(name):
    """An image's answer must not depend on what else is in the batch (users.md: no other implementation tests this)."""
    model = build(name)
    small, wide, tall = sample_images((61, 83), (64, 150), (131, 70))
    with torch.no_grad():
        together = model([small, wide, tall])
        for index, image in enumerate((small, wide, tall)):
            alone = model([image])
            torch.testing.assert_close(together.logits[:, index], alone.logits[:, 0], rtol=0, atol=2e-5)
            torch.testing.assert_close(together.boxes[:, index], alone.boxes[:, 0], rtol=0, atol=2e-5)


def test_more_canvas_changes_nothing():
    model = build("tiny")
    images = sample_images((60, 80))
    with torch.no_grad():
        tight = model(images)
        wide = model(ImageBatch.from_images(images, multiple_of=128))
    torch.testing.assert_close(wide.boxes, tight.boxes, rtol=0, atol=2e-5)
    torch.testing.assert_close(wide.logits, tight.logits, rtol=0, atol=2e-5)


def test_padded_canvas_is_the_official_way_in_training():
    """In training, and with original_padding, the canvas runs as one: the same numbers from both."""
    model = build("plain", freeze_batch_norm=True)
    original = build("plain", freeze_batch_norm=True, original_padding=True)
    images = sample_images((61, 83), (64, 150))
    with torch.no_grad():
        torch.testing.assert_close(original(images).logits, model.train()(images).logits)
        assert not torch.allclose(original(images).logits, model.eval()(images).logits, atol=1e-3)


def test_padding_is_never_a_proposal():
    model = build("tiny")
    with torch.no_grad():
        predictions = model(sample_images((40, 40), (200, 200)))
    assert predictions.boxes.shape[2] == 10
    assert torch.isfinite(predictions.boxes).all()


def test_image_with_fewer_positions_than_queries():
    with torch.no_grad():
        predictions = build("tiny", num_queries=50)(sample_images((16, 16)))
    assert predictions.boxes.shape == (2, 1, 4 + 1 + 1 + 1, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["tiny", "plain"])
def test_autocast(name, dtype):
    model = build(name)
    images = sample_images((64, 96), (64, 64))
    with torch.no_grad():
        expected = model(images)
        with torch.autocast("cpu", dtype=dtype):
            predictions = model(images)
    assert predictions.boxes.dtype == torch.float32
    assert torch.isfinite(predictions.logits).all()
    if name == "plain":  # with proposals, rounding may choose other queries
        torch.testing.assert_close(predictions.boxes, expected.boxes, rtol=0, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_training_is_finite(dtype):
    model = build("tiny").train()
    with torch.autocast("cpu", dtype=dtype):
        predictions = model(sample_images((64, 96), (40, 64)))
        total = predictions.logits.float().sum() + predictions.boxes.sum() + predictions.encoder_logits.float().sum()
    (total + predictions.encoder_boxes.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_model_in_half_precision(dtype):
    model = build("tiny").to(dtype)
    with torch.no_grad():
        predictions = model([image.to(dtype) for image in sample_images((64, 96))])
    assert predictions.boxes.dtype == torch.float32
    assert torch.isfinite(predictions.logits).all()


@pytest.mark.parametrize("name", PRESETS)
def test_every_parameter_learns(name):
    model = build(name).train()
    predictions = model(sample_images((64, 96), (48, 64)))
    loss = predictions.logits.square().sum() + predictions.boxes.square().sum()
    if predictions.encoder_logits is not None:
        loss = loss + predictions.encoder_logits.square().sum() + predictions.encoder_boxes.square().sum()
    loss.backward()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert without == []


def test_reference_is_detached_between_refining_layers():
    """The loss of the second layer must not reach the first layer's box head (Deformable DETR, app. A.4)."""
    model = build("refine").train()
    model(sample_images((64, 96))).boxes[1].sum().backward()
    heads = cast(DeformableDecoder, model.decoder).box_heads
    first, second = (cast(torch.nn.Linear, cast(BoxHead, head).layers[-1]).weight.grad for head in heads)
    assert first is not None and second is not None
    assert not first.any()
    assert second.any()


def test_batch_of_tensors_with_one_mask():
    model = build("plain")
    images = torch.stack(sample_images((64, 96), (64, 96)))
    with torch.no_grad():
        from_batch = model(ImageBatch(images, torch.zeros(2, 64, 96, dtype=torch.bool)))
        from_list = model(list(images))
    assert torch.equal(from_batch.boxes, from_list.boxes)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "at least one image"),
        ([torch.zeros(1, 8, 8)], r"image 0 has shape \[1, 8, 8\]"),
        ([torch.zeros(3, 8, 8), torch.zeros(3, 0, 8)], r"image 1 has shape \[3, 0, 8\]"),
        ([torch.zeros(3, 8, 8, dtype=torch.uint8)], "image 0 has dtype torch.uint8; expected a normalised float"),
    ],
)
def test_bad_images(images, message):
    with pytest.raises(ValueError, match=message):
        build("plain")(images)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_frameworks_may_cast_inputs_and_predictions(dtype):
    """Lightning: other default, weights and inputs (`bf16-true`, `64-true`); the fields of a copy of the results are set anew."""
    model, image = build("tiny").eval(), torch.randn(3, 64, 80)
    with torch.no_grad():
        exact = model([image])
        batch = copy.deepcopy(ImageBatch.from_images([image]))
        batch.images = batch.images.to(dtype)
        torch.set_default_dtype(dtype)
        try:
            found = copy.deepcopy(model.to(dtype)(batch))
        finally:
            torch.set_default_dtype(torch.float32)
    for field in dataclasses.fields(found):
        if isinstance(value := getattr(found, field.name), torch.Tensor):
            setattr(found, field.name, value.to(torch.float32))
    torch.testing.assert_close(found.logits, exact.logits, rtol=0, atol=0.2 if dtype == torch.bfloat16 else 1e-4)
