import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.data.augmentations import HueJitter
from deformable_detr.data.transforms import (
    TURNS,
    DetectionTransform,
    RandomSizeCrop,
    ResizeShortSide,
    Transpose,
    eval_transform,
    resized_size,
    train_transform,
)
from deformable_detr.structures import Target

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


def target_of(boxes):
    return Target(torch.tensor(boxes).reshape(-1, 4), torch.arange(len(boxes)), 7, (20, 40))


@pytest.mark.parametrize(
    ("size", "short", "long", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1066)),  # 1066.67 rounded down
        ((640, 480), 800, 1333, (1066, 800)),
        ((500, 500), 800, 1333, (800, 800)),
        ((400, 1000), 800, 1333, (533, 1332)),  # 1333 * .4 = 533.2; 533 * 2.5 = 1332.5
        ((800, 1200), 800, 1333, (800, 1200)),
        ((480, 640), 400, None, (400, 533)),
        ((1, 5000), 800, 1333, (1, 5000)),  # never less than a pixel
    ],
)
def test_resized_size(size, short, long, expected):
    height, width = size
    assert resized_size(height, width, short, long) == expected


def test_eval_transform_matches_pillow():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    image, target = eval_transform(10, 100, MEAN, STD)(torch.from_numpy(pixels).permute(2, 0, 1), target_of([[0.5, 0.5, 0.2, 0.4]]))
    resized = np.asarray(Image.fromarray(pixels).resize((20, 10), Image.Resampling.BILINEAR)) / 255
    expected = torch.from_numpy((resized - MEAN) / STD).permute(2, 0, 1).float()
    assert type(image) is torch.Tensor
    torch.testing.assert_close(image, expected, atol=1.01 / 255 / min(STD), rtol=0)  # one 8-bit step
    torch.testing.assert_close(target.boxes, torch.tensor([[0.5, 0.5, 0.2, 0.4]]))
    assert (target.image_id, target.image_size) == (7, (20, 40))


def test_eval_transform_without_target():
    image, target = eval_transform(10, 100, MEAN, STD)(torch.zeros(3, 20, 40, dtype=torch.uint8), None)
    assert image.shape == (3, 10, 20)
    assert target is None


def test_flips_and_transpose_carry_the_boxes():
    settings = {
        "train_short_sides": [20],
        "crop_short_sides": [],
        "crop_range": (1, 1),
        "max_long_side": 99,
        "mean": MEAN,
        "std": STD,
    }
    image = torch.zeros(3, 20, 40, dtype=torch.uint8)
    image[:, 2:6, 4:16] = 255  # xyxy 4, 2, 16, 6
    boxes = [[0.25, 0.2, 0.3, 0.2]]
    for turn, expected in (
        (train_transform(**settings, horizontal_flip=1.0), [0.75, 0.2, 0.3, 0.2]),
        (train_transform(**settings, horizontal_flip=0.0, vertical_flip=1.0), [0.25, 0.8, 0.3, 0.2]),
        (TURNS["vertical_flip"], [0.25, 0.8, 0.3, 0.2]),
        (TURNS["transpose"], [0.2, 0.25, 0.2, 0.3]),
    ):
        changed, target = turn(image, target_of(boxes))
        torch.testing.assert_close(target.boxes[0], torch.tensor(expected))
        rows, columns = torch.nonzero(changed[0] > 0, as_tuple=True)
        height, width = changed.shape[1:]
        left, right, top, bottom = (
            columns.min() / width,
            (columns.max() + 1) / width,
            rows.min() / height,
            (rows.max() + 1) / height,
        )
        found = torch.stack(((left + right) / 2, (top + bottom) / 2, right - left, bottom - top))
        torch.testing.assert_close(found, torch.tensor(expected))


def test_the_default_device_has_no_say():
    pixels = torch.arange(3 * 6 * 8, dtype=torch.uint8).reshape(3, 6, 8)
    target = Target(torch.tensor([[0.5, 0.5, 0.5, 0.5]]), torch.tensor([0]))
    train = DetectionTransform(Transpose(), HueJitter(0.25))
    predict = eval_transform(6, 8, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    torch.manual_seed(0)
    expected = train(pixels, target), predict(pixels)[0]
    torch.manual_seed(0)
    torch.set_default_device("meta")
    try:
        found = train(pixels, target), predict(pixels)[0]
    finally:
        torch.set_default_device(None)
    assert torch.equal(found[1], expected[1]) and torch.equal(found[0][0], expected[0][0])
    assert torch.equal(found[0][1].boxes, expected[0][1].boxes)


def test_crop_clips_boxes_and_removes_what_is_outside(monkeypatch):
    crop = RandomSizeCrop(10, 10)
    monkeypatch.setattr(crop, "make_params", lambda _: {"top": 5, "left": 10, "height": 10, "width": 10})
    boxes = [[0.375, 0.5, 0.25, 0.5], [0.125, 0.5, 0.25, 1.0], [0.5, 0.5, 1.0, 1.0]]  # 10…20 x 5…15; 0…10 x 0…20; all
    image, target = DetectionTransform(crop)(torch.zeros(3, 20, 40, dtype=torch.uint8), target_of(boxes))
    assert image.shape == (3, 10, 10)
    assert target.labels.tolist() == [0, 2]
    torch.testing.assert_close(target.boxes, torch.tensor([[0.5, 0.5, 1, 1], [0.5, 0.5, 1, 1]]))


def test_crop_draws_sides_within_range_and_image():
    crop, image = RandomSizeCrop(8, 15), torch.zeros(3, 12, 40)
    sizes = [tuple(crop(image).shape[1:]) for _ in range(300)]
    assert {h for h, _ in sizes} == set(range(8, 13))
    assert {w for _, w in sizes} == set(range(8, 16))
    assert RandomSizeCrop(50, 60)(image).shape == image.shape  # a small image stays whole


def test_wrong_settings():
    with pytest.raises(ValueError, match="crop_range"):
        RandomSizeCrop(5, 4)
    with pytest.raises(ValueError, match="short sides"):
        ResizeShortSide([])
