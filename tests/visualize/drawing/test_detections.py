import numpy as np
import pytest
import supervision as sv
import torch
from PIL import Image

from deformable_detr.categories import Categories
from deformable_detr.structures import Target
from deformable_detr.visualize.colors import class_color
from deformable_detr.visualize.drawing.detections import draw_detections, draw_grid, save_drawing, truth_detections


def detections(boxes, labels=None, names=None, scores=None):
    count = len(boxes)
    return sv.Detections(
        xyxy=np.array(boxes, float).reshape(-1, 4),
        class_id=np.arange(count) if labels is None else np.array(labels, int),
        confidence=None if scores is None else np.array(scores),
        data={"class_name": np.array(names)} if names else {},
    )


def close_to(photo, color, tolerance=25):
    return (np.abs(photo.astype(int) - np.array(color.as_rgb())) <= tolerance).all(axis=-1)


@pytest.mark.parametrize("ground", [0, 128, 255])
def test_a_box_is_drawn_on_its_lines_and_nowhere_else(ground):
    image = np.full((480, 640, 3), ground, np.uint8)
    drawn = draw_detections(image, detections([[100, 200, 300, 400]], names=["dog"], scores=[0.87]))
    assert (image == ground).all()  # the input stays as it is
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    line = close_to(drawn, class_color(0))
    for row, column in ((200, 250), (400, 200), (300, 100), (300, 300)):  # the middle of each side
        assert line[row - 3 : row + 4, column - 3 : column + 4].any()
    changed = (drawn != ground).any(axis=-1)
    assert not changed[210:390, 110:290].any()  # the inside
    assert not changed[:, 305:].any()
    assert not changed[405:].any()
    assert changed[182:198, 100:160].mean() > 0.8  # the label above the box


def test_a_label_at_the_top_border_goes_inside():
    image = np.full((480, 640, 3), 90, np.uint8)
    drawn = draw_detections(image, detections([[100, 0, 300, 200]], names=["dog"]))
    assert close_to(drawn, class_color(0))[4:20, 104:130].mean() > 0.4


def test_no_detections_leave_the_image_unchanged():
    image = np.random.default_rng(0).integers(0, 255, (500, 600, 3), dtype=np.uint8)
    np.testing.assert_array_equal(draw_detections(image, sv.Detections.empty()), image)


def test_small_images_are_enlarged_by_a_whole_factor():
    image = np.zeros((96, 128, 3), np.uint8)
    found = detections([[10, 20, 60, 80]], names=["star"], scores=[0.5])
    drawn = draw_detections(image, found)
    assert drawn.shape == (96 * 4, 128 * 4, 3)
    assert close_to(drawn, class_color(0))[200, 38:43].any()  # the left side, at 10 * 4
    np.testing.assert_array_equal(found.xyxy, [[10, 20, 60, 80]])
    assert draw_detections(image, found, min_side=0).shape == image.shape


def test_arrays_tensors_and_pil_images_are_drawn_alike():
    image = np.random.default_rng(0).integers(0, 255, (480, 500, 3), dtype=np.uint8)
    found = detections([[30, 50, 200, 220], [100, 100, 400, 300]], names=["cat", "dog"], scores=[0.9, 0.8])
    drawn = draw_detections(image, found)
    np.testing.assert_array_equal(draw_detections(Image.fromarray(image), found), drawn)
    np.testing.assert_array_equal(draw_detections(torch.from_numpy(image).permute(2, 0, 1), found), drawn)
    with pytest.raises(ValueError, match="uint8 RGB"):
        draw_detections(image.astype(np.float32), found)


def test_labels_do_not_hide_each_other():
    """Three equal boxes: each label finds a place of its own, and each class colour fills one."""
    image = np.full((500, 500, 3), 255, np.uint8)
    drawn = draw_detections(image, detections([[100, 100, 400, 400]] * 3, names=["cat", "dog", "bird"], scores=[0.9, 0.8, 0.7]))
    areas = [close_to(drawn, class_color(label), 4).sum() for label in range(3)]
    assert min(areas) > 400


def test_a_crowd_is_drawn_without_an_error():
    generator = np.random.default_rng(0)
    corners = generator.uniform(-20, 400, (200, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(0, 80, (200, 2))], axis=1)
    drawn = draw_detections(np.zeros((300, 400, 3), np.uint8), detections(boxes, labels=generator.integers(0, 91, 200)))
    assert drawn.shape == (600, 800, 3)


def test_class_colors_are_stable_and_differ():
    colors = [class_color(label).as_rgb() for label in range(91)]
    assert colors == [class_color(label).as_rgb() for label in range(91)]
    assert len(set(colors)) == 91
    first = np.array(colors[:12])
    distances = np.abs(first[:, None] - first[None]).sum(axis=-1) + 1000 * np.eye(12)
    assert distances.min() > 60


def test_grid():
    red, green = np.full((100, 200, 3), (255, 0, 0), np.uint8), np.full((200, 100, 3), (0, 255, 0), np.uint8)
    sheet = draw_grid([red, green, red], 2, gap=10)
    assert sheet.shape == (10 + 267 + 10 + 100 + 10, 10 + 200 + 10 + 200 + 10, 3)  # upright images: at most 4/3 as high as wide
    assert sheet[5, 5].tolist() == [255, 255, 255]
    assert sheet[143, 110].tolist() == [255, 0, 0]  # centred in the first row
    assert sheet[80, 110].tolist() == [255, 255, 255]
    assert sheet[20, 320].tolist() == [0, 255, 0]
    assert sheet[337, 110].tolist() == [255, 0, 0]
    assert sheet[337, 320].tolist() == [255, 255, 255]  # an empty cell
    titled = draw_grid([red, green, red], 2, gap=10, titles=["prediction", "truth"])
    assert titled.shape[0] > sheet.shape[0]
    assert (titled[10:30] != 255).any()
    assert draw_grid([red], 4, cell_width=50).shape == (10 + 25 + 10, 10 + 50 + 10, 3)
    with pytest.raises(ValueError, match="at least one image"):
        draw_grid([])


def test_truth_is_given_in_pixels():
    target = Target(torch.tensor([[0.5, 0.25, 0.5, 0.5]]), torch.tensor([1]), "a", (200, 400))
    found = truth_detections(target, Categories(("cat", "dog"), (3, 8)))
    np.testing.assert_allclose(found.xyxy, [[100, 0, 300, 100]])
    assert list(found.data["class_name"]) == ["dog"]
    assert list(found.data["category_id"]) == [8]
    assert found.confidence is None
    empty = truth_detections(Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), "b", (20, 40)), Categories(("cat",), (3,)))
    assert len(empty) == 0
    with pytest.raises(ValueError, match="image b has no image_size"):
        truth_detections(Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), "b"), Categories(("cat",), (3,)))


@pytest.mark.parametrize("name", ["a.png", "b.jpg"])
def test_save_drawing(tmp_path, name):
    image = np.full((20, 30, 3), (200, 100, 50), np.uint8)
    path = save_drawing(tmp_path / "new" / name, image)
    read = np.asarray(Image.open(path).convert("RGB"))
    assert np.abs(read.astype(int) - image).max() <= 3
