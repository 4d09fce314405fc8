import copy
import json
import logging
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from deformable_detr.categories import Categories
from deformable_detr.data.annotation_reader import read_annotation_file
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.coco_layout import CocoLayout
from deformable_detr.data.dataset import Split, open_dataset

RECORD = {
    "images": [
        {"id": 70, "file_name": "a.png", "width": 40, "height": 20},
        {"id": 5, "file_name": "sub/b.png", "width": 10, "height": 30},
        {"id": 6, "file_name": "c.png", "width": 8, "height": 8},
    ],
    "annotations": [
        {"id": 1, "image_id": 5, "category_id": 90, "bbox": [1, 2, 4, 6], "iscrowd": 0},
        {"id": 2, "image_id": 70, "category_id": 3, "bbox": [10, 5, 20, 10], "iscrowd": 0},
        {"id": 3, "image_id": 70, "category_id": 90, "bbox": [30, -2, 20, 12]},
        {"id": 4, "image_id": 70, "category_id": 3, "bbox": [0, 0, 40, 20], "iscrowd": 1},
    ],
    "categories": [{"id": 90, "name": "star"}, {"id": 3, "name": "circle"}],
}


def keep(image, target):
    return image, target


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for entry in RECORD["images"]:
        Image.new("RGB", (entry["width"], entry["height"])).save(tmp_path / entry["file_name"])
    return tmp_path


def open_record(folder, record, **options):
    (folder / "a.json").write_text(record if isinstance(record, str) else json.dumps(record))
    return CocoDataset(Split.of_file(folder / "a.json", folder), keep, **options)


def test_samples(folder):
    dataset = open_record(folder, RECORD, training=True)
    assert len(dataset) == 3
    assert dataset.image_ids == (70, 5, 6)
    assert dataset.categories == Categories(("circle", "star"), (3, 90))
    assert dataset.image_path(1) == folder / "sub" / "b.png"
    image, target = dataset[0]
    assert image.shape == (3, 20, 40)
    assert target.image_id == 70
    assert target.image_size == (20, 40)
    assert target.labels.tolist() == [0, 1]  # the crowd region is no target
    # the second box is clipped to x 30…40, y 0…10
    torch.testing.assert_close(target.boxes, torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.875, 0.25, 0.25, 0.5]]))
    torch.testing.assert_close(dataset[1][1].boxes, torch.tensor([[0.3, 5 / 30, 0.4, 0.2]]))
    assert dataset[2][1].boxes.shape == (0, 4)  # an image without objects stays
    assert dataset[2][1].labels.dtype == torch.int64
    assert pickle.loads(pickle.dumps(dataset))[1][1].labels.tolist() == [1]


def test_samples_from_the_end(folder):
    """They had no boxes."""
    dataset = open_record(folder, RECORD)
    for index in range(3):
        torch.testing.assert_close(dataset[index - 3][1].boxes, dataset[index][1].boxes, rtol=0, atol=0)
        assert dataset[index - 3][1].image_id == dataset[index][1].image_id
    for index in (3, -4):
        with pytest.raises(IndexError):
            dataset[index]


def test_a_box_that_float32_leaves_no_area_of(folder):
    """Beyond float32's last place before 4000, so that left and right are one number; beside it a box of a pixel."""
    Image.new("RGB", (4000, 20)).save(folder / "a.png")
    record = changed("images", 0, width=4000)
    record["annotations"] = [
        {"id": 1, "image_id": 70, "category_id": 3, "bbox": [3999.99999, 5, 1.5, 10]},
        {"id": 2, "image_id": 70, "category_id": 3, "bbox": [3999, 5, 1.5, 10]},
    ]
    assert open_record(folder, record).boxes().tolist() == [[3999, 5, 4000, 15]]


def changed(section, index, **values):
    record = copy.deepcopy(RECORD)
    for key, value in values.items():
        if value is None:
            del record[section][index][key]
        else:
            record[section][index][key] = value
    return record


BAD = [
    ('{"images": [], "annotations": [], "annotations": []}', r"a\.json: 'annotations' stands twice in one object"),
    ("{'images': []", r"a\.json: not valid JSON \(line 1, column 2"),
    ("", r"not valid JSON"),
    ("[]", "expected a COCO object .* found a list"),
    ({k: v for k, v in RECORD.items() if k != "images"}, "the key 'images' is missing"),
    ({k: v for k, v in RECORD.items() if k != "categories"}, "the key 'categories' is missing"),
    ({k: v for k, v in RECORD.items() if k != "annotations"}, "the key 'annotations' is missing"),
    (RECORD | {"images": []}, "no images"),
    (RECORD | {"images": {}}, "'images' must be a list, but is a object"),
    (RECORD | {"annotations": [3]}, r"annotations\[0\] is 3, not an object"),
    (RECORD | {"categories": []}, "'categories' is empty"),
    (RECORD | {"annotations": []}, "not one box to train on"),
    (changed("images", 1, id=70), r"a\.json: sub/b\.png has the id 70 of another image, a\.png"),
    (changed("images", 1, file_name=None), r"images\[1\] is .*needs a `file_name`"),
    (changed("categories", 1, id=90), "two categories have the id 90: 'star' and 'circle'"),
    (changed("categories", 1, name=None), r"categories\[1\] is .*: needs an `id` and a `name`"),
    (changed("annotations", 1, image_id=8), "annotation 2: image_id is 8, which is not among 'images'"),
    (changed("annotations", 1, category_id=4), r"a\.png, annotation 2: category_id is 4; known are 3, 90"),
    (changed("annotations", 1, bbox=None), r"a\.png, annotation 2: bbox is None: not \[left, top, width, height\]"),
    (changed("annotations", 1, bbox=[1, 2, 3]), r"bbox is \[1, 2, 3\]: not"),
    (changed("annotations", 1, bbox=[1, 2, 3, "wide"]), "bbox is .*'wide'"),
    (changed("annotations", 1, bbox=[1, 2, float("nan"), 4]), r"annotation 2: bbox is \[1, 2, nan, 4\]"),
    (changed("annotations", 1, bbox=[1, 2, float("inf"), 4]), "not four finite|finite numbers"),
    (changed("annotations", 1, bbox=[10, 10, -5, 4]), r"bbox is \[10, 10, -5, 4\]"),
    (changed("annotations", 1, iscrowd="perhaps"), "iscrowd is 'perhaps', neither 0 nor 1"),
    (changed("annotations", 1, iscrowd=0.5), "iscrowd is 0.5, neither 0 nor 1"),
    (changed("annotations", 1, iscrowd=2), "iscrowd is 2, neither 0 nor 1"),
    (changed("annotations", 1, bbox=[40, 5, 5, 5]), r"a\.png, annotation 2: bbox \[40, 5, 5, 5\] in an image of 40 x 20"),
    (changed("annotations", 0, bbox=[1, -9, 4, 9]), r"b\.png, annotation 1: bbox .* in an image of 10 x 30 .*wholly outside"),
]


@pytest.mark.parametrize(("record", "message"), BAD)
def test_bad_annotation_files(folder, record, message):
    with pytest.raises(ValueError, match=message):
        open_record(folder, record, training=True)


def test_boxes_as_shares_are_found_out(folder):
    record = copy.deepcopy(RECORD)
    for annotation in record["annotations"]:
        annotation["bbox"] = [0.1, 0.2, 0.3, 0.4]
    with pytest.raises(ValueError, match="boxes in shares of the image; COCO has pixels"):
        open_record(folder, record)


def test_missing_files(folder):
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such annotation file"):
        Split.of_file(folder / "none.json", folder)
    open_record(folder, RECORD)
    with pytest.raises(FileNotFoundError, match="none: no such image folder"):
        Split.of_file(folder / "a.json", folder / "none")
    with pytest.raises(FileNotFoundError, match=r"a\.png: the first image of .*a\.json is missing"):
        CocoDataset(Split.of_file(folder / "a.json", folder / "sub"), keep)
    (folder / "c.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"c\.png: no such image"):
        open_record(folder, RECORD)[2]


def test_missing_images_are_skipped_wherever_they_are(folder):
    """The first one ended the training all the same."""
    (folder / "a.png").unlink()
    assert open_record(folder, RECORD, training=True, on_bad_image="skip")[0][1].image_id == 5
    for name in ("sub/b.png", "c.png"):
        (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.png: the first image of .*a\.json is missing"):
        open_record(folder, RECORD, training=True, on_bad_image="skip")


def test_degenerate_boxes_are_dropped_with_one_line(folder, caplog):
    record = changed("annotations", 1, bbox=[10, 5, 0, 10])
    with caplog.at_level(logging.WARNING):
        dataset = open_record(folder, record)
    assert dataset[0][1].labels.tolist() == [1]
    assert [r.getMessage() for r in caplog.records] == [
        f"{folder / 'a.json'}: left out 1 of 3 boxes that have no area (annotations [2])"
    ]


def test_without_annotations_only_for_evaluation(folder):
    dataset = open_record(folder, {k: v for k, v in RECORD.items() if k != "annotations"})
    assert [len(dataset[i][1]) for i in range(3)] == [0, 0, 0]


def test_categories_of_another_data_set(folder):
    by_name = open_record(folder, RECORD, categories=Categories(("Star", "moon", "circle"), (1, 2, 3)))
    assert by_name[0][1].labels.tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"do not know: 'circle' \(id 3\), 'star' \(id 90\)"):  # ids alone say nothing
        open_record(folder, RECORD, categories=Categories(("Kreis", "Mond", "Stern"), (3, 4, 90)))
    with pytest.raises(ValueError, match=r"do not know: 'star' \(id 90\); known are 'circle' \(id 3\), 'moon'"):
        open_record(folder, RECORD, categories=Categories(("circle", "moon"), (3, 90)))


def test_unused_unknown_category_is_no_fault(folder):
    record = RECORD | {"categories": [*RECORD["categories"], {"id": 0, "name": "objects"}]}
    assert open_record(folder, record, categories=Categories(("circle", "star"), (1, 2)))[0][1].labels.tolist() == [0, 1]


def test_size_that_differs_from_the_image(folder):
    record = changed("images", 0, width=41)
    with pytest.raises(ValueError, match=r"a\.png: the image is 40 x 20 pixels .* image 70 of .* is 41 x 20"):
        open_record(folder, record)[0]


@pytest.mark.parametrize(("height", "width"), [(20, 40), (40, 20)])
def test_pixels_are_turned_as_the_boxes_were_made(folder, height, width):
    """An image stored 40 x 20 that EXIF turns upright to 20 x 40, annotated either way."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 40, 3), dtype=np.uint8)).save(folder / "a.png", exif=exif)
    record = changed("images", 0, height=height, width=width)
    record["annotations"] = record["annotations"][:1]
    image, target = open_record(folder, record)[0]
    assert image.shape == (3, height, width)
    assert target.image_size == (height, width)


def split_of(dataset, split):
    return open_dataset(dataset).split(split)


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (root / name).mkdir(exist_ok=True)
        else:
            (root / name).touch()


@pytest.mark.parametrize(
    ("files", "split", "annotation_file", "image_dir"),
    [
        (
            ["annotations/instances_train.json", "annotations/instances_val.json", "train/"],
            "train",
            "annotations/instances_train.json",
            "train",
        ),
        (["annotations/instances_val2017.json", "val2017/"], "val", "annotations/instances_val2017.json", "val2017"),
        (["annotations/instances_val2017.json", "val2017/"], "val2017", "annotations/instances_val2017.json", "val2017"),
        (["annotations/instances_val.json", "images/val/"], "val", "annotations/instances_val.json", "images/val"),
        (["annotations/instances_val.json", "images/"], "val", "annotations/instances_val.json", "images"),
        (["annotations/instances_val.json", "val2017/"], "val", "annotations/instances_val.json", "val2017"),
        (["train/_annotations.coco.json", "valid/_annotations.coco.json"], "train", "train/_annotations.coco.json", "train"),
        (["valid/_annotations.coco.json"], "val", "valid/_annotations.coco.json", "valid"),
        (["annotations/instances_val.json", "val/"], "valid", "annotations/instances_val.json", "val"),
    ],
)
def test_find_split(tmp_path, files, split, annotation_file, image_dir):
    touch(tmp_path, *files)
    opened = open_dataset(tmp_path)
    name = opened.layout.own_split(split)
    assert isinstance(opened.layout, CocoLayout) and name is not None
    assert opened.layout.annotation_files[name] == tmp_path / annotation_file
    assert opened.layout.image_folders(name)[0] == tmp_path / image_dir


def test_find_split_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="none: no such dataset folder"):
        split_of(tmp_path / "none", "train")
    with pytest.raises(FileNotFoundError, match="no annotation file at all"):
        split_of(tmp_path, "train")
    touch(tmp_path, "annotations/instances_train2014.json", "annotations/instances_train2017.json", "photos/")
    with pytest.raises(FileNotFoundError, match=r"no split 'val'; looked for .*found annotations/instances_train2014\.json"):
        split_of(tmp_path, "val")
    with pytest.raises(ValueError, match=r"several files fit the split 'train'.*such as 'train2017'"):
        split_of(tmp_path, "train")


def test_the_arrays_of_a_large_file_are_kept(folder, monkeypatch):
    expected = open_record(folder, RECORD)
    monkeypatch.setattr("deformable_detr.data.annotation_reader.LARGE_FILE", 1)
    wanted = Categories(("star", "circle"), (1, 2))
    for categories in (None, wanted):
        first = open_record(folder, RECORD, categories=categories)
        with monkeypatch.context() as without:
            without.setattr("deformable_detr.data.annotation_reader.read_json", None)  # must not be needed again
            again = CocoDataset(Split.of_file(folder / "a.json", folder), keep, categories=categories)
        for dataset in (first, again):
            assert dataset.image_ids == expected.image_ids
            for index in range(3):
                assert torch.equal(dataset.target(index).boxes, expected.target(index).boxes)
                labels = expected.target(index).labels
                assert dataset.target(index).labels.tolist() == (labels if categories is None else 1 - labels).tolist()
    changed_size = changed("images", 0, width=1000)
    assert open_record(folder, changed_size).target(0).image_size == (20, 1000)


@pytest.mark.parametrize("key", ["bbox", "category_id", "image_id"])
def test_an_annotation_with_a_key_twice(tmp_path, key):
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}
    record = {"images": [{"id": 1, "file_name": "1.png", "height": 9, "width": 9}], "annotations": [box, box | {"id": 2}]}
    text = json.dumps(record | {"categories": [{"id": 1, "name": "cat"}]})
    path = tmp_path / "a.json"
    path.write_text(text)
    read_annotation_file(path).check()
    path.write_text(text.replace(f'"{key}": ', f'"{key}": 7, "{key}": ', 1))
    with pytest.raises(ValueError, match=f"'{key}' stands twice in one object"):
        read_annotation_file(path).check()
