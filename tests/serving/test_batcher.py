import threading
from concurrent.futures import CancelledError
from dataclasses import replace

import numpy as np
import pytest
import torch

from deformable_detr.serving.batcher import Batcher


def as_tensor(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1)


class RecordingBatcher(Batcher):
    """Keeps the sizes of its batches."""

    def __init__(self, predictor):
        self.sizes: list[int] = []
        super().__init__(predictor, batch_size=4, max_wait=5.0, on_batch=lambda size, seconds: self.sizes.append(size))


@pytest.fixture
def batcher(predictor):
    batcher = RecordingBatcher(predictor)
    yield batcher
    predictor.gate.set()
    batcher.close()


def submit(batcher, pixels, **settings):
    (future,) = batcher.submit([pixels], **settings)
    return future


def assert_same(found, expected):
    np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=1e-2)
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-5)
    assert found.data["class_name"].tolist() == expected.data["class_name"].tolist()


def test_images_share_forward_passes_and_get_what_they_get_alone(batcher, predictor, images):
    settings = [
        {"threshold": 0.0, "top_k": 5},
        {"threshold": 0.0, "top_k": 100, "classes": ["bird"]},
        {"threshold": 0.0, "top_k": 2, "classes": ["dog", "cat"]},
        {"threshold": 0.012, "top_k": None},
    ] * 2
    futures = [submit(batcher, as_tensor(one), **chosen) for one, chosen in zip(images, settings, strict=False)]
    answers = [future.result(30) for future in futures]
    assert predictor.batches == [4, 4] == batcher.sizes
    assert [answer.batch_size for answer in answers] == [4] * 8
    for one, chosen, answer in zip(images, settings, answers, strict=False):
        assert_same(answer.detections, predictor.predict(one, **chosen))
    assert [len(answer.detections) for answer in answers[:3]] == [5, 10, 2]
    assert 0 < len(answers[3].detections) < 30


def test_suppression_does_not_depend_on_the_neighbours(batcher, predictor, images):
    predictor.nms_iou = 0.02
    settings = [
        {"threshold": 0.0, "top_k": 8},
        {"threshold": 0.0, "top_k": 30},
        {"threshold": 0.0, "top_k": 3, "classes": ["bird"]},
        {"threshold": 0.012, "top_k": 8},
    ]
    futures = [submit(batcher, as_tensor(one), **chosen) for one, chosen in zip(images, settings, strict=False)]
    answers = [future.result(30) for future in futures]
    assert batcher.sizes == [4]
    for one, chosen, answer in zip(images, settings, answers, strict=False):
        assert_same(answer.detections, predictor.predict(one, **chosen))


def test_a_lone_image_does_not_wait_for_ever(predictor, images):
    batcher = Batcher(predictor, batch_size=4, max_wait=0.01)
    answer = submit(batcher, as_tensor(images[0]), threshold=0.0, top_k=1).result(30)
    assert answer.batch_size == 1
    assert answer.wait_seconds >= 0.01
    batcher.close()


def test_nobody_waits_for_company_that_is_not_expected(predictor, images):
    batcher = Batcher(predictor, batch_size=4, max_wait=3600.0)
    futures = batcher.submit([as_tensor(one) for one in images[:3]], threshold=0.0, top_k=1, wait=False)
    assert [future.result(30).batch_size for future in futures] == [3, 3, 3]
    batcher.close()


def test_one_failing_image_leaves_its_neighbours_alone(batcher, predictor, images):
    broken = torch.zeros(3, 0, 5, dtype=torch.uint8)
    futures = [submit(batcher, one, threshold=0.0, top_k=3) for one in (as_tensor(images[0]), broken, *map(as_tensor, images[1:3]))]
    with pytest.raises(ValueError, match="shape"):
        futures[1].result(30)
    for index, future in zip((0, 1, 2), (futures[0], *futures[2:]), strict=True):
        assert_same(future.result(30).detections, predictor.predict(images[index], 0.0, top_k=3))


def test_cancelled_images_are_not_run(batcher, predictor, images):
    predictor.gate.clear()
    first = [submit(batcher, as_tensor(one), threshold=0.0, top_k=3) for one in images[:4]]
    later = [submit(batcher, as_tensor(one), threshold=0.0, top_k=3) for one in images[4:8]]
    assert all(future.cancel() for future in later[:3])
    predictor.gate.set()
    assert later[3].result(30).batch_size == 1
    assert first[0].result(30).batch_size == 4
    with pytest.raises(CancelledError):
        later[0].result()
    assert predictor.batches == [4, 1]


def test_closing_finishes_what_waits(predictor, images):
    batcher = Batcher(predictor, batch_size=2, max_wait=60.0)
    predictor.gate.clear()
    futures = [submit(batcher, as_tensor(one), threshold=0.0, top_k=3) for one in images[:5]]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    predictor.gate.set()
    closing.join(30)
    assert not closing.is_alive()
    assert [future.result(0).batch_size for future in futures] == [2, 2, 2, 2, 1]
    with pytest.raises(RuntimeError, match="shutting down"):
        submit(batcher, as_tensor(images[0]), threshold=0.0, top_k=3)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"max_wait": -1.0}])
def test_impossible_settings(predictor, options):
    with pytest.raises(ValueError, match="at least"):
        Batcher(predictor, **options)


def test_thresholds_of_the_model_where_none_is_asked_for(batcher, predictor, images):
    thresholds = predictor.predict(images[0], 0.0, top_k=30)
    middle = float(np.median(thresholds.confidence))
    metadata = predictor.model.metadata
    try:
        predictor.model.metadata = replace(metadata, thresholds=(middle, 1.0, 0.0))
        settings = [{"threshold": None, "top_k": 100}, {"threshold": middle, "top_k": 100}] * 2  # a full batch does not wait
        futures = [submit(batcher, as_tensor(images[0]), **chosen) for chosen in settings]
        answers = [future.result(30).detections for future in futures]
        for answer, chosen in zip(answers, settings, strict=True):
            assert_same(answer, predictor.predict(images[0], **chosen))
        assert set(answers[0].class_id) == {0, 2}
        assert (answers[0].class_id == 2).sum() == 10 and 1 in answers[1].class_id
    finally:
        predictor.model.metadata = metadata


def test_the_best_are_chosen_before_the_thresholds_of_their_classes(batcher, predictor, images):
    best = int(predictor.predict(images[0], 0.0, top_k=1).class_id[0])
    metadata = predictor.model.metadata
    try:
        predictor.model.metadata = replace(metadata, thresholds=tuple(float(label == best) for label in range(3)))
        asked = ((None, 1), (0.0, 30), (None, 30), (0.0, 3))  # a full batch does not wait
        settings = [{"threshold": threshold, "top_k": top_k} for threshold, top_k in asked]
        futures = [submit(batcher, as_tensor(images[0]), **chosen) for chosen in settings]
        answers = [future.result(30).detections for future in futures]
        for chosen, answer in zip(settings, answers, strict=True):
            assert_same(answer, predictor.predict(images[0], **chosen))
    finally:
        predictor.model.metadata = metadata
    assert [len(answer) for answer in answers] == [0, 30, 20, 3]  # ten queries, three classes
