"""Values as people write them, and boxes of outlines and run lengths against faster-coco-eval's own masks."""

import json

import numpy as np
import pytest
from faster_coco_eval.core import mask

from deformable_detr.data.annotation_reader import parse_record, read_annotation_file
from deformable_detr.data.entries import as_box, as_flag, as_id, as_side, as_whole, box_of_segmentation, read_number


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, 7), (7.0, 7), ("7", 7), (" 7", 7), ("-7", -7), ("07", "07"), ("7.0", "7.0"), (10**30, 10**30),
        (str(10**30), 10**30), ("a-b", "a-b"), (1.5, "1.5"),
        (None, None), (True, None), ([1], None), ({}, None), ("", ""), ("²", "²"),
    ],
)  # fmt: skip
def test_ids(value, expected):
    assert as_id(value) == expected


def test_flags_sides_and_boxes():
    assert [as_flag(value) for value in (None, 0, "0", "", "False", "no", 0.0, False)] == [False] * 8
    assert [as_flag(value) for value in (1, "1", "true", True, "Yes")] == [True] * 5
    assert [as_flag(value) for value in ("perhaps", [0], {})] == [None] * 3
    assert [as_side(value) for value in (64, 64.0, "64", 64.5, 0, -1, None, "wide", 10**12, float("nan"), True)] == [64] * 3 + [
        0
    ] * 8
    assert as_box([1, "2", 3.0, 4]) == [1, 2, 3, 4]
    assert [as_box(value) for value in ([1, 2, 3], [1, 2, -3, 4], [1, 2, 10**400, 4], ["a"] * 4, None, {}, [None] * 4)] == [
        None
    ] * 7


def test_boxes_of_outlines():
    assert box_of_segmentation([[5, 6, 25, 6, 25, 21, 5, 21]]) == [5, 6, 20, 15]
    assert box_of_segmentation([[5, 6, 25, 6, 25, 21], [40, 1, 41, 2, 40, 3]]) == [5, 1, 36, 20]
    assert box_of_segmentation([5, 6, 25, 6, 25, 21]) == [5, 6, 20, 15]
    assert box_of_segmentation([[[5, 6], [25, 6], [25, 21]]]) == [5, 6, 20, 15]
    for nothing in ([], [[]], None, "x", [[1, 2]], [[1, 2, 3, 4, 5]], [[1, 2, 3, 4, 5, "a"]], {}, {"counts": [16], "size": [4, 4]}):
        assert box_of_segmentation(nothing) is None


@pytest.mark.parametrize("seed", range(20))
def test_boxes_of_run_lengths(seed):
    rng = np.random.default_rng(seed)
    pixels = np.zeros((int(rng.integers(5, 60)), int(rng.integers(5, 60))), dtype=np.uint8)
    for _ in range(int(rng.integers(1, 4))):
        top, left = (int(rng.integers(0, side - 2)) for side in pixels.shape)
        pixels[top : top + int(rng.integers(1, 40)), left : left + int(rng.integers(1, 40))] = 1
    encoded = mask.encode(np.asfortranarray(pixels))
    rows, columns = np.nonzero(pixels)
    expected = [columns.min(), rows.min(), columns.max() - columns.min() + 1, rows.max() - rows.min() + 1]
    text = encoded["counts"].decode() if isinstance(encoded["counts"], bytes) else encoded["counts"]
    assert box_of_segmentation({"size": list(pixels.shape), "counts": text}) == expected
    flat = pixels.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.array([0, *edges, flat.size])).tolist()
    assert box_of_segmentation({"size": list(pixels.shape), "counts": [0, *runs] if flat[0] else runs}) == expected
    assert box_of_segmentation({"size": [f"{side}.0" for side in pixels.shape], "counts": text}) == expected


DAMAGED = ("\0", "zzz", "P", "é", [1, -2], [1.5], ["1"], None, [10**6], [0, 10**30], [2**62, 2**62, 2**62], "o" * 10**5 + "0")


@pytest.mark.parametrize("counts", [*DAMAGED, [3, 4], [], [10, 7]])
def test_damaged_run_lengths(counts, tmp_path):
    """Numbers of pixels that add up to those of the image: anything else is no error of the machine, but named."""
    with pytest.raises(ValueError, match="its run lengths "):
        box_of_segmentation({"size": [4, 4], "counts": counts})
    (tmp_path / "a.json").write_text(json.dumps(of_run_lengths([4, 4], counts)))
    with pytest.raises(ValueError, match=r"a\.json: a\.png, annotation 7: bbox is \[0, 0, 0, 0\], and its run lengths "):
        read_annotation_file(tmp_path / "a.json").check()


@pytest.mark.parametrize("size", [[8, 2], [4, 8], [0, 4], [4], None, "4"])
def test_run_lengths_of_another_image(size, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(of_run_lengths(size, [5, 6, 5])))
    with pytest.raises(ValueError, match=r"its run lengths are of the size .*, not \[height, width\] of the image"):
        read_annotation_file(tmp_path / "a.json").check()


def of_run_lengths(size, counts):
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 4, "height": 4}],
        "annotations": [
            {"id": 7, "image_id": 1, "category_id": 1, "bbox": [0] * 4, "segmentation": {"size": size, "counts": counts}}
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }


NO_NUMBERS = ("1_0", "١٢", "１２", "1e400", "0x10", "inf", "nan", "1,5", "", "1e", ".", "--1", True, None, [1], 10**400)


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_number(text):
    """Python's own float takes most of the first ones."""
    with pytest.raises(ValueError, match="is no number"):
        read_number(text)


def test_numbers():
    assert [read_number(text) for text in ("-1", " 2.50 ", "+.5", "3.", "1E-2", 7, 0.5)] == [-1, 2.5, 0.5, 3, 0.01, 7, 0.5]
    assert [as_whole(text) for text in ("0", "12", "00", 3, "١٢", "1.0", "-1", "9" * 5000)] == [0, 12, 0, 3, None, None, None, None]
    assert as_id("1" * 5000) == "1" * 5000


def test_unusual_entries_of_a_file(tmp_path):
    record = {
        "images": [{"id": "1", "file_name": "a.png", "width": "40", "height": 20.0}, {"id": 2.0, "file_name": "b.png"}],
        "annotations": [
            {"id": "x", "image_id": 1, "category_id": "3", "bbox": ["1", 2, 3, 4], "iscrowd": "0", "area": "9"},
            {"id": 10**30, "image_id": "2", "category_id": 3.0, "bbox": [], "segmentation": [[1, 1, 5, 1, 5, 9]], "iscrowd": None},
            {"image_id": 2, "category_id": "cat", "bbox": [0, 0, 1, 1], "iscrowd": "1", "area": None, "score": 0.5},
            {"image_id": 2, "category_id": 3, "bbox": [0, 0, 0, 0], "segmentation": [[2, 1, 5, 1, 5, 9]]},
            {"image_id": 2, "category_id": 3, "bbox": [0, 0, 2, 2], "isCrowd": 1},
            {"image_id": 2, "category_id": 3, "bbox": [0, 0, 2, 2], "is_crowd": "0"},
        ],
        "categories": [{"id": "3", "name": "dog"}, {"id": "cat", "name": 7}],
    }
    (tmp_path / "a.json").write_text(json.dumps(record))
    found = read_annotation_file(tmp_path / "a.json").check()
    assert found.image_ids == ("1", 2)
    assert found.image_sizes.tolist() == [[20, 40], [0, 0]]
    assert found.annotation_ids.tolist() == ["x", str(10**30), *(f"number {row}" for row in range(2, 6))]
    assert (found.categories.names, found.categories.ids) == (("dog", "7"), (3, 4))
    assert found.labels.tolist() == [0, 0, 1, 0, 0, 0]
    assert found.boxes.tolist() == [[1, 2, 3, 4], [1, 1, 4, 8], [0, 0, 1, 1], [2, 1, 3, 8], [0, 0, 2, 2], [0, 0, 2, 2]]
    assert found.areas.tolist() == [9, 32, 1, 24, 4, 4]
    assert found.crowd.tolist() == [False, False, True, False, True, False]
    assert set(found.found.items) == {"size-missing", "box-computed", "scores"}


NO_FILES = ("[" * 100_000, '{"images": ' + "9" * 5000 + "}", "", "null", "{", b"\xed\xa0\x80")


@pytest.mark.parametrize("text", NO_FILES)
def test_what_is_no_annotation_file(text, tmp_path):
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"a\.json: "):
        read_annotation_file(tmp_path / "a.json").check()


@pytest.mark.parametrize("place", range(4))
def test_whole_numbers_beyond_floats(place, tmp_path):
    """JSON has no largest whole number."""
    box = [1, 2, 3, 4]
    box[place] = 10**400
    entry = {"id": 10**400, "image_id": 1, "category_id": 1, "bbox": box, "area": 10**400}
    record = {"images": [{"id": 1, "file_name": "a"}], "annotations": [entry], "categories": [{"id": 1, "name": "cat"}]}
    found = parse_record(record, tmp_path / "a.json")
    assert len(found.boxes) == 0 and "box-malformed" in found.found.items
    entry["bbox"] = [1, 2, 3, 4]
    assert parse_record(record, tmp_path / "a.json").areas.tolist() == [12]
