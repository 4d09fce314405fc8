from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from deformable_detr.config import Metadata
from deformable_detr.export import export_model, files
from deformable_detr.export.form import ExportForm
from deformable_detr.export.network import TensorNetwork
from deformable_detr.export.preprocessing import GREY_LEVELS, prepared, preprocessing_graph
from deformable_detr.presets import model_preset
from deformable_detr.structures import ImageBatch, Predictions

METADATA = replace(Metadata(model_preset("tiny")), eval_short_side=80, max_long_side=133)


@pytest.fixture(scope="module")
def run():
    session = onnxruntime.InferenceSession(preprocessing_graph(ExportForm(METADATA)).SerializeToString())
    return lambda images: session.run(None, {"images": images})[0]


@pytest.mark.parametrize("size", [(60, 75), (75, 60), (80, 100), (333, 222), (200, 401), (401, 200), (40, 500), (7, 9), (30, 30)])
def test_sizes_and_pixels_are_those_of_torchvision(run, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found, expected = run(image[None]), prepared(image, METADATA).numpy()
    assert found.shape == expected.shape
    levels = np.abs(found - expected) * np.reshape(METADATA.std, (3, 1, 1)) * 255
    assert levels.max() <= GREY_LEVELS
    assert levels.mean() < 0.1


def test_a_batch_is_its_images(run):
    images = np.random.default_rng(1).integers(0, 256, (3, 50, 70, 3), dtype=np.uint8)
    np.testing.assert_array_equal(run(images), np.concatenate([run(image[None]) for image in images]))


def test_a_image_of_the_right_size_is_only_normalised(run):
    image = np.random.default_rng(2).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    expected = (image / 255 - np.array(METADATA.mean)) / np.array(METADATA.std)
    np.testing.assert_allclose(run(image[None])[0], torch.from_numpy(expected).permute(2, 0, 1).numpy(), atol=1e-5)


class Colours(nn.Module):
    """The smallest detector: one query, whose classes are the mean colours of the image, and whose box the brightest ones."""

    metadata = replace(METADATA, model=replace(METADATA.model, two_stage=False))

    def __init__(self) -> None:
        super().__init__()
        self.classes = nn.Linear(3, 3)

    def forward(self, batch: ImageBatch) -> Predictions:
        brightest: Tensor = batch.images.amax((2, 3))[:, None]
        boxes = torch.cat((brightest, brightest[..., :1]), -1).sigmoid()
        return Predictions(self.classes(batch.images.mean((2, 3)))[None, :, None], boxes[None])


def test_a_file_with_preparation_takes_several_images(tmp_path, monkeypatch):
    """Whole networks are exported with masks for any batch, and with preparation for one image: see test_files.py."""
    monkeypatch.setattr(files, "network_of", lambda network: network)
    monkeypatch.setattr(files, "exportable_network", lambda network, top_k: TensorNetwork(network.model, top_k))
    monkeypatch.setattr(files, "plain_network", TensorNetwork)
    torch.manual_seed(0)
    model = Colours().eval()
    export_model(model, tmp_path / "colours.onnx", preprocess=True, top_k=3)  # type: ignore[arg-type]
    session = onnxruntime.InferenceSession(tmp_path / "colours.onnx")
    assert [tensor.shape[0] for tensor in (*session.get_inputs(), *session.get_outputs())] == ["batch"] * 4
    generator = np.random.default_rng(3)
    images = np.stack([generator.integers(0, brightest, (60, 84, 3), dtype=np.uint8) for brightest in (255, 128, 64)])
    scores, labels, _ = (np.asarray(output) for output in session.run(None, {"images": images}))
    means = np.stack([prepared(image, METADATA).mean((0, 2, 3)).numpy() for image in images])
    expected = 1 / (1 + np.exp(-(means @ model.classes.weight.detach().numpy().T + model.classes.bias.detach().numpy())))
    np.testing.assert_allclose(scores, -np.sort(-expected), atol=1e-3)  # a pixel may be one grey level off
    np.testing.assert_array_equal(labels, np.argsort(-expected))
