import sys
from typing import Any

import cv2
import numpy as np
import pytest
import supervision as sv
import torch
from PIL import Image

from deformable_detr.categories import Categories
from deformable_detr.config import Metadata
from deformable_detr.data.images import ImageError, ImageTooLargeError, read_image
from deformable_detr.inference import large_images
from deformable_detr.inference.large_images import PillowImage, VipsImage, open_large_image, overview
from deformable_detr.inference.predictor import Predictor, Result
from deformable_detr.inference.sources import open_source
from deformable_detr.inference.tiles import Tiling, iterate_tiled, merge_tiles
from deformable_detr.model import build_model

VALUES = (255, 170)  # of the two classes


def exact_detector(views, largest):
    """Finds every rectangle of a known value, exactly, but nothing in images with a side above `largest`."""
    for tile in views:
        view = tile.read()
        boxes, labels = [], []
        for label, value in enumerate(VALUES):
            if max(view.shape[1:]) > largest:
                continue
            _, _, stats, _ = cv2.connectedComponentsWithStats((view[0].numpy() == value).astype(np.uint8), connectivity=4)
            boxes += [[x, y, x + w, y + h] for x, y, w, h, _ in stats[1:]]
            labels += [label] * (len(stats) - 1)
        xyxy = np.array(boxes, dtype=np.float32).reshape(-1, 4)
        areas = (xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1)
        data: dict[str, Any] = {"class_name": np.array(["a", "b"])[labels], "category_id": np.array([7, 3])[labels]}
        found = sv.Detections(xyxy=xyxy, confidence=1 / (1 + areas), class_id=np.array(labels, dtype=int), data=data)
        yield Result(tile.name, view, found)  # parts have higher scores than whole objects: the worst case


def image(height, width, objects):
    pixels = torch.zeros(3, height, width, dtype=torch.uint8)
    for (left, top, right, bottom), label in objects:
        pixels[:, top:bottom, left:right] = VALUES[label]
    return pixels


def found_in(pixels, tiling, largest=10**9):
    results = iterate_tiled(lambda views: exact_detector(views, largest), open_source(pixels), tiling, on_error="raise", top_k=1000)
    (result,) = results
    assert result.pixels is not None
    boxes = [
        (tuple(box), label)
        for box, label in zip(result.detections.xyxy.astype(int).tolist(), result.detections.class_id, strict=True)
    ]
    return sorted((box, int(label)) for box, label in boxes), result


def scattered(rng, height, width, count, sizes):
    """Rectangles that keep three pixels between them, anywhere, so on seams and corners too."""
    taken, objects = np.zeros((height, width), dtype=bool), []
    while len(objects) < count:
        w, h = rng.integers(*sizes, size=2)
        left, top = rng.integers(0, width - w), rng.integers(0, height - h)
        area = (slice(max(top - 3, 0), top + h + 3), slice(max(left - 3, 0), left + w + 3))
        if not taken[area].any():
            taken[area] = True
            objects.append(((int(left), int(top), int(left + w), int(top + h)), int(rng.integers(2))))
    return sorted(objects)


def test_every_object_is_found_once():
    """Objects of half a tile's overlap up to twice a tile, many on seams, in an image of 6 x 5 tiles."""
    rng = np.random.default_rng(0)
    small = scattered(rng, 400, 520, 60, (6, 24))
    assert found_in(image(400, 520, small), Tiling(100, 0.25), largest=100)[0] == small
    large = scattered(rng, 400, 520, 12, (40, 110))  # wider than the overlap: parts have to be put together
    assert found_in(image(400, 520, large), Tiling(100, 0.25), largest=100)[0] == large
    assert found_in(image(400, 520, large), Tiling(100, 0.25))[0] == large  # with the whole image as a tile of its own


def test_an_object_across_many_tiles_is_one():
    long = [((20, 45, 500, 60), 0), ((20, 140, 500, 156), 1), ((30, 200, 45, 390), 0)]
    assert found_in(image(400, 520, long), Tiling(100, 0.25), largest=100)[0] == sorted(long)


def test_data_and_order_survive():
    _, result = found_in(image(100, 240, [((10, 10, 20, 20), 1), ((150, 10, 155, 15), 0)]), Tiling(100, 0.2), largest=100)
    assert result.detections.data["class_name"].tolist() == ["a", "b"]  # the smaller one has the higher score
    assert result.detections.data["category_id"].tolist() == [7, 3]
    assert result.name == "the image"
    assert result.image_size == (100, 240)
    nothing, result = found_in(image(100, 240, []), Tiling(100, 0.2))
    assert nothing == []
    assert set(result.detections.data) == {"class_name", "category_id"}


def test_classes_and_neighbours_are_not_merged():
    objects = [((80, 10, 95, 30), 0), ((80, 34, 95, 60), 0), ((99, 10, 110, 30), 1)]
    assert found_in(image(100, 180, objects), Tiling(100, 0.2), largest=100)[0] == sorted(objects)


def test_the_better_of_two_views_stays():
    windows = [(0, 0, 100, 100), (80, 0, 180, 100)]
    first = sv.Detections(xyxy=np.array([[84.0, 40, 92, 50]]), confidence=np.array([0.6]), class_id=np.array([0]))
    second = sv.Detections(xyxy=np.array([[5.0, 41, 12, 50]]), confidence=np.array([0.7]), class_id=np.array([0]))
    merged = merge_tiles([first, second], windows)
    assert merged.xyxy.tolist() == [[85, 41, 92, 50]]
    assert merged.confidence is not None
    assert merged.confidence.tolist() == [0.7]


def test_a_bad_box_at_an_edge_is_a_part_of_the_whole_one():
    """The left tile sees the edge of an object that the right one sees whole, and gives it too small a box."""
    windows = [(0, 0, 100, 100), (80, 0, 180, 100)]
    part = sv.Detections(xyxy=np.array([[93.0, 48, 99.5, 60]]), confidence=np.array([0.9]), class_id=np.array([0]))
    whole = sv.Detections(xyxy=np.array([[9.0, 40, 40, 80]]), confidence=np.array([0.6]), class_id=np.array([0]))
    assert merge_tiles([part, whole], windows).xyxy.tolist() == [[89, 40, 120, 80]]


@pytest.mark.parametrize(("size", "overlap"), [(100, 0.2), (64, 0.0), (97, 0.5)])
def test_windows_cover_the_image(size, overlap):
    for height, width in [(400, 520), (97, 300), (101, 40), (64, 64)]:
        windows = Tiling(size, overlap).windows(height, width)
        covered = np.zeros((height, width), dtype=int)
        for left, top, right, bottom in windows:
            covered[top:bottom, left:right] += 1
        assert covered.min() >= (1 if len(windows) == 1 else 2)
        assert windows[0] == (0, 0, width, height)
        lefts = sorted({window[0] for window in windows[1:]})
        assert all(lefts[i + 1] - lefts[i] <= np.ceil(size * (1 - overlap)) for i in range(len(lefts) - 1))


def test_the_predictor_takes_tiles(tmp_path):
    torch.manual_seed(0)
    model = build_model("tiny", num_classes=2)
    model.metadata = Metadata(model.metadata.model, Categories(("cat", "dog"), (7, 3)), eval_short_side=64, max_long_side=96)
    predictor = Predictor(model, device="cpu")
    image = np.random.default_rng(0).integers(0, 255, (60, 140, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), image[..., ::-1])
    tiled = predictor.predict(path, 0.0, tiles=80, batch_size=2, top_k=7)
    assert len(tiled) == 7
    assert tiled.metadata == {"path": str(path), "image_size": (60, 140)}
    assert (tiled.confidence[:-1] >= tiled.confidence[1:]).all()
    plain = predictor.predict(image, 0.0)
    assert predictor.predict(image, 0.0, tiles=200).xyxy.tolist() == plain.xyxy.tolist()  # one tile: the image itself
    (tmp_path / "b.png").write_bytes(b"nothing")
    assert len(predictor.predict([path, tmp_path / "b.png"], tiles=80, on_error="skip")) == 1
    with pytest.raises(ValueError, match="not an image"):
        predictor.predict(tmp_path / "b.png", tiles=80)
    for settings, message in [({"tiles": 8}, "at least 32 pixels"), ({"tiles": 80, "tile_overlap": 1.0}, "tile_overlap")]:
        with pytest.raises(ValueError, match=message):
            predictor.predict(image, **settings)


KINDS = {
    "L.png": ("L", {}),
    "RGB.png": ("RGB", {}),
    "RGBA.png": ("RGBA", {}),
    "P.png": ("P", {}),
    "1.tif": ("1", {"compression": "group4"}),
    "I16.png": ("I;16", {}),
    "I16.tif": ("I;16", {"compression": "tiff_lzw"}),
    "RGB.tif": ("RGB", {"compression": "tiff_deflate"}),
    "turned.png": ("RGB", {"exif": 6}),
    "turned.tif": ("L", {"exif": 3}),
    "lossless.webp": ("RGB", {"lossless": True}),
}


def save(folder, name):
    """An image of smooth colours with some noise."""
    options: dict[str, Any]
    mode, options = KINDS[name]
    rng = np.random.default_rng(1)
    ramp = np.add.outer(np.arange(90), np.arange(150))[..., None] * [1, 0.5, 0.2] + rng.integers(0, 20, (90, 150, 3))
    colours = Image.fromarray(ramp.clip(0, 255).astype(np.uint8))
    if mode == "I;16":
        colours = Image.fromarray((ramp[..., 0] * 250).astype(np.uint16))
    if "exif" in options:
        exif = Image.Exif()
        exif[0x0112] = options["exif"]
        options = {"exif": exif}
    path = folder / name
    (colours if mode == "I;16" else colours.convert(mode)).save(path, **options)
    return path


@pytest.mark.parametrize("reader", ["vips", "pillow"])
@pytest.mark.parametrize("name", KINDS)
def test_windows_of_large_images_are_those_of_the_whole_one(tmp_path, name, reader):
    path = save(tmp_path, name)
    whole = read_image(path)
    image = PillowImage(path, 16) if reader == "pillow" else VipsImage(pytest.importorskip("pyvips"), path, 16)
    assert image.size == tuple(whole.shape[1:])
    for left, top, right, bottom in [(0, 0, 40, 40), (33, 21, 90, 77), (0, 0, whole.shape[2], whole.shape[1])]:
        assert torch.equal(image.read((left, top, right, bottom)), whole[:, top:bottom, left:right])
    assert torch.equal(overview(image), whole)


@pytest.mark.parametrize("name", ["CMYK.tif", "RGB.bmp", "RGB.ppm", "RGB.jp2"])
def test_large_images_that_libvips_has_not_or_sees_otherwise(tmp_path, monkeypatch, name):
    monkeypatch.setitem(KINDS, name, (name.partition(".")[0], {}))
    path = save(tmp_path, name)
    assert torch.equal(open_large_image(path).read((33, 21, 90, 77)), read_image(path)[:, 21:77, 33:90])


@pytest.mark.parametrize("reader", ["vips", "pillow"])
def test_damaged_large_images_are_named(tmp_path, reader):
    content = save(tmp_path, "RGB.png").read_bytes()
    path = tmp_path / "half.png"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"half\.png: the image is damaged"):
        image = PillowImage(path, 16) if reader == "pillow" else VipsImage(pytest.importorskip("pyvips"), path, 16)
        image.read((0, 0, 150, 90))


def test_an_image_that_pillow_refuses_is_predicted_by_windows(tmp_path, monkeypatch):
    """Found are an object smaller than a tile and one that only the reduced whole image shows whole."""
    objects = [((20, 10, 40, 30), 0), ((60, 40, 460, 360), 1)]
    path = tmp_path / "aerial.png"
    Image.fromarray(image(400, 520, objects)[0].numpy()).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    monkeypatch.setattr(large_images, "OVERVIEW_PIXELS", 60_000)
    with pytest.raises(ImageTooLargeError, match=r"aerial\.png.*or predict by tiles \(--tiles\)"):
        read_image(path)
    for missing in (False, True):
        if missing:
            monkeypatch.setitem(sys.modules, "pyvips", None)
        boxes, result = found_in(path, Tiling(100, 0.25))
        assert boxes == sorted(objects)
        assert result.image_size == (400, 520)
        assert result.pixels.shape == (3, 200, 260)
        assert result.detections.metadata == {"path": str(path), "image_size": (400, 520)}
        drawn = {tuple(box) for box in result.shown.xyxy.astype(int).tolist()}
        assert drawn == {(10, 5, 20, 15), (30, 20, 230, 180)}


def test_an_image_that_does_not_fit_into_the_memory_says_what_to_install(tmp_path, monkeypatch):
    path = save(tmp_path, "RGB.png")
    monkeypatch.setattr(large_images, "MEMORY_SHARE", 0.0)
    with pytest.raises(ImageTooLargeError, match=r"150 x 90 pixels take .* pip install \"deformable-detr\[large\]\""):
        PillowImage(path, 16)
