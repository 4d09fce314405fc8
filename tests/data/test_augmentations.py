import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from deformable_detr.data.augmentations import HueJitter, ScaleJitter, build_color_jitter, kept_share
from deformable_detr.data.transforms import DetectionTransform, ResizeShortSide, train_transform
from deformable_detr.structures import Target


def target_of(boxes):
    return Target(torch.tensor(boxes).reshape(-1, 4), torch.arange(len(boxes)), 7)


def jitter(low, high, side=40):
    return ScaleJitter(ResizeShortSide([side]), (low, high), fill=(10, 20, 30))


def found_box(image, threshold=128):
    """cxcywh in [0, 1] of the bright pixels."""
    rows, columns = np.nonzero(image[0].numpy() > threshold)
    left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    height, width = image.shape[1:]
    return [(left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height]


@pytest.mark.parametrize("scale", [0.25, 0.5, 1.0, 1.5])
def test_boxes_follow_the_pixels(scale):
    image = torch.zeros(3, 80, 120, dtype=torch.uint8)
    image[:, 32:48, 48:64] = 255
    for seed in range(8):
        torch.manual_seed(seed)
        changed, target = DetectionTransform(jitter(scale, scale, side=160))(image, target_of([[56 / 120, 0.5, 16 / 120, 0.2]]))
        assert changed.shape == (3, 160, 240)
        if len(target):  # at 1.5 the window may miss it
            assert target.boxes[0].tolist() == pytest.approx(found_box(changed), abs=1.5 / 160)
            assert scale <= 1 or target.boxes[0, 3] <= 0.2 * scale + 0.01


def test_a_smaller_image_lies_on_a_canvas_and_a_larger_one_is_cut():
    image = torch.full((3, 80, 120), 200, dtype=torch.uint8)
    small, _ = DetectionTransform(jitter(0.5, 0.5))(image)
    assert small.shape == (3, 40, 60)
    assert (small[0] == 200).sum() == 20 * 30
    assert small[:, small[0] != 200].unique(dim=1).T.tolist() == [[10, 20, 30]]
    large, target = DetectionTransform(jitter(2.0, 2.0))(image, target_of([[0.5, 0.5, 1.0, 1.0]]))
    assert (large == 200).all()
    assert target.boxes.tolist() == [[0.5, 0.5, 1.0, 1.0]]  # a quarter is left: more than a fifth


def test_boxes_that_the_cut_leaves_little_of_are_dropped(monkeypatch):
    transform = jitter(2.0, 2.0)
    parameters = {"window": (0, 0, 20, 20), "size": [40, 40], "padding": [0, 0, 0, 0]}
    monkeypatch.setattr(transform, "make_params", lambda _: parameters)
    boxes = [[20 / 40, 0.25, 0.25, 0.5], [22 / 40, 0.25, 0.25, 0.5], [23.5 / 40, 0.25, 0.25, 0.5]]  # half, 3/10, 3/20 are left
    _, target = DetectionTransform(transform)(torch.zeros(3, 40, 40, dtype=torch.uint8), target_of(boxes))
    assert target.labels.tolist() == [0, 1]
    np.testing.assert_allclose(target.boxes, [[0.875, 0.5, 0.25, 1.0], [0.925, 0.5, 0.15, 1.0]], rtol=1e-6)


def test_scales_cover_the_range():
    scales = [jitter(0.5, 1.0).make_params([tv_tensors.Image(torch.zeros(3, 100, 100))])["size"][0] / 40 for _ in range(300)]
    assert min(scales) == pytest.approx(0.5, abs=0.03)
    assert max(scales) == pytest.approx(1.0, abs=0.03)
    assert np.mean(scales) == pytest.approx(0.75, abs=0.03)


def test_kept_share():
    before = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 5, 9]])
    after = torch.tensor([[0.0, 0, 5, 2], [8, 0, 6, 10], [5, 5, 5, 9]])
    assert kept_share(before, after).tolist() == pytest.approx([0.1, 0, 0])


def test_colours():
    image = tv_tensors.Image(torch.tensor([200, 100, 50], dtype=torch.uint8)[:, None, None].expand(3, 4, 4).contiguous())
    assert torch.equal(build_color_jitter(0.0)(image), image)
    brightness = build_color_jitter((0.5, 0, 0, 0))
    for _ in range(20):
        ratio = brightness(image)[:, 0, 0].float() / torch.tensor([200.0, 100, 50])
        assert 0.48 <= ratio.min() <= ratio.max() <= 1.5
        assert ratio[1:].std() < 0.03  # the first channel may be cut at 255
    hue = build_color_jitter((0, 0, 0, 0.5))
    assert {int(hue(image)[:, 0, 0].argmax()) for _ in range(40)} == {0, 1, 2}
    assert {int(build_color_jitter(0.4)(image)[:, 0, 0].argmax()) for _ in range(40)} == {0}  # the hue turns by 18 degrees at most


def test_defaults_are_the_official_recipe():
    settings = {"train_short_sides": [20], "crop_short_sides": [], "crop_range": (1, 1), "max_long_side": 99}
    transform = train_transform(**settings, mean=(0.5, 0.5, 0.5), std=(1, 1, 1))
    assert "ScaleJitter" not in repr(transform)
    assert "ColorJitter" not in repr(transform)


def test_hue_is_that_of_torchvision(monkeypatch):
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 50), dtype=np.uint8))
    jitter = HueJitter(0.5)
    for shift in (-100, -7, 30, 128):
        monkeypatch.setattr(jitter, "make_params", lambda _, shift=shift: {"shift": shift})
        turned = jitter(tv_tensors.Image(image))
        assert (turned.int() - F.adjust_hue(image, shift / 256).int()).abs().max() <= 10  # HSV in eight bits
    assert {HueJitter(0.25).make_params([])["shift"] for _ in range(3000)} >= set(range(-63, 64))


@pytest.mark.parametrize("strength", [-0.1, (0.1, 0.1), (0, 0, 0, 0.6)])
def test_wrong_strengths(strength):
    with pytest.raises(ValueError, match="color_jitter"):
        build_color_jitter(strength)


@pytest.mark.parametrize("scales", [(0.0, 1.0), (2.0, 1.0)])
def test_wrong_scales(scales):
    with pytest.raises(ValueError, match="scale_jitter"):
        jitter(*scales)
