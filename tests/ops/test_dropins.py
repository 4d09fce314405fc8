"""The names others call the operator by, against the real thing where it installs."""

import importlib

import pytest
import torch

from deformable_detr.ops.dropins import (
    MSDeformAttnFunction,
    MultiScaleDeformableAttnFunction,
    _transformers_forward,
    patch_transformers,
)
from deformable_detr.ops.reference import multi_scale_deformable_attn_pytorch


@pytest.fixture
def arguments(problems):
    """As the original's module passes them."""
    p = problems(reference=0).leaves()
    shapes = torch.tensor(p.shapes)
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    return p.value, shapes, starts, p.offsets, p.weights, 64


def test_the_original_signature(arguments, error_of):
    value, shapes, _, locations, weights, _ = arguments
    expected = multi_scale_deformable_attn_pytorch(value.double(), shapes, locations.double(), weights.double())
    output = MSDeformAttnFunction.apply(*arguments)
    assert error_of(output.detach(), expected.detach()) < 1e-6
    output.sum().backward()
    assert all(tensor.grad is not None for tensor in (value, locations, weights))


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        (torch.tensor([170, 0, 210, 222]), "level 0 begins at token 170, but the levels before it have 0 pixels"),
        (torch.tensor([0, 170, 211, 222]), "level 2 begins at token 211, but the levels before it have 210 pixels"),
        (torch.tensor([0, 170]), "expected 4 integers, one per level, got \\[2\\]"),
        (torch.tensor([0.0, 170.0, 210.0, 222.0]), "expected 4 integers"),
    ],
)
def test_first_tokens_that_do_not_fit(arguments, starts, message):
    value, shapes, _, *rest = arguments
    with pytest.raises(ValueError, match=f"level_start_index: {message}"):
        MSDeformAttnFunction.apply(value, shapes, starts, *rest)


def test_lists_of_shapes_and_first_tokens(arguments):
    value, shapes, starts, *rest = arguments
    expected = MSDeformAttnFunction.apply(*arguments)
    assert torch.equal(MSDeformAttnFunction.apply(value, shapes.tolist(), tuple(starts.tolist()), *rest), expected)
    for wrong in (None, [[1.0, 2.0]], [(1, 2), (3,)], "shapes", []):
        with pytest.raises(ValueError, match="spatial_shapes: expected integers"):
            MSDeformAttnFunction.apply(value, wrong, starts, *rest)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="level_start_index: expected integers"):
        MSDeformAttnFunction.apply(value, shapes, [0.5] * 4, *rest)  # type: ignore[list-item]


def test_one_node_of_a_compiled_program(arguments):
    """Shapes and first tokens are arguments, or known from outside; what does not fit is found when the program runs."""
    value, shapes, starts, locations, weights, step = arguments
    nodes = []

    def backend(graph, inputs):
        nodes.extend(node for node in graph.graph.nodes if "ms_deform_attn" in str(node.target))
        return graph.forward

    def program(value, shapes, starts):
        return MSDeformAttnFunction.apply(value, shapes, starts, locations, weights, step)

    compiled = torch.compile(program, fullgraph=True, backend=backend)
    assert torch.equal(compiled(value, shapes, starts), MSDeformAttnFunction.apply(*arguments))
    assert len(nodes) == 1
    with pytest.raises(ValueError, match="level_start_index: level 0 begins at token 7"):
        compiled(value, shapes, starts + 7)
    with pytest.raises(ValueError, match="spatial_shapes: the levels have 394 pixels"):
        taller = shapes.clone()
        taller[0, 0] += 10
        compiled(value, taller, torch.cat([shapes.new_zeros(1), taller.prod(1).cumsum(0)[:-1]]))


def test_against_mmcv(arguments):
    ops = pytest.importorskip("mmcv.ops.multi_scale_deform_attn", reason="mmcv is not installed")
    value, shapes, _, locations, weights, _ = arguments
    torch.testing.assert_close(
        MultiScaleDeformableAttnFunction.apply(*arguments),
        ops.multi_scale_deformable_attn_pytorch(value, shapes, locations, weights),
    )


@pytest.fixture(scope="module")
def small_model():
    transformers = pytest.importorskip("transformers")
    stages = ["stage2", "stage3", "stage4"]
    resnet = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=stages)
    backbone = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "backbone_config": resnet}
    encoder = {"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 32}
    decoder = {"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 32}
    config = transformers.DeformableDetrConfig(d_model=32, num_queries=7, **backbone, **encoder, **decoder)
    torch.manual_seed(0)
    return transformers.DeformableDetrForObjectDetection(config).eval()


def test_transformers_uses_ours_and_back(small_model, monkeypatch):
    from deformable_detr.ops import dropins

    calls = []
    ours = dropins.ms_deform_attn
    monkeypatch.setattr(dropins, "ms_deform_attn", lambda *args: calls.append(1) or ours(*args))
    pixels = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        before = small_model(pixels)
        restore = patch_transformers("deformable_detr")
        try:
            patched = small_model(pixels)
        finally:
            restore()
        after = small_model(pixels)
    assert len(calls) == 4  # one per layer, none after the originals are back
    torch.testing.assert_close(patched.logits, before.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(patched.pred_boxes, before.pred_boxes, rtol=1e-4, atol=1e-5)
    assert torch.equal(after.logits, before.logits)


@pytest.mark.parametrize("model_type", ["grounding_dino", "rt_detr", "mask2former"])
def test_the_rest_of_the_family_has_a_known_signature(model_type):
    pytest.importorskip("transformers")
    patch_transformers(model_type)()


def test_what_cannot_be_patched(monkeypatch):
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="no model 'nonsense'"):
        patch_transformers("nonsense")
    with pytest.raises(ValueError, match="'bert' does not use"):
        patch_transformers("bert")
    module = importlib.import_module("transformers.models.mask2former.modeling_mask2former")
    with monkeypatch.context() as context:
        context.setattr(module, "multi_scale_deformable_attention", lambda value, places: None)
        with pytest.raises(ValueError, match=r"'mask2former' takes \['value', 'places'\]"):
            patch_transformers("mask2former")
    real = importlib.import_module

    def without(name):
        if name == "transformers":
            raise ImportError(name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match="pip install transformers"):
        patch_transformers()


def test_two_lists_of_shapes_that_differ(arguments):
    value, shapes, starts, *rest = arguments
    with pytest.raises(ValueError, match=r"value_spatial_shapes_list: .*, but value_spatial_shapes holds "):
        _transformers_forward(None, value, shapes, shapes.flip(1).tolist(), starts, *rest)
