import logging
import re
import threading
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import supervision as sv
import torch
from PIL import Image
from torch import nn

from deformable_detr.categories import Categories
from deformable_detr.config import Metadata, ModelConfig
from deformable_detr.inference import Predictor
from deformable_detr.inference.predictor import choose_device
from deformable_detr.model import build_model
from deformable_detr.presets import MODEL_PRESETS
from deformable_detr.structures import ImageBatch, Predictions

CATEGORIES = Categories(("cat", "dog", "bird"), (7, 3, 90))


class RectangleFinder(nn.Module):
    """A detector of bright rectangles: one query gives the true box, a `dog` of 0.9; others are empty guesses."""

    def __init__(self):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.metadata = Metadata(ModelConfig(num_classes=3), CATEGORIES, eval_short_side=64, max_long_side=200)
        self.batch_sizes: list[int] = []

    def forward(self, batch: ImageBatch) -> Predictions:
        self.batch_sizes.append(len(batch))
        boxes = torch.full((1, len(batch), 4, 4), 0.5)
        logits = torch.full((1, len(batch), 4, 3), -4.0)
        logits[0, :, 2] = torch.tensor([0.2, 0.9, 0.4]).logit()
        for index in range(len(batch)):
            valid = ~batch.padding_mask[index]
            height, width = int(valid[:, 0].sum()), int(valid[0].sum())
            rows, columns = torch.where(batch.images[index, 0, :height, :width] > 0.5)
            left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            boxes[0, index, 2] = torch.tensor(
                [(left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height]
            )
        return Predictions(logits, boxes)


def rectangle_image(width, height, box):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    return pixels


@pytest.fixture
def finder():
    return Predictor(RectangleFinder(), device="cpu")


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    model = build_model("tiny", num_classes=3)
    model.metadata = Metadata(model.metadata.model, CATEGORIES, eval_short_side=80, max_long_side=112)
    return Predictor(model, device="cpu")


def sample_images(count=5, seed=0):
    generator = np.random.default_rng(seed)
    sizes = generator.integers(30, 130, (count, 2))
    return [generator.integers(0, 255, (height, width, 3), dtype=np.uint8) for height, width in sizes]


SIZES_AND_BOXES = [((320, 128), (80, 32, 240, 64)), ((128, 320), (16, 240, 48, 320)), ((500, 300), (0, 0, 250, 150))]


@pytest.mark.parametrize(("size", "box"), SIZES_AND_BOXES)
def test_boxes_are_in_the_pixels_of_the_original_image(finder, size, box):
    width, height = size
    found = finder.predict(rectangle_image(width, height, box))
    assert isinstance(found, sv.Detections)
    np.testing.assert_allclose(found.xyxy, [box], atol=max(size) / 64)
    assert found.class_id is not None
    assert found.class_id.tolist() == [1]
    assert list(found.data["class_name"]) == ["dog"]
    assert list(found.data["category_id"]) == [3]
    assert found.confidence is not None
    np.testing.assert_allclose(found.confidence, [0.9], atol=1e-6)
    assert found.metadata == {}


def test_boxes_of_a_turned_image_are_upright(finder, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    Image.fromarray(rectangle_image(200, 100, (0, 0, 100, 100))).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    found = finder.predict(tmp_path / "turned.jpg")
    np.testing.assert_allclose(found.xyxy, [[0, 0, 100, 100]], atol=4)
    assert found.metadata == {"path": str(tmp_path / "turned.jpg"), "image_size": (200, 100)}


def test_boxes_in_padded_batches_are_those_of_their_own_image(finder):
    boxes = [(10, 10, 60, 60), (100, 40, 200, 80), (0, 100, 50, 300)]
    sizes = [(100, 100), (300, 100), (100, 300)]
    images = [rectangle_image(*size, box) for size, box in zip(sizes, boxes, strict=True)]
    for batch_size in (1, 2, 3):
        found = finder.predict(images, batch_size=batch_size)
        np.testing.assert_allclose(np.concatenate([one.xyxy for one in found]), np.array(boxes), atol=5)
    assert finder.model.batch_sizes == [1, 1, 1, 2, 1, 3]


def test_boxes_are_clipped_to_the_image():
    class TooLarge(RectangleFinder):
        def forward(self, batch):
            predictions = super().forward(batch)
            predictions.boxes[..., 2:] = 1.5
            return predictions

    found = Predictor(TooLarge(), device="cpu").predict(rectangle_image(80, 40, (20, 10, 60, 30)))
    np.testing.assert_allclose(found.xyxy, [[0, 0, 80, 40]])


def test_threshold_top_k_and_order(finder):
    image = rectangle_image(64, 64, (10, 10, 50, 50))
    assert len(finder.predict(image, 0.95)) == 0
    assert finder.predict(image, 0.95).data["class_name"].shape == (0,)
    found = finder.predict(image, 0.3)
    np.testing.assert_allclose(found.confidence, [0.9, 0.4], atol=1e-6)
    assert found.class_id.tolist() == [1, 2]
    assert len(finder.predict(image, 0.0)) == 12  # all 4 queries x 3 classes
    assert len(finder.predict(image, 0.0, top_k=5)) == 5


def test_without_top_k_the_model_says_how_many():
    for preset, expected in {"r50-two-stage": 100, "r50-hdetr": 100, "r50-dino": 300, "swin-l-dino": 300}.items():
        assert MODEL_PRESETS[preset].max_detections == expected
    model = RectangleFinder()
    model.metadata = replace(model.metadata, model=model.metadata.model.replace(max_detections=7))
    image = rectangle_image(64, 64, (10, 10, 50, 50))
    few = Predictor(model, device="cpu")
    assert len(few.predict(image, 0.0)) == len(few.predict(image, 0.0, tiles=64)) == 7
    assert len(few.predict(image, 0.0, top_k=9)) == 9


def test_classes_are_chosen_before_top_k(finder):
    image = rectangle_image(64, 64, (10, 10, 50, 50))
    found = finder.predict(image, 0.1, top_k=2, classes=["bird", "cat"])
    assert found.data["class_name"].tolist() == ["bird", "cat"]
    assert found.class_id.tolist() == [2, 0]
    assert found.data["category_id"].tolist() == [90, 7]
    assert finder.predict(image, 0.1, classes="cat").class_id.tolist() == [0]
    with pytest.raises(ValueError, match=r"unknown class \['fish'\]; this detector knows cat, dog, bird"):
        finder.predict(image, classes=["fish", "cat"])


def test_classes_without_names():
    model = RectangleFinder()
    model.metadata = Metadata(ModelConfig(num_classes=3), eval_short_side=64)
    found = Predictor(model, device="cpu").predict(rectangle_image(64, 64, (10, 10, 50, 50)))
    assert list(found.data["class_name"]) == ["class 1"]
    assert list(found.data["category_id"]) == [1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 1.5}, "threshold must lie in"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"on_error": "ignore"}, "on_error must be"),
    ],
)
def test_settings_out_of_range(finder, settings, message):
    with pytest.raises(ValueError, match=message):
        finder.predict(rectangle_image(64, 64, (10, 10, 50, 50)), **settings)


def test_a_batch_gives_what_single_images_give(tiny):
    images = sample_images()
    single = [tiny.predict(image, 0.0, top_k=10) for image in images]
    for batch_size in (2, 5, 8):
        for one, alone in zip(tiny.predict(images, 0.0, top_k=10, batch_size=batch_size), single, strict=True):
            np.testing.assert_allclose(one.confidence, alone.confidence, atol=1e-5)
            order = np.lexsort(one.xyxy.round(1).T), np.lexsort(alone.xyxy.round(1).T)
            np.testing.assert_allclose(one.xyxy[order[0]], alone.xyxy[order[1]], atol=0.02)


def test_folder_file_and_pil_agree(tiny, tmp_path):
    for index, image in enumerate(sample_images(3)):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    from_folder = tiny.predict(tmp_path, 0.0)
    from_glob = tiny.predict(f"{tmp_path}/*.png", 0.0, batch_size=2)
    assert len(from_folder) == len(from_glob) == 3
    np.testing.assert_allclose(from_folder[1].xyxy, tiny.predict(Image.open(tmp_path / "1.png"), 0.0).xyxy, atol=1e-4)
    np.testing.assert_allclose(from_folder[1].xyxy, tiny.predict(str(tmp_path / "1.png"), 0.0).xyxy, atol=1e-4)
    assert [one.metadata["path"] for one in from_folder] == [str(tmp_path / f"{index}.png") for index in range(3)]


def test_detections_work_with_supervision(tiny):
    """Tiling: one callback per slice, merged by supervision."""
    slicer = sv.InferenceSlicer(lambda tile: tiny.predict(tile, 0.0), slice_wh=64, overlap_wh=8, thread_workers=1)
    found = slicer(sample_images(1)[0])
    assert len(found) > 0
    assert set(found.data) == {"class_name", "category_id"}


def test_unreadable_images(tiny, tmp_path, caplog):
    for index, image in enumerate(sample_images(3)):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"1\.png"):
        tiny.predict(tmp_path)
    with caplog.at_level(logging.WARNING):
        found = tiny.predict([tmp_path, tmp_path / "gone.png"], batch_size=2, on_error="skip")
    assert [one.metadata["path"] for one in found] == [str(tmp_path / "0.png"), str(tmp_path / "2.png")]
    assert "1.png" in caplog.text
    assert "gone.png" in caplog.text
    with pytest.raises(FileNotFoundError, match="no such image"):
        tiny.predict(tmp_path / "gone.png", on_error="skip")  # a single image has nothing to go on with


def test_a_stream_is_read_only_a_little_ahead_and_its_threads_end(finder):
    taken = []

    def frames():
        for index in range(1000):
            taken.append(index)
            yield rectangle_image(64, 48, (10, 10, 30, 30))

    results = finder.iterate(frames(), batch_size=2)
    first = next(results)
    assert first.name == "image 0"
    assert first.image_size == (48, 64)
    assert first.image.shape == (48, 64, 3)
    assert first.image.flags["C_CONTIGUOUS"]
    assert len(taken) < 20
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]


def test_results_keep_their_own_pixels(finder):
    """The caller fills one array again and again; the rectangle moves by ten pixels."""
    frame = np.zeros((48, 64, 3), np.uint8)

    def frames():
        for left in (0, 10, 20, 30):
            frame[:] = rectangle_image(64, 48, (left, 10, left + 20, 30))
            yield frame

    results = list(finder.iterate(frames(), batch_size=2))
    frame[:] = 0
    for left, result in zip((0, 10, 20, 30), results, strict=True):
        np.testing.assert_allclose(result.detections.xyxy, [[left, 10, left + 20, 30]], atol=1)
        np.testing.assert_array_equal(result.image, rectangle_image(64, 48, (left, 10, left + 20, 30)))


def test_the_network_is_in_evaluation_mode_and_records_no_gradients(tiny):
    tiny.model.train()
    image = sample_images(1)[0]
    first = tiny.predict(image, 0.0)
    assert not tiny.model.training
    np.testing.assert_array_equal(first.xyxy, tiny.predict(image, 0.0).xyxy)
    assert all(parameter.grad is None for parameter in tiny.model.parameters())


def test_half_precision_is_close(tiny):
    image = sample_images(1)[0]
    full = tiny.predict(image, 0.0)
    half = Predictor(tiny.model, device="cpu", precision="bf16").predict(image, 0.0)
    assert half.confidence is not None
    np.testing.assert_allclose(half.confidence, full.confidence, atol=0.01)
    with pytest.raises(ValueError, match="unknown precision 'fp8'"):
        Predictor(tiny.model, device="cpu", precision="fp8")  # type: ignore[arg-type]


def test_numbers_that_are_not_finite_are_an_error_with_the_image(tmp_path):
    class Broken(RectangleFinder):
        def forward(self, batch):
            predictions = super().forward(batch)
            predictions.logits[:, -1] = float("nan")
            return predictions

    images = [rectangle_image(64, 64, (10, 10, 50, 50))] * 2
    with pytest.raises(FloatingPointError, match="non-finite scores or boxes for image 1"):
        Predictor(Broken(), device="cpu").predict(images, batch_size=2)
    path = tmp_path / "street.png"
    Image.fromarray(images[0]).save(path)
    with pytest.raises(FloatingPointError, match=f"non-finite scores or boxes for {path}"):
        Predictor(Broken(), device="cpu").predict(path, tiles=48)


def test_choose_device():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        choose_device("gpu")
    with pytest.raises(ValueError, match=r"device 'meta' cannot be used here \("):
        choose_device("meta")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="sees no CUDA GPU"):
            choose_device("cuda:0")


def test_thresholds_of_the_weights_hold_unless_one_is_given(finder):
    """Scores of the rectangle: cat .2, dog .9, bird .4; every other guess has .018."""
    image = rectangle_image(64, 64, (10, 10, 50, 50))
    assert finder.predict(image).class_id.tolist() == [1]  # 0.5 for all
    finder.model.metadata = replace(finder.model.metadata, thresholds=(0.15, 0.95, 0.35))
    assert finder.predict(image).class_id.tolist() == [2, 0]
    assert next(iter(finder.iterate([image]))).detections.class_id.tolist() == [2, 0]
    assert finder.predict(image, classes=["dog", "bird"]).class_id.tolist() == [2]
    assert finder.predict(image, 0.5).class_id.tolist() == [1]


def test_suppression_for_one_call(finder):
    """Three of four queries give the same box: with `nms_iou` one of them is left in each of the three classes."""
    image = rectangle_image(80, 60, (0, 0, 20, 20))
    assert len(finder.predict(image, 0.0)) == 12
    assert len(finder.predict(image, 0.0, nms_iou=0.5)) == 6
    assert len(finder.predict(image, 0.0)) == 12
    finder.nms_iou = 0.5
    assert len(finder.predict(image, 0.0)) == 6
    assert len(finder.predict(image, 0.0, nms_iou=1.0)) == 12
    assert len(finder.predict(image, 0.0, nms_iou=0.5, tiles=200)) == 6
    with pytest.raises(ValueError, match="nms_iou must lie in"):
        finder.predict(image, nms_iou=0)


def test_classes_and_device(finder):
    image = rectangle_image(80, 60, (0, 0, 20, 20))
    assert finder.classes == ("cat", "dog", "bird")
    for tiles in (None, 100):
        names = (name for name in ("dog", "bird"))
        found = [len(one) for one in finder.predict([image, image], 0.0, classes=names, tiles=tiles)]
        assert found == [len(one) for one in finder.predict([image, image], 0.0, classes=["dog", "bird"], tiles=tiles)]
    before = finder.predict(image)
    assert finder.to("cpu") is finder
    np.testing.assert_array_equal(finder.predict(image).xyxy, before.xyxy)
    with pytest.raises(ValueError, match="unknown device"):
        finder.to("toaster")


def test_settings_of_the_wrong_kind(finder):
    image = rectangle_image(64, 64, (20, 20, 44, 44))
    with pytest.raises(TypeError, match=r"batch_size must be a whole number, not 2\.0"):
        finder.predict(image, batch_size=2.0)
    with pytest.raises(TypeError, match="thresh"):
        finder.predict(image, thresh=2)
    wrong: dict[str, Any] = {
        "threshold": "0.5",
        "top_k": True,
        "nms_iou": "0.5",
        "tiles": 64.0,
        "tile_overlap": "0",
        "bit_depth": "9",
    }
    assert len(finder.predict(image, Fraction(1, 2), nms_iou=Fraction(1, 2), tiles=np.int64(64), top_k=np.int8(5))) == 1
    large = rectangle_image(300, 200, (0, 0, 300, 200))  # a side of 300 does not go into 8 bits
    assert len(finder.predict(large, 0.5, tiles=np.int8(100))) == len(finder.predict(large, 0.5, tiles=100))
    for name, value in wrong.items():
        with pytest.raises(TypeError, match=rf"{name} must be a (whole )?number.*, not {re.escape(repr(value))}"):
            finder.predict(image, **{name: value})


def test_16_bit_images_that_hold_12_bits(finder):
    values = rectangle_image(64, 64, (20, 20, 44, 44))[..., 0].astype(np.uint16) * 16  # up to 4080
    np.testing.assert_allclose(finder.predict(values, bit_depth=12).xyxy, [[20, 20, 44, 44]], atol=1)
    finder.model.metadata = replace(finder.metadata, bit_depth=12)  # as it was trained
    np.testing.assert_allclose(finder.predict(values).xyxy, [[20, 20, 44, 44]], atol=1)
