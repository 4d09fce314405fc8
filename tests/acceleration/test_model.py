"""The optimised network gives what the plain module gives, with every switch alone and with all together."""

import copy
import logging
import threading
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

from deformable_detr.acceleration.convolutions import optimized_backbone
from deformable_detr.acceleration.encoder import ChunkedEncoder
from deformable_detr.acceleration.fused_convolutions import (
    FusedConvolution,
    WinogradConvolution,
    fused_convolutions_work,
)
from deformable_detr.acceleration.geometry import KeptGeometry
from deformable_detr.acceleration.low_precision import (
    KITS,
    Autocast,
    LowLinear,
    PackedLinear,
    WithoutAutocast,
    packed_weights_work,
)
from deformable_detr.acceleration.model import InferenceModel, inductor
from deformable_detr.acceleration.network import fast_network
from deformable_detr.acceleration.options import PLAIN, InferenceOptions, fastest_precision
from deformable_detr.acceleration.watch import Watch
from deformable_detr.inference.predictor import Predictor
from deformable_detr.model import build_model
from deformable_detr.ops.winograd import winograd_available
from deformable_detr.structures import ImageBatch, Predictions

RESNET18 = {"backbone": "resnet18", "backbone_options": {}, "hidden_dim": 64, "ffn_dim": 96}
VARIANTS = {
    "tiny": {},
    "learning batch norm": {"freeze_batch_norm": False, "frozen_backbone_stages": 0},
    "refine": {"box_refinement": True},
    "two-stage": {"box_refinement": True, "two_stage": True},
    "single-scale": {"num_feature_levels": 1},
    "dc5": {"num_feature_levels": 1, "dilation": True},
    "resnet18": RESNET18,
    "convnext": RESNET18 | {"backbone": "convnext_atto"},
    "regnet with squeeze and excitation": RESNET18 | {"backbone": "regnety_002"},
    "mobilenet, batch norm with activation": RESNET18 | {"backbone": "mobilenetv3_small_050", "freeze_batch_norm": False},
    "batch norm with activation, frozen": RESNET18 | {"backbone": "mobilenetv3_small_050"},
}
SWITCHES = {
    "fold_batch_norm": {"fold_batch_norm": True},
    "channels_last": {"channels_last": True},
    "inplace_activations": {"inplace_activations": True},
    "fuse_convolutions": {"fuse_convolutions": True, "fold_batch_norm": True},
    "winograd": {"winograd": True, "fuse_convolutions": True, "fold_batch_norm": True, "channels_last": True},
    "constant_sizes": {"constant_sizes": 2},
    "chunk_tokens": {"chunk_tokens": 50, "constant_sizes": 2},
    "answer_only": {"answer_only": True},
    "all": {field.name: field.default for field in fields(InferenceOptions)} | {"chunk_tokens": 37},
}


def build(**settings):
    """A small detector, every weight and every statistic of its batch norms off its initial value."""
    torch.manual_seed(0)
    model = build_model("tiny", num_classes=3, pretrained_backbone=False, **settings)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "running_var" in name:
                tensor.uniform_(0.5, 2)
            elif "running_mean" in name:
                tensor.normal_(0, 0.1)
            elif "bias" in name or tensor.dim() == 1:
                tensor.add_(0.05 * torch.randn_like(tensor)) if tensor.is_floating_point() else None
            elif "box_head" in name or "class_head" in name or "sampling_offsets" in name or "attention_weights" in name:
                tensor.normal_(0, 0.1)
    return model.eval()


def sample_images(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


def assert_same(found: Predictions, expected: Predictions):
    layers = len(found.logits)
    torch.testing.assert_close(found.logits, expected.logits[-layers:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.boxes, expected.boxes[-layers:], atol=1e-4, rtol=0)
    if layers > 1 and expected.encoder_logits is not None:
        torch.testing.assert_close(found.encoder_logits, expected.encoder_logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def plain(model, images):
    return model(images)


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("variant", ["tiny", "two-stage", "resnet18"])
def test_each_switch_alone(switch, variant):
    model = build(**VARIANTS[variant])
    fast = InferenceModel(model, replace(PLAIN, **SWITCHES[switch]))
    for images in (sample_images((96, 120)), sample_images((64, 90), (96, 70)), sample_images((64, 64), (64, 64))):
        expected = plain(model, images)
        assert_same(fast(images), expected)
        assert_same(fast(images), expected)  # and once more, with what is kept
    assert len(fast(images).logits) == (1 if fast.options.answer_only else len(expected.logits))


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_variants(variant):
    model = build(**VARIANTS[variant])
    fast = InferenceModel(model)
    for images in (sample_images((80, 112)), sample_images((64, 90), (96, 70), (64, 90))):
        assert_same(fast(images), plain(model, images))


@pytest.mark.parametrize("original_padding", [False, True])
def test_batches_that_only_have_a_mask(original_padding):
    model = build(two_stage=True, box_refinement=True, original_padding=original_padding)
    batch = ImageBatch.from_images(sample_images((64, 90), (40, 40)))
    fast = InferenceModel(model)
    for one in (batch, replace(batch, image_sizes=None)):
        assert_same(fast(one), plain(model, one))


def test_outdated_weights_are_never_used():
    model = build(freeze_batch_norm=False, frozen_backbone_stages=0)
    fast, images = InferenceModel(model), sample_images((64, 80))
    fast(images)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model.train()
    model(images + sample_images((64, 64))).logits.sum().backward()
    optimizer.step()
    assert_same(fast(images), plain(model.eval(), images))
    other = build(freeze_batch_norm=False, frozen_backbone_stages=0)
    for assign in (False, True):
        changed = {key: value * 1.02 for key, value in other.state_dict().items()}
        model.load_state_dict(changed, assign=assign)
        assert_same(fast(images), plain(model, images))
    model.double()
    doubled = [image.double() for image in images]
    assert fast(doubled).logits.dtype == torch.float64
    assert_same(fast(doubled), plain(model, doubled))


@pytest.mark.parametrize("inference_tensors", [False, True], ids=["usual", "made in inference mode"])
def test_writes_that_leave_no_trace_are_noticed(inference_tensors):
    """Averages, clipping and old training code write through `.data` or NumPy: no version is counted up."""
    with torch.inference_mode(inference_tensors):
        model = copy.deepcopy(build(freeze_batch_norm=False, frozen_backbone_stages=0))
    assert next(model.parameters()).is_inference() == inference_tensors
    fast, images = InferenceModel(model), sample_images((64, 80))
    fast(images)
    weights = dict(model.named_parameters())
    changes = {
        "all": lambda: [weight.data.mul_(1.05) for weight in model.parameters()],
        "a convolution": lambda: weights["backbone.body.layer2.0.conv1.weight"].data[3].add_(0.5),
        "a bias": lambda: weights["encoder.layers.0.self_attn.value_proj.bias"].data[1:2].fill_(2.0),
        "numpy": lambda: weights["decoder.layers.0.self_attn.in_proj_weight"].detach().numpy().__imul__(1.5),
        "statistics": lambda: [buffer.data.mul_(1.1) for buffer in model.buffers() if buffer.is_floating_point()],
    }
    with torch.inference_mode(inference_tensors):
        for name, change in changes.items():
            before = plain(model, images)
            change()
            expected = plain(model, images)
            assert (before.logits[-1] - expected.logits[-1]).abs().max() > 1e-3, name
            assert_same(fast(images), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.int64, torch.float8_e4m3fn])
def test_a_single_number_is_noticed_within_as_many_calls_as_there_are_parts(dtype):
    """Wherever it is, also where two exchanged rows have the same sum; NaN stays NaN."""
    torch.manual_seed(0)
    model = nn.Module()
    buffers = [torch.randn(size).mul(50).to(dtype) for size in [(3,), (1100, 7), (64, 32, 3, 3), (900, 1300), (1021, 4)]]
    buffers[2] = buffers[2].to(memory_format=torch.channels_last)
    buffers[0].view(torch.uint8)[:] = 255  # NaN in most types
    buffers += [torch.ones(40, 60).to(dtype)[:, ::2], torch.ones(1).to(dtype).expand(1)]  # with gaps; one number
    for place, buffer in enumerate(buffers):
        model.register_buffer(f"buffer{place}", buffer)
    parts = 3  # more than a million numbers, at most two million; complex ones count twice

    def noticed():
        return any(not watch.unchanged() for _ in range(parts))

    for buffer in buffers:
        size = buffer.shape
        for index in [(0,) * len(size), tuple(length - 1 for length in size), tuple(length // 2 for length in size)]:
            watch = Watch(model)
            assert not noticed()
            number = buffer.data[index].clone()
            buffer.data[index] = torch.tensor(3).to(dtype)
            assert noticed(), (size, index)
            buffer.data[index] = number
    watch = Watch(model)
    buffers[3].data[[8, 5]] = buffers[3].data[[5, 8]]
    assert noticed()


def test_copies_and_files_have_their_own_weights(tmp_path):
    model, images = build(), sample_images((64, 80))
    fast = InferenceModel(model)
    before = fast(images)
    torch.save(fast, tmp_path / "whole.pt")
    for copied in (copy.deepcopy(fast), torch.load(tmp_path / "whole.pt", weights_only=False)):
        assert_same(copied(images), before)
        with torch.no_grad():
            for weight in copied.model.parameters():
                weight.mul_(1.05)
        changed = plain(copied.model, images)
        assert (changed.logits[-1] - before.logits[-1]).abs().max() > 1e-3
        assert_same(copied(images), changed)
    assert_same(fast(images), before)


def test_changed_settings_are_noticed():
    model = build(box_refinement=True, two_stage=True)
    fast, images = InferenceModel(model), sample_images((64, 80))
    before = fast(images)
    norms = [module for module in model.modules() if "Norm" in type(module).__name__]
    dilated = model.get_submodule("backbone.body.layer3.0.conv1")
    changes = {
        "epsilon": lambda: [setattr(norm, "eps", 0.1) for norm in norms],
        "padding": lambda: (setattr(dilated, "padding", (2, 2)), setattr(dilated, "dilation", (2, 2))),
        "temperature": lambda: setattr(model.get_submodule("flatten.position_encoding"), "temperature", 20.0),
    }
    for name, change in changes.items():
        change()
        expected = plain(model, images)
        assert (expected.logits[-1] - before.logits[-1]).abs().max() > 1e-3, name
        before = fast(images)
        assert_same(before, expected)


def test_pixels_that_are_no_numbers_are_refused():
    """oneDNN's ReLU makes zeros of NaN: predictions would look like those of a dark image."""
    fast, images = InferenceModel(build()), sample_images((64, 80), (64, 90))
    for wrong in (float("nan"), float("inf")):
        images[1][0, 5, 6] = wrong
        with pytest.raises(ValueError, match="NaN or infinite pixels in 1 of 2 images of the batch, the first at 1"):
            fast(images)
    images[1][0, 5, 6] = images[0][0, 0, 0] = 3e38  # finite, though the sum is not
    images[0][0, 0, 1] = 3e38
    fast(images)


def test_the_mode_of_the_plain_module_is_kept():
    model = build(dropout=0.5, freeze_batch_norm=False, frozen_backbone_stages=0)
    fast, images = InferenceModel(model), sample_images((64, 80))
    expected, before = plain(model, images), {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    model.neck.eval()
    assert_same(fast(images), expected)
    assert model.training
    assert model.decoder.training
    assert not model.neck.training
    fast.train(False)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_few_sizes_are_kept():
    model = build()
    fast = InferenceModel(model, InferenceOptions(constant_sizes=2))
    for size in ((64, 64), (64, 80), (64, 96), (64, 112)):
        assert_same(fast(sample_images(size)), plain(model, sample_images(size)))
    assert fast._optimized is not None
    network = fast._optimized[1]
    assert isinstance(network, nn.Module)
    flatten = network.get_submodule("flatten")
    assert isinstance(flatten, KeptGeometry)
    assert len(flatten.kept()) == 2


def test_threads():
    model = build()
    fast, found = InferenceModel(model, InferenceOptions(constant_sizes=1)), {}
    sizes = [(64, 64), (64, 80), (96, 64)]

    def run(size):
        found[size] = [fast(sample_images(size)) for _ in range(4)]

    threads = [threading.Thread(target=run, args=(size,)) for size in sizes]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for size in sizes:
        for one in found[size]:
            assert_same(one, plain(model, sample_images(size)))


def assert_as_close_as_autocast(found: Predictions, model, images):
    """No further from float32 than twice what PyTorch's own autocast of the plain module makes of it."""
    exact = plain(model, images)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = plain(model, images)
    for name in ("logits", "boxes") if exact.encoder_logits is None else ("logits",):  # proposals of other rank have other boxes
        expected = getattr(exact, name)[-1].sigmoid()
        errors = [(getattr(other, name)[-1].float().sigmoid() - expected).abs().mean() for other in (found, lowered)]
        assert errors[0] < 2 * errors[1] + 1e-3, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_is_as_close_as_the_plain_module_in_bfloat16(variant):
    model, images = build(**VARIANTS[variant]), sample_images((96, 120), (64, 90))
    for options in (InferenceOptions(), InferenceOptions(chunk_tokens=37), replace(PLAIN, packed_weights=True)):
        assert_as_close_as_autocast(InferenceModel(model, options, precision="bf16")(images), model, images)


def test_bfloat16_follows_the_weights_and_the_surrounding_autocast():
    model, images = build(), sample_images((64, 80))
    fast = InferenceModel(model, precision="bf16")
    fast(images)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)
    with torch.autocast("cpu", torch.bfloat16):  # as an evaluation in bf16 calls it
        found = fast(images)
    assert_as_close_as_autocast(found, model, images)
    with pytest.raises(ValueError, match="unknown precision 'fp8'"):
        InferenceModel(model, precision="fp8")  # type: ignore[arg-type]


@pytest.mark.skipif(not packed_weights_work(), reason="this processor does not multiply bfloat16")
def test_what_is_lowered():
    """The weights of backbone, neck and encoder are packed; of the decoder what reads the memory and what is wide."""
    network = fast_network(build(**RESNET18), InferenceOptions(), low_precision=True)
    assert not [name for name, module in network.named_modules() if isinstance(module, Autocast)]
    assert not any(isinstance(module, nn.Conv2d) for module in network.get_submodule("neck").modules())
    packed = [name for name, module in network.get_submodule("decoder").named_modules() if isinstance(module, PackedLinear)]
    assert {name.split(".", 3)[-1] for name in packed} == {
        "cross_attn.value_proj",
        "cross_attn.output_proj",
        "ffn.linear1",
        "ffn.linear2",
    }


@pytest.mark.parametrize("variant", ["tiny", "two-stage", "resnet18", "convnext"])
def test_what_a_gpu_is_given_in_bfloat16(variant, monkeypatch):
    """The parts for a GPU run anywhere."""
    model, images = build(**VARIANTS[variant]), ImageBatch.from_images(sample_images((96, 120), (64, 90)))
    monkeypatch.setitem(KITS, "cpu", KITS["cuda"])
    options = replace(PLAIN, answer_only=True)
    network = WithoutAutocast(lambda: fast_network(model, options, low_precision=True), torch.device("cpu"))
    with torch.inference_mode():
        found = network(images)
    assert_as_close_as_autocast(found, model, images)
    assert {
        module.weight.dtype for module in network.get_submodule("network.encoder").modules() if isinstance(module, LowLinear)
    } == {torch.bfloat16}


def test_an_encoder_in_one_piece():
    model, images = build(**VARIANTS["two-stage"]), sample_images((96, 120), (64, 90))
    whole = fast_network(model, replace(PLAIN, answer_only=True))
    whole.encoder = ChunkedEncoder(model.encoder.layers, None)  # pyright: ignore[reportArgumentType]
    with torch.inference_mode():
        assert_same(whole(ImageBatch.from_images(images)), plain(model, images))


def test_models_of_other_types_run_as_they_are():
    class Mirror(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, batch):
            return Predictions(batch.images.flatten(2)[None, :, :2] * self.weight, batch.images.flatten(2)[None, :, :2, :4])

    fast = InferenceModel(Mirror())
    images = sample_images((8, 8))
    torch.testing.assert_close(fast(images).logits[0, 0], images[0].flatten(1)[:2])


def test_parts_of_other_types_run_as_they_are():
    model = build()

    class Loud(type(model.encoder)):
        def forward(self, flat):
            return super().forward(flat) * 2

    class Doubled(type(model.decoder)):
        def forward(self, queries, memory, flat):
            hidden, boxes, _ = super().forward(queries, memory, flat)
            return hidden * 2, boxes

    model.encoder.__class__, model.decoder.__class__ = Loud, Doubled
    images = sample_images((64, 80))
    assert_same(InferenceModel(model)(images), plain(model, images))


@pytest.mark.parametrize("winograd", [False, True])
def test_what_the_fused_backbone_consists_of(winograd):
    """ResNet-50's stem and 16 blocks of three convolutions: 33 with ReLU, 16 with sum and ReLU; 4 shortcuts keep plain ones.

    Of the 3x3 convolutions of the blocks all but three have stride 1, and two of these have too many channels.
    """
    assert fused_convolutions_work()
    body = build(backbone="resnet50", backbone_options={}, hidden_dim=64).get_submodule("backbone.body")
    settings: dict[str, Any] = {
        "fold_batch_norm": True,
        "inplace_activations": True,
        "fuse_convolutions": True,
        "channels_last": True,
    }
    fused = optimized_backbone(body, winograd=winograd, **settings).get_submodule("body")
    assert isinstance(fused, torch.fx.GraphModule)
    kinds = [type(fused.get_submodule(str(node.target))) for node in fused.graph.nodes if node.op == "call_module"]
    by_winograd = 11 if winograd and winograd_available() else 0
    assert kinds.count(WinogradConvolution) == by_winograd
    assert kinds.count(FusedConvolution) == 1 + 3 * 16 - by_winograd
    assert kinds.count(nn.Conv2d) == 4
    assert nn.ReLU not in kinds
    assert not any("norm" in kind.__name__.lower() for kind in kinds)


def test_a_backbone_that_cannot_be_traced_stays(caplog):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return [x * self.weight] if x.sum() > 0 else [x]

    body = Branching()
    settings: dict[str, Any] = dict.fromkeys(("fold_batch_norm", "inplace_activations", "fuse_convolutions", "channels_last"), True)
    with caplog.at_level(logging.INFO):
        assert optimized_backbone(body, **settings) is body
    assert "Branching is not optimised" in caplog.text


def test_compile_runs_and_goes_on_without_a_compiler(monkeypatch, caplog):
    x = torch.randn(3)
    calls = []

    def broken(function, **options):
        def run(*arguments):
            calls.append(options)
            raise BackendCompilerFailed(function, RuntimeError("no g++ here"), None)

        return run

    monkeypatch.setattr(torch, "compile", broken)
    compiled = inductor()(torch.sin)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), torch.sin(x))
    assert len(calls) == 1  # not tried again
    assert "C++ compiler is needed" in caplog.text
    model = build()
    images = sample_images((64, 80))
    assert_same(InferenceModel(model, InferenceOptions(compile=True))(images), plain(model, images))


def test_timing_a_precision_draws_no_random_numbers(monkeypatch):
    monkeypatch.setattr("deformable_detr.acceleration.options.cpu_multiplies_bfloat16", lambda: True)
    state = torch.get_rng_state()
    assert fastest_precision(torch.device("cpu")) in ("bf16", "fp32")
    assert torch.equal(torch.get_rng_state(), state)


def test_predictor_options():
    model = build()
    predictor = Predictor(model, device="cpu")
    assert predictor.model is model
    images = sample_images((64, 80))
    assert_same(predictor.inference_model(images), plain(model, images))
    assert predictor.optimize(chunk_tokens=10, precision="auto") is predictor
    assert predictor.inference_model.options == InferenceOptions(chunk_tokens=10)
    assert predictor.precision == fastest_precision(torch.device("cpu"))
    assert len(predictor.optimize(False, precision="fp32").inference_model(images).logits) == len(plain(model, images).logits)
    predictor.model = build(two_stage=True, box_refinement=True)
    assert_same(predictor.inference_model(images), plain(predictor.model, images))
    with pytest.raises(TypeError, match="chunks"):
        predictor.optimize(chunks=3)


@pytest.mark.skipif(not fused_convolutions_work(torch.bfloat16), reason="no fused convolutions of bfloat16 here")
@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 2)])
def test_bfloat16_convolutions_of_one_module_at_several_sizes(amx, kernel, stride, monkeypatch):
    """With weights in oneDNN's layout, which is made for no size in particular, and without."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    torch.manual_seed(0)
    convolution = nn.Conv2d(64, 96, kernel, stride, padding=kernel // 2).requires_grad_(False)
    fused = FusedConvolution(convolution, relu=True, dtype=torch.bfloat16)
    rounded = copy.deepcopy(convolution).bfloat16().double()
    for height, width in ((32, 48), (9, 7), (32, 48)):
        x = torch.randn(2, 64, height, width).bfloat16()
        exact = rounded(x.double())
        added = torch.randn_like(exact).bfloat16()
        torch.testing.assert_close(fused(x, added).double(), (exact + added.double()).relu(), atol=0.02, rtol=0.01)
