"""DINO's and H-DETR's parts against `plain_models.py`, and what must and must not depend on what."""

import dataclasses
import math
from typing import Any, cast

import pytest
import torch
from tests.model.plain_models import plain_forward

from deformable_detr.config import ModelConfig
from deformable_detr.criterion import SetCriterion
from deformable_detr.model import build_model
from deformable_detr.model.decoder import Reference, look_forward_twice, refine_boxes
from deformable_detr.model.denoising import draw_noise
from deformable_detr.model.position_encoding import SinePositionEncoding
from deformable_detr.model.relation import PositionRelation, box_relations
from deformable_detr.structures import ImageBatch, Target
from deformable_detr.training.memory import set_gradient_checkpointing

SMALL = {
    "num_classes": 5,
    "pretrained_backbone": False,
    "backbone": "resnet18",
    "backbone_options": {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256]},
    "hidden_dim": 32,
    "num_heads": 4,
    "num_encoder_layers": 1,
    "num_decoder_layers": 3,
    "ffn_dim": 64,
}
DINO = {**SMALL, "num_queries": 12, "denoising_queries": 50}
HYBRID = {**SMALL, "num_queries": 8, "one_to_many_queries": 14}
WITHOUT = {**DINO, "look_forward_twice": False}
LATE = {**DINO, "denoising_first_layer": 2}
MODELS = [("r50-dino", DINO), ("r50-dino-5scale", DINO), ("r50-hdetr", HYBRID), ("r50-plus", {**SMALL, "num_queries": 9})]


def shaken(model, seed=3):
    """Fresh weights are full of zeros and ties; so that every path counts, all of them are moved."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("backbone"):
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def batch(counts=(3, 1), seed=4):
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randn(3, height, width, generator=generator) for height, width in ((96, 128), (128, 100))][: len(counts)]
    targets = [
        Target(torch.rand(n, 4, generator=generator) * 0.4 + 0.2, torch.randint(5, (n,), generator=generator)) for n in counts
    ]
    return ImageBatch.from_images(images), targets


def built(preset: str, settings: dict[str, Any], **more: Any) -> Any:
    """The model in training mode; its parts are of the kinds that the preset names, which no type checker can know."""
    torch.manual_seed(0)
    return shaken(build_model(preset, **{**settings, **more})).train()


def noise_for(model, targets, groups, seed=5):
    torch.manual_seed(seed)
    config = model.metadata.model
    return draw_noise(2 * groups * sum(map(len, targets)), config.num_classes, config.label_noise, config.box_noise)


@pytest.mark.parametrize(("preset", "settings"), [*MODELS, ("r50-dino", WITHOUT), ("r50-dino", LATE)])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_gradients_equal_a_plain_implementation(preset, settings, training):
    model = built(preset, settings).train(training)
    images, targets = batch()
    groups = 2 if settings.get("denoising_queries") and training else 0
    noise = noise_for(model, targets, groups) if groups else None
    predictions = model(images, targets, noise)
    expected = plain_forward(model, images, targets, noise, groups)
    given = {name: value for name, value in vars(predictions).items() if value is not None}
    assert given.keys() == expected.keys()
    for name, value in given.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")
    criterion = SetCriterion.from_config(model.metadata.model)
    gradients = []
    for result in (predictions, dataclasses.replace(predictions, **expected)):
        model.zero_grad()
        criterion.weighted_sum(criterion(result, targets)).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    if training:
        missing = {name for name, p in model.named_parameters() if p.requires_grad} - gradients[0].keys()
        assert not missing
    for name, gradient in gradients[0].items():
        other = gradients[1].get(name, torch.zeros_like(gradient))
        assert (gradient - other).norm() <= 1e-3 * other.norm() + 1e-5, name


@pytest.mark.parametrize(("preset", "settings"), MODELS[:3])
def test_answers_are_bit_equal_with_and_without_the_queries_of_training(preset, settings):
    images, targets = batch()
    model = built(preset, settings)
    plain = build_model(preset, **{**settings, "denoising_queries": 0, "one_to_many_queries": 0}).train()
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("denoising.")}
    if "query_source.content_embed.weight" in weights:
        weights["query_source.content_embed.weight"] = weights["query_source.content_embed.weight"][: settings["num_queries"]]
    plain.load_state_dict(weights)
    with_them, without = model(images, targets), plain(images)
    for name in ("logits", "boxes", "encoder_logits", "encoder_boxes"):
        assert torch.equal(getattr(with_them, name), getattr(without, name)), name
    assert without.denoising_logits is None and without.one_to_many_logits is None
    model.eval()
    assert model(images).denoising_logits is None and model(images).one_to_many_logits is None


@pytest.mark.parametrize(("preset", "settings"), MODELS[:3])
def test_the_memory_is_projected_once_for_all_queries_of_training_and_anew_with_checkpointing(preset, settings):
    images, targets = batch()
    model = built(preset, settings)
    noise = noise_for(model, targets, 2) if settings.get("denoising_queries") else None
    called = []
    for layer in model.decoder.layers:
        layer.cross_attn.value_proj.register_forward_hook(lambda module, *_: called.append(module))
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        set_gradient_checkpointing(model, checkpointing)
        predictions = model(images, targets, noise)
        if not checkpointing:
            assert called == [layer.cross_attn.value_proj for layer in model.decoder.layers]
        torch.stack([value.sum() for value in vars(predictions).values() if value is not None]).sum().backward()
        gradients.append([layer.cross_attn.value_proj.weight.grad.clone() for layer in model.decoder.layers])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def reached(box_heads):
    """Which box heads have a gradient."""
    gradients = [head.layers[-1].weight.grad for head in box_heads]
    return [gradient is not None and gradient.abs().sum().item() > 0 for gradient in gradients]


@pytest.mark.parametrize(("preset", "settings"), MODELS[:1] + MODELS[2:3])
def test_look_forward_twice_reaches_one_layer_back_and_no_further(preset, settings):
    """The box loss of layer l reaches the box heads of layers l and l - 1 (one shared head: through both), nothing before."""
    model = built(preset, settings, shared_heads=False)
    predictions = model(*batch())
    for layer in range(3):
        model.zero_grad()
        predictions.boxes[layer].sum().backward(retain_graph=True)
        assert reached(model.decoder.box_heads) == [index in (layer, layer - 1) for index in range(3)]
        assert not any(reached([model.query_source.box_head]))  # the first reference has no gradient


def test_without_it_no_gradient_leaves_the_layer():
    model = built("r50-plus", SMALL, num_queries=9, look_forward_twice=False)
    model(*batch()).boxes[2].sum().backward()
    assert reached(model.decoder.box_heads) == [False, False, True]


@pytest.mark.parametrize(("update", "reached"), [(look_forward_twice, True), (refine_boxes, False)])
def test_boxes_near_the_border_as_mmdetection_gives_them(update: Any, reached: bool):
    """References are kept 1e-3 from the border, the boxes given out only 1e-5; both correct what they should."""
    before = torch.tensor([[[0.9995, 0.5, 2e-4, 0.25]]], requires_grad=True)
    reference = Reference(before.detach(), before)
    boxes, following = update(lambda x: x, torch.zeros(1, 1, 4), torch.ones(1, 1, 4), reference, eps=1e-3, output_eps=1e-5)
    odds = before.detach() / (1 - before.detach()) * math.e  # the head adds 1 to the logit of the output behind the norm
    torch.testing.assert_close(boxes, odds / (1 + odds), rtol=1e-5, atol=1e-7)
    assert following.attended.flatten().tolist() == pytest.approx([0.999, 0.5, 1e-3, 0.25], abs=1e-6)
    assert boxes.requires_grad and not following.attended.requires_grad
    step = torch.zeros(1, 1, 4, requires_grad=True)
    _, following = update(lambda x: x, step, torch.ones(1, 1, 4), reference, eps=1e-3, output_eps=1e-5)
    assert following.base.requires_grad is reached and not following.attended.requires_grad


def test_boxes_given_out_may_touch_the_border():
    decoder = built("r50-plus", SMALL, num_queries=9, logit_eps=1e-2, output_eps=0.0).decoder
    box = torch.tensor([[[1e-7, 0.5, 1e-3, 0.25]]])
    query = torch.zeros(1, 1, 4)
    boxes, following = decoder.update_boxes(lambda x: x, query, query, Reference(box, box))
    assert boxes.flatten().tolist() == pytest.approx([1e-7, 0.5, 1e-3, 0.25], rel=1e-4)
    assert following.base.flatten().tolist() == pytest.approx([0.01, 0.5, 0.01, 0.25], rel=0.02)


def test_denoising_queries_see_the_others_and_are_not_seen():
    model = built("r50-dino", DINO)
    images, targets = batch()
    predictions = model(images, targets, noise_for(model, targets, 2))
    (gradient,) = torch.autograd.grad(
        predictions.denoising_boxes.sum() + predictions.denoising_logits.sum(),
        model.query_source.content_embed.weight,
        retain_graph=True,
    )
    assert (gradient.abs().sum(1) > 0).all()  # content of the matching queries only
    unseen = torch.autograd.grad(
        predictions.boxes.sum() + predictions.logits.sum(), model.denoising.label_embed.weight, allow_unused=True
    )
    assert unseen == (None,)


@pytest.mark.parametrize(("preset", "settings"), MODELS)
@pytest.mark.parametrize("counts", [(0, 3), (0, 0), (20, 1)])  # 20 objects are more than the queries
def test_unusual_batches_train_every_parameter(preset, settings, counts):
    model = built(preset, settings)
    images, targets = batch(counts)
    criterion = SetCriterion.from_config(model.metadata.model)
    total = criterion.weighted_sum(criterion(model(images, targets), targets))
    total.backward()
    assert total.isfinite()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(("preset", "settings"), MODELS)
def test_fewer_positions_than_queries(preset, settings):
    model = built(preset, {**settings, "hidden_dim": 64, "num_queries": 400})
    targets = batch()[1][:1]
    images = ImageBatch.from_images([torch.randn(3, 64, 64)])  # 85 positions, 341 with stride 4
    criterion = SetCriterion.from_config(model.metadata.model)
    predictions = model(images, targets)
    assert predictions.logits.shape[2] == (341 if preset == "r50-dino-5scale" else 85)
    assert criterion.weighted_sum(criterion(predictions, targets)).isfinite()


@pytest.mark.parametrize(("preset", "settings"), MODELS)
def test_bfloat16_is_near(preset, settings):
    model = built(preset, settings).eval()
    images = batch()[0]
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(images)
    assert rounded.boxes.dtype == torch.float32
    # ranks of near proposals may change: compare what is seen, not query by query
    assert rounded.logits.isfinite().all()
    assert rounded.logits.float().mean().item() == pytest.approx(exact.logits.mean().item(), abs=0.1)
    model.train()
    targets = batch()[1]
    criterion = SetCriterion.from_config(model.metadata.model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predictions = model(images, targets)
    criterion.weighted_sum(criterion(predictions, targets)).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_relations_of_two_boxes_by_hand():
    rows, columns = torch.tensor([[[0.5, 0.5, 0.2, 0.4]]]), torch.tensor([[[0.7, 0.1, 0.1, 0.4]]])
    # |dx| / w = 1, |dy| / h = 1, w / w' = 2, h / h' = 1
    expected = [math.log(2), math.log(2), math.log(2), 0.0]
    assert box_relations(rows, columns).flatten().tolist() == pytest.approx(expected, abs=1e-4)


def test_relation_bias_is_added_from_the_second_layer_on_and_keeps_the_mask():
    relation = PositionRelation(num_heads=3)
    before, boxes = torch.rand(2, 4, 4), torch.rand(2, 5, 4)
    mask = torch.zeros(4, 5)
    mask[1, 2] = -math.inf
    assert relation(0, before, boxes, mask) is mask
    bias = relation(1, before, boxes, mask)
    assert bias.shape == (2, 3, 4, 5)
    assert (bias[:, :, 1, 2] == -math.inf).all() and bias.masked_fill(mask == -math.inf, 0).min() == 0  # behind a ReLU
    # image 1, head 2, pair (3, 0), written out
    encoded = []
    for value in box_relations(before, boxes)[1, 3, 0].tolist():
        for i in range(8):
            angle = 100 * value / 10000 ** (2 * i / 16)
            encoded += [math.sin(angle), math.cos(angle)]
    weight, shift = relation.proj.weight[2].tolist(), relation.proj.bias[2].item()
    expected = max(0.0, sum(w * x for w, x in zip(weight, encoded, strict=True)) + shift)
    assert bias[1, 2, 3, 0].item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("preset", ["r50-dino", "r50-hdetr"])
def test_relation_bias_works_with_the_queries_of_training(preset):
    model = built(preset, DINO if preset == "r50-dino" else HYBRID, relation_bias=True)
    images, targets = batch()
    predictions = model(images, targets)
    predictions.boxes.sum().backward()
    assert model.decoder.relation.proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("preset", "trainable"),
    [("r50-plus", 47_723_673 - 1500 * 256), ("r50-hdetr", 47_723_673), ("r50-dino", 46_670_782), ("r50-dino-5scale", 47_033_406)],
)
def test_parameter_counts_are_the_official_ones(preset, trainable):
    with torch.device("meta"):
        model = build_model(preset, pretrained_backbone=False)
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad is wanted) for wanted in (True, False)]
    assert counts == [trainable, 222_400]


def test_initial_weights_of_the_new_parts():
    torch.manual_seed(0)
    dino = cast(Any, build_model("r50-dino", pretrained_backbone=False))
    bound = math.sqrt(6 / (900 + 256))  # Xavier
    assert 0.99 * bound < dino.query_source.content_embed.weight.abs().max() <= bound
    assert dino.denoising.label_embed.weight.shape == (92, 256)
    assert dino.denoising.label_embed.weight.std().item() == pytest.approx(1, abs=0.02)
    for layer, fan_in in zip(dino.decoder.position_mlp.layers, (512, 256), strict=True):
        bound = math.sqrt(6 / (fan_in + 256))
        assert 0.99 * bound < layer.weight.abs().max() <= bound
    heads = [dino.query_source.box_head, *dino.decoder.box_heads]
    assert len(heads) == 2 and all(head.layers[-1].bias.abs().max() == 0 == head.layers[-1].weight.abs().max() for head in heads)
    assert (dino.query_source.class_head.bias + math.log(99)).abs().max() < 1e-5
    hybrid = cast(Any, build_model("r50-hdetr", pretrained_backbone=False))
    assert hybrid.query_source.content_embed.weight.shape == (1800, 256)
    assert hybrid.query_source.content_embed.weight.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"query_content": "learned"}, "query_content='learned' needs two_stage=True"),
        ({"look_forward_twice": True}, "look_forward_twice=True needs box_refinement=True"),
        ({"two_stage": True, "box_refinement": True, "query_position": "reference"}, "needs query_content='learned'"),
        ({"two_stage": True, "box_refinement": True, "label_noise": 1.5}, "label_noise must be in \\[0, 1\\]"),
    ],
)
def test_settings_that_do_not_go_together(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**settings)


def test_sine_encoding_of_dino_by_hand():
    mask = torch.tensor([[[False, False, False, True]]])  # three of four columns are image
    encoded = SinePositionEncoding(8, temperature=20.0, offset=0.0)(mask)[0, 0]
    angle = 2 / 3 * 2 * math.pi  # second column, counted from 1, over the last
    expected = [math.sin(angle), math.cos(angle), math.sin(angle / math.sqrt(20)), math.cos(angle / math.sqrt(20))]
    assert encoded[1, 4:].tolist() == pytest.approx(expected, abs=1e-4)
