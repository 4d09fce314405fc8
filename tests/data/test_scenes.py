import json

import numpy as np
import pytest

from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.dataset import open_dataset
from deformable_detr.data.images import read_image
from deformable_detr.data.scenes import LARGEST_OVERLAP, SHAPES, _shape_mask, _tight_box, draw_scene, generate_scenes


def test_data_set_is_valid_and_reproducible(tmp_path):
    first = generate_scenes(tmp_path / "a", train=12, val=3, image_size=64, seed=4)
    again = generate_scenes(tmp_path / "b", train=12, val=3, image_size=64, seed=4)
    for split, count in (("train", 12), ("val", 3)):
        dataset = CocoDataset(open_dataset(first).split(split), lambda image, target: (image, target), training=True)
        assert len(dataset) == count
        assert dataset.categories.ids == (3, 7, 20, 90)
        for index in range(count):
            assert (dataset[index][0] == read_image(again / split / dataset.image_path(index).name)).all()
        texts = [(root / "annotations" / f"instances_{split}.json").read_text() for root in (first, again)]
        assert texts[0] == texts[1]
    sizes = {(i["height"], i["width"]) for i in json.loads((first / "annotations/instances_train.json").read_text())["images"]}
    assert len(sizes) > 1
    assert all(56 <= side <= 72 for size in sizes for side in size)


def test_scenes_keep_their_promises():
    counts, longest = set(), []
    for number in range(150):
        image, objects = draw_scene(np.random.default_rng(number))
        counts.add(len(objects))
        for index, (_, (left, top, right, bottom)) in enumerate(objects):
            assert 0 <= left < right <= image.shape[1] and 0 <= top < bottom <= image.shape[0]
            longest.append(max(right - left, bottom - top))
            for _, other in objects[:index]:
                common = max(min(right, other[2]) - max(left, other[0]), 0) * max(min(bottom, other[3]) - max(top, other[1]), 0)
                areas = ((right - left) * (bottom - top), (other[2] - other[0]) * (other[3] - other[1]))
                assert common <= LARGEST_OVERLAP * min(areas) + 1e-6
    assert counts == set(range(6))
    assert min(longest) < 16 and 60 < max(longest) <= 76


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_boxes_are_tight(shape):
    mask = _shape_mask(np.random.default_rng(1), shape, 40)
    left, top, right, bottom = _tight_box(mask, 5, 7)
    inside = mask[top - 7 : bottom - 7, left - 5 : right - 5] >= 0.5
    assert inside.sum() == (mask >= 0.5).sum()
    assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="at least 1 image"):
        generate_scenes(tmp_path, train=0, val=1)
    with pytest.raises(ValueError, match="at least 32"):
        generate_scenes(tmp_path, train=1, val=1, image_size=8)
