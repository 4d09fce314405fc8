"""The whole detector on a real GPU, beside the same one on the CPU; skipped where there is none."""

import copy

import pytest
import torch

from deformable_detr import SetCriterion, Target, build_model
from deformable_detr.acceleration.model import InferenceModel
from deformable_detr.acceleration.options import InferenceOptions
from deformable_detr.cli.demo_detector import train_demo
from deformable_detr.structures import ImageBatch

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"), pytest.mark.usefixtures("exact")]

SAME = [(3, 128, 160), (3, 128, 160)]
PADDED = [(3, 128, 160), (3, 96, 144)]
FORMS = {
    "plain": None,
    "optimised": InferenceOptions(),
    "CUDA graphs": InferenceOptions(cuda_graphs=True),
}


def detector(preset="r50"):
    torch.manual_seed(0)
    model = build_model(preset, num_classes=5, pretrained_backbone=False, backbone="resnet18.a1_in1k", dropout=0.0)
    with torch.no_grad():
        for parameter in model.class_heads.parameters():  # so that scores differ
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def images(sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(*size, generator=generator) for size in sizes]


def on_gpu(batch):
    return [image.cuda() for image in batch]


@pytest.mark.parametrize("sizes", [SAME, PADDED], ids=["same size", "padded"])
@pytest.mark.parametrize("form", FORMS)
def test_predictions_are_those_of_the_cpu(form, sizes):
    model = detector().eval()
    with torch.inference_mode():
        expected = model(images(sizes))
    model.cuda()
    options = FORMS[form]
    run = model if options is None else InferenceModel(model, options)
    for _ in range(3):  # with graphs the second call replays
        with torch.inference_mode():
            found = run(on_gpu(images(sizes)))
        torch.testing.assert_close(found.logits[-1].cpu(), expected.logits[-1], atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(found.boxes[-1].cpu(), expected.boxes[-1], atol=2e-5, rtol=1e-4)


def test_graphs_of_several_shapes():
    model = detector().eval().cuda()
    fast, plain = InferenceModel(model, InferenceOptions(cuda_graphs=True)), InferenceModel(model, InferenceOptions())
    for size in (SAME, SAME[:1], [(3, 96, 96)], SAME, [(3, 64, 96)] * 3, [(3, 64, 64)], SAME):
        batch = on_gpu(images(size))
        torch.testing.assert_close(fast(batch).logits, plain(batch).logits, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [InferenceOptions(), InferenceOptions(cuda_graphs=True)], ids=["optimised", "CUDA graphs"])
@pytest.mark.parametrize("preset", ["r50", "r50-two-stage", "r50-dino"])
def test_bf16_is_as_near_as_autocast(preset, options):
    model = detector(preset).eval().cuda()
    batch = on_gpu(images(PADDED if options.cuda_graphs is False else SAME))
    with torch.inference_mode():
        exact = model(batch)
        with torch.autocast("cuda", torch.bfloat16):
            usual = model(batch)
    found = InferenceModel(model, options, "bf16")(batch)

    def scores(predictions):  # of proposals of nearly the same score others may be chosen, so in the order of the scores
        return predictions.logits[-1].float().sigmoid().sort(dim=1).values

    errors = [(scores(one) - scores(exact)).abs().mean() for one in (found, usual)]
    assert errors[0] < 2 * errors[1] + 2e-4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("options", [InferenceOptions(), InferenceOptions(cuda_graphs=True)], ids=["optimised", "CUDA graphs"])
def test_changed_weights_count_at_once(options, precision):
    model = detector().eval().cuda()
    fast, batch = InferenceModel(model, options, precision), on_gpu(images(SAME))
    before = fast(batch).logits
    with torch.no_grad():
        model.get_parameter("class_heads.0.bias").data.add_(1.0)  # PyTorch does not count this write
    torch.testing.assert_close(fast(batch).logits, before + 1.0, atol=1e-3, rtol=1e-3)
    other = copy.deepcopy(model.state_dict())
    other["neck.projections.0.0.weight"].mul_(2.0)
    model.load_state_dict(other)
    torch.testing.assert_close(fast(batch).logits, InferenceModel(model, options, precision)(batch).logits)


def test_a_loss_and_its_gradients_are_those_of_the_cpu():
    model, criterion = detector("r50-refine").train(), SetCriterion(5)
    targets = [
        Target(torch.tensor([[0.4, 0.5, 0.3, 0.4], [0.7, 0.3, 0.2, 0.2]]), torch.tensor([1, 4])),
        Target(torch.tensor([[0.5, 0.5, 0.5, 0.5]]), torch.tensor([2])),
    ]

    def losses(model, batch, targets):
        found = criterion(model(ImageBatch.from_images(batch)), targets)
        criterion.weighted_sum(found).backward()
        return found

    twin = copy.deepcopy(model).cuda()
    expected = losses(model, images(PADDED), targets)
    found = losses(twin, on_gpu(images(PADDED)), [target.to("cuda") for target in targets])
    for name, value in expected.items():
        torch.testing.assert_close(found[name].cpu(), value, rtol=1e-3, atol=1e-4)
    wanted = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None])
    norms = torch.stack([p.grad.norm().cpu() for p in twin.parameters() if p.grad is not None])
    assert ((norms - wanted).abs() / wanted.max()).max() < 5e-3


def test_the_demo_learns(tmp_path):
    result = train_demo(str(tmp_path / "demo"), steps=200, seed=0, device="cuda")
    assert (result.metrics["ap50"] or 0) > 0.2
