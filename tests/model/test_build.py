"""Sizes, initial values and settings against the official numbers (docs/architecture.md names the sources)."""

import math

import pytest
import torch
from timm.layers.norm_act import FrozenBatchNorm2d
from torch import nn

from deformable_detr.model import build_model
from deformable_detr.model.backbone import FrozenNorm, faster_frozen_norms
from deformable_detr.presets import MODEL_PRESETS

OFFICIAL_TRAINABLE = {
    "r50-single-scale": 33_844_193,
    "r50-single-scale-dc5": 33_844_193,
    "r50": 39_847_265,
    "r50-refine": 40_627_260,
    "r50-two-stage": 40_959_129,
}
FROZEN = 222_400


@pytest.fixture(scope="module", params=OFFICIAL_TRAINABLE)
def official(request):
    torch.manual_seed(0)
    return request.param, build_model(request.param, pretrained_backbone=False)


def test_parameter_counts(official):
    name, model = official
    sizes = {True: 0, False: 0}
    for parameter in model.parameters():
        sizes[parameter.requires_grad] += parameter.numel()
    assert sizes == {True: OFFICIAL_TRAINABLE[name], False: FROZEN}


def test_frozen_parts(official):
    _, model = official
    frozen = {name.split(".")[2] for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"conv1", "layer1"}
    assert not any("num_batches_tracked" in key or "running" in key for key, _ in model.named_parameters())
    model.train()
    before = model.backbone.body.bn1.running_mean.clone()
    model.backbone(torch.randn(1, 3, 64, 64))
    assert torch.equal(before, model.backbone.body.bn1.running_mean)


def test_strides(official):
    name, model = official
    expected = {"r50-single-scale": [(2, 2)], "r50-single-scale-dc5": [(4, 4)]}.get(name, [(8, 8), (4, 4), (2, 2), (1, 1)])
    with torch.no_grad():
        levels = model.neck(model.backbone(torch.randn(1, 3, 64, 64)))
    assert [tuple(level.shape[-2:]) for level in levels] == expected
    assert {level.shape[1] for level in levels} == {256}


def test_class_heads_start_at_the_prior(official):
    name, model = official
    heads = list(model.class_heads)
    if "two-stage" in name:
        heads.append(model.query_source.class_head)
    assert len(heads) == {"r50-refine": 6, "r50-two-stage": 7}.get(name, 1)
    for head in heads:
        assert torch.all(head.bias == torch.tensor(-4.59511985013459))


def test_box_heads_start_without_correction(official):
    name, model = official
    heads = list(model.decoder.box_heads)
    first = {"r50-two-stage": 0.0}.get(name, -2.0)
    if "two-stage" in name:
        heads.append(model.query_source.box_head)
    for index, head in enumerate(heads):
        last = head.layers[-1]
        assert not last.weight.any()
        assert last.bias.tolist() == [0, 0, *[first if index == 0 else 0.0] * 2]


def test_attention_starts_on_the_compass(official):
    _, model = official
    r = 1.0
    compass = [(r, 0), (r, r), (0, r), (-r, r), (-r, 0), (-r, -r), (0, -r), (r, -r)]  # heads 0 … 7, 45 degrees apart
    for layer in model.encoder.layers:
        attention = layer.self_attn
        assert not attention.sampling_offsets.weight.any()
        assert not attention.attention_weights.weight.any()
        assert not attention.attention_weights.bias.any()
        assert not attention.value_proj.bias.any()
        assert not attention.output_proj.bias.any()
        grid = attention.sampling_offsets.bias.view(8, -1, 4, 2)  # [M, L, P, 2]
        for head, (x, y) in enumerate(compass):
            for point in range(4):
                expected = torch.tensor([x, y]) * (point + 1)
                torch.testing.assert_close(grid[head, :, point], expected.expand(grid.shape[1], 2), atol=1e-5, rtol=0)


def test_distributions(official):
    name, model = official
    xavier = math.sqrt(6 / (256 + 1024))
    ffn = model.encoder.layers[0].ffn.linear1.weight
    assert ffn.abs().max() <= xavier
    assert ffn.std().item() == pytest.approx(xavier / math.sqrt(3), rel=0.02)
    projection = model.neck.projections[0][0]
    bound = math.sqrt(6 / (projection.weight[0].numel() + 256))
    assert projection.weight.abs().max() <= bound
    assert projection.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not projection.bias.any()
    in_proj = model.decoder.layers[0].self_attn.in_proj_weight
    assert in_proj.std().item() == pytest.approx(math.sqrt(6 / (256 + 768)) / math.sqrt(3), rel=0.02)
    assert model.flatten.level_embed.std().item() == pytest.approx(1, rel=0.15)
    if "two-stage" not in name:
        assert model.query_source.query_embed.weight.shape == (300, 512)
        assert model.query_source.query_embed.weight.std().item() == pytest.approx(1, rel=0.02)
        assert not model.query_source.reference_points.bias.any()


@pytest.mark.parametrize("name", ["demo", "demo-fast", "tiny"])
def test_small_presets_train_everything(name):
    model = build_model(name)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert isinstance(model.get_submodule("backbone.body.bn1"), torch.nn.BatchNorm2d)


def test_metadata_remembers_the_settings():
    model = build_model("tiny", num_classes=5)
    assert model.metadata.model == MODEL_PRESETS["tiny"].replace(num_classes=5)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"preset": "r51"}, "unknown preset 'r51'; did you mean 'r50'\\? known are r50,"),
        ({"num_querys": 3}, r"unknown model setting \['num_querys'\]"),
        ({"two_stage": True, "box_refinement": False}, "two_stage needs box_refinement"),
        ({"num_heads": 5}, "hidden_dim 64 is not a multiple of num_heads 5"),
        ({"hidden_dim": 48}, "not a multiple of 32"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"backbone": "resnet5000"}, "unknown backbone 'resnet5000'"),
        ({"backbone": "levit_128", "backbone_options": {}}, "ends in stages of strides"),
        ({"backbone_options": {"colour": 3}}, "timm cannot build the backbone 'resnet18'"),
    ],
)
def test_bad_settings(keywords, message):
    with pytest.raises(ValueError, match=message):
        build_model(**({"preset": "tiny"} | keywords))


def test_missing_backbone_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no backbone weights at .*none\.pth"):
        build_model("tiny", pretrained_backbone=str(tmp_path / "none.pth"))


def test_backbone_file_that_does_not_fit(tmp_path):
    torch.save({"conv1.weight": torch.zeros(2, 2)}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd.pth do not fit the backbone 'resnet18'"):
        build_model("tiny", pretrained_backbone=str(tmp_path / "odd.pth"))


def test_backbone_from_a_local_file(tmp_path):
    source = build_model("tiny").get_submodule("backbone.body").state_dict()
    torch.save(source, tmp_path / "resnet.pth")
    again = build_model("tiny", pretrained_backbone=str(tmp_path / "resnet.pth"))
    loaded = again.get_submodule("backbone.body").state_dict()
    assert all(torch.equal(source[key], loaded[key]) for key in source)


def test_backbone_that_cannot_be_downloaded(monkeypatch):
    def no_network(*args, **keywords):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.create_model", no_network)
    with pytest.raises(ConnectionError, match=r"no route to host(.|\n)*--model.pretrained_backbone false"):
        build_model("tiny", pretrained_backbone=True)


@pytest.mark.parametrize("value", ["12", 12.5, None, [12]])
def test_a_setting_of_another_type_is_named(value):
    with pytest.raises(ValueError, match="num_queries: expected"):
        build_model("tiny", num_classes=3, num_queries=value)


def test_frozen_norms_are_torchvisions():
    norm = FrozenBatchNorm2d(6)
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(norm, name).copy_(torch.rand(6) + 0.5)
    x = torch.randn(2, 6, 4, 5, requires_grad=True)
    expected = norm(x)
    (wanted,) = torch.autograd.grad(expected.square().sum(), x)
    body = nn.Sequential(norm)
    faster_frozen_norms(body)
    found = body(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), x)[0], wanted)
    assert type(body[0]) is FrozenNorm and list(body.state_dict()) == ["0.weight", "0.bias", "0.running_mean", "0.running_var"]
