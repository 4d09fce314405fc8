"""AP over draws of the images, against COCO's evaluation of the images written out as often as they are drawn, and the binomial."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import binom

from deformable_detr.categories import Categories
from deformable_detr.evaluation import CocoEvaluator
from deformable_detr.evaluation.bootstrap import average_precisions, bootstrap

NAMES = ("a", "b", "c", "d")


def evaluated_by_coco(folder, images):
    """COCO's metrics of images; their ids do not count, so that one may stand there several times."""
    annotations, results = [], []
    for number, image in enumerate(images):
        for labels, boxes, iscrowd in ((image.true_labels, image.true_boxes, 0), (image.crowd_labels, image.crowd_boxes, 1)):
            for label, (left, top, right, bottom) in zip(labels.tolist(), boxes.tolist(), strict=True):
                box = [left, top, right - left, bottom - top]
                entry = {"image_id": number, "category_id": label, "bbox": box, "iscrowd": iscrowd}
                annotations.append(entry | {"id": len(annotations) + 1})
        columns = {"scores": image.scores, "labels": image.labels, "boxes": image.boxes}
        results.append({name: torch.from_numpy(column) for name, column in columns.items()})
    content = {
        "images": [{"id": number} for number in range(len(images))],
        "annotations": annotations,
        "categories": [{"id": label, "name": name} for label, name in enumerate(NAMES)],
    }
    (folder / "truth.json").write_text(json.dumps(content))
    evaluator = CocoEvaluator(folder / "truth.json", Categories.from_names(NAMES))
    evaluator.update(list(range(len(images))), results)
    return evaluator.compute()


@pytest.mark.parametrize("seed", range(3))
def test_every_draw_has_the_ap_that_coco_gives_its_images(random_images, tmp_path, seed):
    images = random_images(seed, count=25)
    times = np.random.default_rng(seed).multinomial(25, np.full(25, 1 / 25), size=3)
    times[0] = 1  # the split itself
    aps = average_precisions(images, len(NAMES), times)
    for row, found in zip(times, aps, strict=True):
        metrics = evaluated_by_coco(tmp_path, [image for image, count in zip(images, row, strict=True) for _ in range(count)])
        per_class = found.mean(axis=1)
        assert per_class.tolist() == pytest.approx([entry.ap for entry in metrics.per_class], nan_ok=True, abs=1e-9)
        assert found[:, 0].tolist() == pytest.approx([entry.ap50 for entry in metrics.per_class], nan_ok=True, abs=1e-9)
        assert np.nanmean(per_class) == pytest.approx(metrics.ap, abs=1e-9)
        assert np.nanmean(found[:, 5]) == pytest.approx(metrics.ap75, abs=1e-9)


def test_the_interval_is_that_of_the_binomial(evaluated_image):
    """200 images of one object each, 120 of them detected, nothing else: k of n detected gives AP by the recalls up to k / n."""
    box = [0, 0, 10, 10]
    images = [evaluated_image([(0.9 - number / 1000, 0, box)] * (number < 120), [(0, box)]) for number in range(200)]
    expected = [np.count_nonzero(np.linspace(0, 1, 101) <= k / 200) / 101 for k in binom.ppf((0.025, 0.975), 200, 0.6)]
    found = bootstrap(images, 1, draws=4000)
    assert list(found.ap) == pytest.approx(expected, abs=0.012)
    for other in (found.ap50, found.ap75, found.per_class[0]):
        assert found.ap == pytest.approx(other)


def test_the_same_seed_draws_the_same_images_for_another_detector(random_images):
    """A detector that has lost its best class everywhere is worse for certain; one compared with itself is not."""
    images = random_images(1)
    first, again = (bootstrap(images, len(NAMES), draws=50) for _ in range(2))
    assert np.array_equal(first.aps, again.aps, equal_nan=True)
    nothing = [image.above(np.ones(len(NAMES))) for image in images]
    worse = bootstrap(nothing, len(NAMES), draws=50)
    assert first.minus(worse).ap.low > 0
    assert first.minus(again).ap == (0, 0)
    assert (bootstrap(images, len(NAMES), draws=20).minus(first).aps == 0).sum() == (first.aps[:20] == first.aps[:20]).sum() > 0
    with pytest.raises(ValueError, match="the same images"):
        first.minus(bootstrap(images[:-1], len(NAMES), draws=50))


def test_a_class_without_objects_has_no_interval(evaluated_image):
    image = evaluated_image([(0.9, 0, [0, 0, 10, 10])], truth=[(0, [0, 0, 10, 10])])
    found = bootstrap([image], 2, draws=5)
    assert found.per_class[0] == (1, 1)
    assert found.per_class[1].to_list() is None
    assert found.to_dict() == {"level": 0.95, "draws": 5, "ap": [1, 1], "ap50": [1, 1], "ap75": [1, 1]}
    nothing = bootstrap([evaluated_image()], 1, draws=5)
    assert nothing.to_dict()["ap"] is None
