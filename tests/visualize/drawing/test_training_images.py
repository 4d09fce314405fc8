import numpy as np
import torch

from deformable_detr.categories import Categories
from deformable_detr.config import DataConfig
from deformable_detr.structures import ImageBatch, Target
from deformable_detr.visualize.drawing.training_images import STRIPE_GREYS, choices, denormalised, draw_sample


def test_pixels_are_those_before_normalisation():
    data = DataConfig()
    pixels = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    assert torch.equal(denormalised((pixels / 255 - mean) / std, data), pixels)


def test_padding_is_striped_and_boxes_belong_to_the_image():
    data = DataConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    batch = ImageBatch.from_images([torch.zeros(3, 240, 480), torch.zeros(3, 480, 600)])
    target = Target(torch.tensor([[0.5, 0.5, 0.5, 0.5]]), torch.tensor([0]))
    drawn = draw_sample(batch, 0, target, data, Categories.from_names(["thing"]))
    assert drawn.shape == (480, 600, 3)
    assert set(np.unique(drawn[240:])) == set(np.unique(drawn[:, 480:])) == set(STRIPE_GREYS)
    rows, columns = np.nonzero(drawn[:240, :480].max(axis=2) > 120)
    assert abs(rows.max() - 180) <= 2
    assert (abs(columns.min() - 120) <= 2, abs(columns.max() - 360) <= 2) == (True, True)


def test_choices_keep_the_strength_that_is_set():
    shown = choices(DataConfig(color_jitter=0.2, mosaic=0.3, crop_short_sides=()))
    assert shown["color_jitter 0.2"].color_jitter == 0.2
    assert shown["mosaic 1.0"].mosaic == 1.0
    assert shown["mosaic 1.0"].color_jitter == 0.0
    assert next(iter(shown)) == "as it is"
    assert not any("crop" in title for title in shown)
