"""Networks that other tools have wrapped or changed: what is saved computes the same, and what cannot be saved is refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from deformable_detr.checkpoints import load_pretrained, save_weights
from deformable_detr.detector import Detector
from deformable_detr.export.network import plain_network
from deformable_detr.model import build_model
from deformable_detr.model.plain import as_built
from deformable_detr.structures import ImageBatch


def pruned(model):
    prune.l1_unstructured(model.encoder.layers[0].ffn.linear1, "weight", 0.5)
    prune.random_structured(model.decoder.layers[0].cross_attn.value_proj, "weight", 0.2, dim=0)
    return model


def parametrised(model):
    parametrizations.weight_norm(model.encoder.layers[0].ffn.linear1)
    parametrizations.orthogonal(model.decoder.layers[0].cross_attn.output_proj)
    return model


def wrapped_parts(model):
    model.encoder = torch.compile(model.encoder, backend="eager")
    model.backbone = nn.DataParallel(model.backbone)
    return model


def compiled(model):
    return torch.compile(model, backend="eager")


CHANGES = [pruned, parametrised, wrapped_parts, compiled, nn.DataParallel, torch.optim.swa_utils.AveragedModel]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model("tiny", num_classes=3).eval()


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@torch.no_grad()
def test_what_is_saved_computes_the_same(model, change, tmp_path):
    images = ImageBatch.from_images([torch.rand(3, 64, 80)])
    names = set(model.state_dict())
    changed = change(model).eval()
    expected, had = changed(images), set(changed.state_dict())
    saved = load_pretrained(save_weights(tmp_path / "saved.safetensors", changed)).eval()
    assert set(saved.state_dict()) == names
    for one in (saved, as_built(changed)):
        torch.testing.assert_close(one(images).logits, expected.logits, rtol=0, atol=1e-5)
    logits = plain_network(changed)(images.images, images.padding_mask)[0]
    torch.testing.assert_close(logits, expected.logits[-1], rtol=0, atol=1e-5)
    assert set(changed.state_dict()) == had
    torch.testing.assert_close(changed(images).logits, expected.logits, rtol=0, atol=0)


class Foreign(nn.Module):
    """As an exported file: answers without layers."""

    def __init__(self, model):
        super().__init__()
        self.metadata = replace(model.metadata)


USES = {
    "describe": lambda detector, folder: detector.describe(torch.zeros(3, 64, 80, dtype=torch.uint8)),
    "explain": lambda detector, folder: detector.explain(torch.zeros(3, 64, 80, dtype=torch.uint8)),
    "save": lambda detector, folder: detector.save(folder / "saved.safetensors"),
    "save_pretrained": lambda detector, folder: detector.save_pretrained(folder / "saved"),
    "push_to_hub": lambda detector, folder: detector.push_to_hub("owner/name"),
    "export": lambda detector, folder: detector.export(folder / "detector.onnx"),
}


@pytest.mark.parametrize("use", USES)
def test_a_network_without_layers_is_refused(model, use, tmp_path):
    with pytest.raises(TypeError, match="no weights in a Foreign: take the detector that it was made from"):
        USES[use](Detector(Foreign(model), device="cpu"), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("use", ["save", "export"])
def test_quantised_parts_are_refused(model, use, tmp_path):
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(TypeError, match=r"encoder\.layers\.0\.self_attn\.\w+ of the model is quantised"):
        USES[use](Detector(quantised, device="cpu"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_module_without_classes_is_no_detector(model):
    with pytest.raises(TypeError, match=r"a DataParallel has no `metadata`.*take the one inside it"):
        Detector(nn.DataParallel(model), device="cpu")
