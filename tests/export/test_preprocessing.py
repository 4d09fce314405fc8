from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from deformable_detr.config import Metadata
from deformable_detr.export.form import ExportForm
from deformable_detr.export.preprocessing import GREY_LEVELS, prepared, preprocessing_graph
from deformable_detr.presets import model_preset

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
