from dataclasses import replace

import numpy as np
import pytest
import torch

from deformable_detr.boxes import pixels_of, xyxy_to_cxcywh
from deformable_detr.config import DataConfig
from deformable_detr.data.coco import SampleKey
from deformable_detr.data.loader import Allowed, TrainingSampler, build_dataset, build_loader
from deformable_detr.data.mixing import Mixing, Scene, make_mosaic, mix_up, paste_objects
from deformable_detr.data.scenes import generate_scenes
from deformable_detr.structures import Target

CONFIG = DataConfig(train_short_sides=(40,), crop_short_sides=(), max_long_side=64)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return generate_scenes(tmp_path_factory.mktemp("scenes"), train=9, val=1, image_size=48, seed=1)


def scene(height, width, boxes, label=0):
    """Black; each object is a full rectangle whose value is its own: 100 + 20 · number (+ label)."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for number, (left, top, right, bottom) in enumerate(boxes):
        image[:, top:bottom, left:right] = 100 + 20 * number + label
    labels = torch.full((len(boxes),), label)
    return Scene(image, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels)


def extent(mask):
    rows, columns = np.nonzero(mask.numpy())
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("place", range(4))
def test_mosaic_boxes_lie_on_their_objects(place):
    """One of the four has an object; its pixels in the mosaic say where its box must be."""
    sizes = [(60, 80), (90, 50), (30, 200), (64, 64)]
    height, width = sizes[place]
    parts = [scene(*size, []) for size in sizes]
    parts[place] = scene(height, width, [(width // 4, height // 4, 3 * width // 4, 3 * height // 4)])
    seen = 0
    for seed in range(20):
        torch.manual_seed(seed)
        mixed = make_mosaic(parts)
        assert mixed.size == (60, 80)
        if len(mixed.labels):
            seen += 1
            np.testing.assert_allclose(mixed.boxes[0], extent(mixed.image[0] > 50), atol=1.01)
    assert seen >= 5


def test_mosaic_fills_the_canvas():
    parts = [
        Scene(torch.full((3, 40, 50), 50 * n + 50, dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0).long()) for n in range(4)
    ]
    mixed = make_mosaic(parts)
    assert mixed.image[0].unique().tolist() == [50, 100, 150, 200]
    assert [int(mixed.image[0, y, x]) for y, x in [(0, 0), (0, 49), (39, 0), (39, 49)]] == [50, 100, 150, 200]
    assert mixed.boxes.shape == (0, 4)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 2)])
def test_images_that_are_hardly_any(size):
    """Every mixture of images of a pixel or two has their size, and boxes within."""
    whole = Target(torch.tensor([[0.5, 0.5, 1, 1]]), torch.tensor([0]), 1, size)
    for mixing in (Mixing(mosaic=1.0), Mixing(copy_paste=1.0), Mixing(mixup=1.0), Mixing(1.0, 1.0, 1.0)):
        image, target = mixing(0, 2, lambda index: (torch.full((*size, 3), 9, dtype=torch.uint8).permute(2, 0, 1), whole))
        assert image.shape == (3, *size) and (image == 9).all()
        assert ((target.boxes >= 0) & (target.boxes <= 1)).all()


def test_mixup_blends_pixels_and_keeps_both_sets_of_boxes():
    torch.manual_seed(0)
    first, second = scene(40, 60, [(5, 5, 20, 20)]), scene(20, 30, [(20, 10, 25, 15)], label=1)
    mixed = mix_up(first, second)  # the second one at twice its size
    assert mixed.boxes.tolist() == [[5, 5, 20, 20], [40, 20, 50, 30]]
    assert mixed.labels.tolist() == [0, 1]
    share = int(mixed.image[0, 10, 10]) / 100
    assert 0.1 < share < 0.9
    assert int(mixed.image[0, 25, 45]) == pytest.approx(101 * (1 - share), abs=1)


def test_mixup_shares_are_near_a_half():
    one = Scene(torch.full((3, 2, 2), 200, dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0).long())
    none = replace(one, image=torch.zeros(3, 2, 2, dtype=torch.uint8))
    shares = [int(mix_up(one, none).image[0, 0, 0]) / 200 for _ in range(500)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert np.std(shares) == pytest.approx((1 / (4 * 17)) ** 0.5, abs=0.02)  # of Beta(8, 8)


def test_pasted_objects_and_what_they_hide():
    """The visible pixels of every object, pasted or not, say which boxes there must be."""
    ground = scene(60, 80, [(4, 4, 30, 26), (40, 10, 52, 50), (10, 40, 20, 50)])
    other = scene(60, 80, [(10, 10, 40, 30), (50, 20, 70, 55)], label=5)
    hidden = 0
    for seed in range(60):
        torch.manual_seed(seed)
        mixed = paste_objects(ground, other)
        values, expected = {100: 26 * 22, 120: 12 * 40, 140: 100}, {}
        for value, area in values.items():
            visible = mixed.image[0] == value
            if visible.sum() >= 0.2 * area:
                expected[value] = extent(visible)
        boxes = mixed.boxes[mixed.labels == 0].tolist()
        assert boxes == list(expected.values())
        hidden += len(values) - len(expected)
        assert 1 <= (mixed.labels == 5).sum() <= 2
        for box in mixed.boxes[mixed.labels == 5].int().tolist():
            inside = mixed.image[0, box[1] : box[3], box[0] : box[2]]
            assert ((inside == 105) | (inside == 125)).any(dim=0).all()
    assert hidden > 3
    assert ground.image.max() == 140  # the image that is pasted into is not changed
    assert len(paste_objects(ground, scene(20, 20, [])).labels) == 3


def test_an_object_thinner_than_the_last_place_of_its_position():
    """At the right edge of a wide image its left is its right once it has been a share of the image: no pixel was left to paste."""
    edge = Target(xyxy_to_cxcywh(torch.tensor([[3999.9998, 1, 4000, 5]]) / pixels_of((10, 4000))), torch.tensor([0]), 1, (10, 4000))
    image, target = Mixing(copy_paste=1.0)(0, 1, lambda index: (torch.zeros(3, 10, 4000, dtype=torch.uint8), edge))
    assert image.shape == (3, 10, 4000) and len(target) >= 1


def test_the_rule_of_a_fifth():
    """A window that shows a fifth or more of an object keeps it."""
    other = scene(40, 160, [(0, 0, 160, 40)], label=1)
    ground = scene(40, 40, [])
    mixed = mix_up(ground, other)  # a quarter of the object is seen
    assert mixed.boxes.tolist() == [[0, 0, 40, 40]]
    assert len(mix_up(ground, scene(40, 240, [(0, 0, 240, 40)])).labels) == 0  # a sixth


def test_nothing_happens_without_probabilities():
    image, target = torch.zeros(3, 4, 4, dtype=torch.uint8), Target(torch.zeros(0, 4), torch.zeros(0).long(), 3)
    before = torch.get_rng_state()
    assert Mixing()(0, 5, lambda index: (image, target)) == (image, target)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match=r"copy_paste must be in \[0, 1\]"):
        DataConfig(copy_paste=1.5)


def test_targets_of_mixed_samples(scenes):
    config = replace(CONFIG, mosaic=1.0, copy_paste=1.0, mixup=1.0)
    dataset = build_dataset(scenes, "train", config, training=True)
    plain = build_dataset(scenes, "train", CONFIG, training=True)
    image, target = dataset[SampleKey(2, seed=1, mix=True)]
    assert target.image_id == plain.target(2).image_id
    assert target.boxes.min() >= 0
    assert target.boxes.max() <= 1
    assert len(target) > len(plain.target(2))
    unmixed, _ = dataset[SampleKey(2, seed=1)]
    torch.testing.assert_close(unmixed, plain[SampleKey(2, seed=1, mix=True)][0], rtol=0, atol=0)
    assert image.shape != unmixed.shape or not torch.equal(image, unmixed)


def test_mixing_depends_on_seed_epoch_and_image_alone(scenes):
    config = replace(CONFIG, mosaic=0.5, copy_paste=0.5, mixup=0.5, color_jitter=0.3, scale_jitter=(0.5, 1.5))
    dataset = build_dataset(scenes, "train", config, training=True)

    def batches(workers, skip=0, mixing=True):
        loader = build_loader(dataset, batch_size=2, training=True, num_workers=workers, seed=5)
        assert isinstance(loader.sampler, TrainingSampler)
        loader.sampler.set_epoch(2, skip, Allowed(mixing))
        return [(batch.images, [target.boxes for target in targets]) for batch, targets in loader]

    torch.manual_seed(0)
    expected = batches(0)
    torch.manual_seed(1)
    torch.testing.assert_close(batches(2), expected, rtol=0, atol=0)
    torch.testing.assert_close(batches(0, skip=3), expected[3:], rtol=0, atol=0)
    unmixed = build_dataset(scenes, "train", replace(config, mosaic=0.0, copy_paste=0.0, mixup=0.0), training=True)
    without = batches(0, mixing=False)
    dataset = unmixed
    torch.testing.assert_close(without, batches(0), rtol=0, atol=0)
