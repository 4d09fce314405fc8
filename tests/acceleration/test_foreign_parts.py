"""What others put into a network (adapters, quantised layers, hooks, pruning) or do beside it (threads) is never left out."""

import functools
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.acceleration.test_model import assert_as_close_as_autocast, build, plain, sample_images
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, prune

from deformable_detr.acceleration.convolutions import optimized_backbone
from deformable_detr.acceleration.model import InferenceModel
from deformable_detr.acceleration.network import answering_parts
from deformable_detr.acceleration.tracing import runs_as_written, trace, untouched
from deformable_detr.model.deformable_detr import DeformableDETR
from deformable_detr.model.encoder import EncoderLayer
from deformable_detr.structures import Predictions


def assert_same(found: Predictions, expected: Predictions):
    """The answer of the last layer is what counts."""
    for one, other in ((found.logits, expected.logits), (found.boxes, expected.boxes)):
        torch.testing.assert_close(one[-1], other[-1], atol=1e-4, rtol=1e-4, check_dtype=False)


class Adapter(nn.Module):
    """A low-rank addition to a linear map, as LoRA makes it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def linears(model):
    parents = [module for module in model.modules() if not isinstance(module, (nn.MultiheadAttention, Adapter))]
    return [(parent, name, child) for parent in parents for name, child in parent.named_children() if type(child) is nn.Linear]


def wrap(model):
    for parent, name, child in linears(model):
        setattr(parent, name, Adapter(child))


def scaled(factor):
    """A forward hook."""

    def multiply(module, inputs, output):
        return output * factor

    return multiply


def hook(model):
    for _, _, child in linears(model):
        child.register_forward_hook(scaled(1.1))


def convolution_hook(model):
    for module in model.backbone.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(scaled(1.01))


def block_hook(model):
    model.backbone.body.layer2.register_forward_hook(scaled(1.1))


def replaced_forward(model):
    layer = model.encoder.layers[0]
    usual = layer.forward
    layer.forward = lambda *inputs: usual(*inputs) * 1.1


def pruned(model):
    for _, _, child in linears(model):
        prune.l1_unstructured(child, "weight", 0.5)


def weight_norm(model):
    for _, _, child in linears(model):
        parametrizations.weight_norm(child)
        child.get_parameter("parametrizations.weight.original0").data.mul_(1.3)


def parametrised_convolutions(model):
    for module in model.backbone.modules():
        if isinstance(module, nn.Conv2d):
            parametrizations.weight_norm(module)
            module.get_parameter("parametrizations.weight.original0").data.mul_(1.05)


def attention_hook(model):
    model.encoder.layers[0].self_attn.register_forward_hook(scaled(1.2))


def part_hooks(model):
    for part in (model.flatten.position_encoding, model.decoder, model.class_heads, model.neck):
        part.register_forward_pre_hook(lambda module, inputs: None)
    model.class_heads.register_forward_hook(lambda module, inputs, output: output + 1)


CHANGES = [
    *(wrap, hook, convolution_hook, block_hook, replaced_forward, pruned, weight_norm, parametrised_convolutions),
    *(attention_hook, part_hooks),
]


@pytest.mark.parametrize("variant", [{"two_stage": False, "box_refinement": False}, {}], ids=["one-stage", "two-stage"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_parts_count(change, variant):
    """Changed before the fast network is made, and after it has run once."""
    model, images = build(**variant), sample_images((64, 80))
    fast, before = InferenceModel(model), plain(model, images)
    assert_same(fast(images), before)
    torch.manual_seed(3)
    change(model)
    expected = plain(model, images)
    assert (expected.logits[-1] - before.logits[-1]).abs().max() > 1e-3  # the change can be seen
    assert_same(fast(images), expected)
    assert_same(InferenceModel(model)(images), expected)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_parts_count_in_bfloat16(change):
    """Without proposals, whose rank is another one after any rounding."""
    model, images = build(two_stage=False, box_refinement=False), sample_images((64, 80))
    torch.manual_seed(3)
    change(model)
    assert_as_close_as_autocast(InferenceModel(model, precision="bf16")(images), model, images)


@pytest.mark.parametrize("change", [wrap, hook, weight_norm, part_hooks], ids=lambda change: change.__name__)
def test_changed_parts_count_in_what_is_exported(change):
    model, images = build(), sample_images((64, 80))
    change(model)
    network = DeformableDETR(**(dict(model.named_children()) | answering_parts(model)), metadata=model.metadata).eval()
    assert_same(plain(network, images), plain(model, images))


def test_hooks_of_all_modules_count():
    model, images = build(), sample_images((64, 80))
    fast, before = InferenceModel(model), plain(model, images)
    assert_same(fast(images), before)
    with register_module_forward_hook(lambda module, inputs, output: output * 1.1 if type(module) is nn.Linear else None):
        changed = plain(model, images)
        assert (changed.logits[-1] - before.logits[-1]).abs().max() > 0.01
        assert_same(fast(images), changed)
    assert_same(fast(images), before)


def elsewhere(self, x):
    return F.linear(x, self.weight, self.bias) * 1.1


CLASS_CHANGES = {
    "a linear map's forward": (nn.Linear, "forward", elsewhere),
    "wrapped": (nn.Linear, "forward", functools.wraps(nn.Linear.forward)(elsewhere)),
    "a convolution's forward": (nn.Conv2d, "forward", lambda self, x: self._conv_forward(x, self.weight, self.bias) * 1.01),
    "a ReLU's forward": (nn.ReLU, "forward", lambda self, x: x.clamp(min=0.01)),
    "an encoder layer's forward": (EncoderLayer, "forward", lambda self, features, flat: features * 1.1),
    "calls of all linear maps": (nn.Linear, "__call__", elsewhere),
}


@pytest.mark.parametrize("change", CLASS_CHANGES)
def test_changed_classes_count(change, monkeypatch):
    """Changed for the whole process, as profilers and patches of other libraries do it."""
    model, images = build(), sample_images((64, 80))
    fast, before = InferenceModel(model), plain(model, images)
    assert_same(fast(images), before)
    with monkeypatch.context() as patch:
        patch.setattr(*CLASS_CHANGES[change], raising=False)
        changed = plain(model, images)
        assert (changed.logits[-1] - before.logits[-1]).abs().max() > 1e-3
        assert_same(fast(images), changed)
    assert_same(fast(images), before)


def test_classes_of_all_models_run_as_written():
    """What is fast for a reason stays fast."""
    models = [build(), build(backbone="mobilenetv3_small_050", backbone_options={}, hidden_dim=64)]
    assert [kind for model in models for kind in {type(module) for module in model.modules()} if not runs_as_written(kind)] == []


def test_other_layers_in_the_parts_that_look_at_pairs_of_boxes():
    model, images = build(suppressor=True, relation_bias=True), sample_images((64, 80))
    wrap(model)
    assert_same(InferenceModel(model)(images), plain(model, images))


def test_dynamic_int8():
    model, images = build(suppressor=True, relation_bias=True), sample_images((64, 80))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    assert_same(InferenceModel(quantised)(images), plain(quantised, images))


def test_a_module_that_is_replaced_is_noticed():
    model, images = build(), sample_images((64, 80))
    fast = InferenceModel(model)
    fast(images)
    model.neck = nn.Sequential(model.neck, _Doubled())
    assert_same(fast(images), plain(model, images))


class _Doubled(nn.Module):
    def forward(self, levels):
        return [level * 2 for level in levels]


def test_untouched():
    module = nn.Linear(2, 2)
    assert untouched(module)
    handle = module.register_forward_pre_hook(lambda module, inputs: None)
    assert not untouched(module)
    handle.remove()
    assert untouched(module)
    assert not untouched(parametrizations.weight_norm(module))


def test_recording_a_backbone_leaves_the_process_as_it_is():
    """torch.fx replaces these two while it traces; a foreign module runs all the time, and must not notice anything."""
    before = nn.Module.__call__, nn.Module.__getattr__
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()
    x, stop, errors = torch.randn(2, 8), threading.Event(), []

    def run():
        while not stop.is_set():
            try:
                assert (nn.Module.__call__, nn.Module.__getattr__) == before
                net(x)
            except BaseException as error:
                errors.append(error)
                return

    bodies = [build(backbone="resnet18", backbone_options={}).get_submodule("backbone.body") for _ in range(2)]
    thread = threading.Thread(target=run)
    thread.start()
    graphs = [trace(body) for body in bodies for _ in range(4)]
    stop.set()
    thread.join()
    assert errors == []
    assert all(graph is not None for graph in graphs)


def test_detectors_are_made_by_eight_threads_while_others_predict():
    images = sample_images((64, 80))
    model = build()
    expected, serving, stop = plain(model, images), InferenceModel(model), threading.Event()
    state = torch.get_rng_state()

    def serve():
        while not stop.is_set():
            assert_same(serving(images), expected)

    def load(_):
        assert_same(InferenceModel(model)(images), expected)

    with ThreadPoolExecutor(10) as pool:
        servers = [pool.submit(serve) for _ in range(2)]
        list(pool.map(load, range(8)))
        stop.set()
        for server in servers:
            server.result()
    assert torch.equal(torch.get_rng_state(), state)  # making a network fast draws no random numbers


def test_training_branches_are_not_recorded():
    """A backbone in training mode is recorded as it runs in evaluation mode."""
    model = build(backbone="convnext_atto", backbone_options={"drop_path_rate": 0.5}, hidden_dim=64)
    body = model.get_submodule("backbone.body")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = body(images)
        settings: dict[str, Any] = {
            "fold_batch_norm": True,
            "inplace_activations": True,
            "fuse_convolutions": True,
            "channels_last": True,
        }
        graph = trace(body.train())
        assert graph is not None
        assert "rand" not in str(graph)
        fast = optimized_backbone(body.eval(), **settings)
        for found, wanted in zip(fast(images), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("variant", [{"two_stage": False, "box_refinement": False}, {}], ids=["one-stage", "two-stage"])
def test_models_of_other_dtypes_take_float32_images(dtype, variant):
    model, images = build(**variant), sample_images((64, 80), (48, 64))
    exact = plain(model, images)
    model.to(dtype)
    found, fast = plain(model, images), InferenceModel(model)(images)
    assert found.logits.dtype == fast.logits.dtype == dtype
    if dtype == torch.float64:
        assert_same(fast, exact)
    allowed = 64 * torch.finfo(dtype).eps + 1e-4
    error, plain_error = ((one.logits[-1].double().sigmoid() - exact.logits[-1].sigmoid()).abs().mean() for one in (fast, found))
    assert error < 2 * plain_error + 1e-3
    assert plain_error < allowed


@pytest.fixture(params=[torch.bfloat16, torch.float16, torch.float64], ids=str)
def other_default_dtype(request):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def other_default_device():
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


CASES = [sample_images((64, 80)), sample_images((64, 90), (96, 70))]


def test_other_default_dtypes(other_default_dtype):
    torch.set_default_dtype(torch.float32)
    models = [build(), build(two_stage=False, box_refinement=False)]
    expected = [plain(model, images) for model in models for images in CASES]
    torch.set_default_dtype(other_default_dtype)
    for index, model in enumerate(models):
        for place, images in enumerate(CASES):
            assert_same(plain(model, images), expected[2 * index + place])
            assert_same(InferenceModel(model)(images), expected[2 * index + place])


def test_other_default_devices(other_default_device):
    torch.set_default_device(None)
    models = [build(), build(two_stage=False, box_refinement=False)]
    expected = [plain(model, images) for model in models for images in CASES]
    torch.set_default_device("meta")
    for index, model in enumerate(models):
        for place, images in enumerate(CASES):
            assert_same(plain(model, images), expected[2 * index + place])
            assert_same(InferenceModel(model)(images), expected[2 * index + place])
