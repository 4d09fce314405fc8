"""YOLO, VOC and COCO give the same boxes; faults name file and line; what is derived is renewed and shared."""

import json
import logging
import math
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deformable_detr.data.annotations import target_annotations
from deformable_detr.data.cache import FOLDER
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.dataset import open_dataset
from deformable_detr.data.doctor.examine import examine
from deformable_detr.data.findings import KINDS

FOREIGN = ["YOLO", "Pascal VOC"]


def split_of(dataset, split):
    return open_dataset(dataset).split(split).check()


def keep(image, target):
    return image, target


def boxes_of(dataset, split):
    """Per image, in order: class names and xyxy boxes, sorted."""
    found = target_annotations(split_of(dataset, split).annotations)
    names = np.array(found.categories.names)
    images = []
    for first, last in zip(found.first_box[:-1], found.first_box[1:], strict=True):
        images.append(sorted(zip(names[found.labels[first:last]].tolist(), found.boxes[first:last].tolist(), strict=True)))
    return images


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and FOLDER not in path.parts
    }


@pytest.mark.parametrize("name", FOREIGN)
def test_the_same_scenes_in_every_format(name, scenes, write_as, tmp_path):
    folder = write_as(name, scenes, tmp_path / "set")
    before = snapshot(folder)
    for split in ("train", "val"):
        expected, found = boxes_of(scenes, split), boxes_of(folder, split)
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert [label for label, _ in ours] == [label for label, _ in theirs]
            # six decimals of shares are 1e-4 of 72 pixels; VOC's whole pixels are exact
            np.testing.assert_allclose([box for _, box in ours], [box for _, box in theirs], atol=2e-4 if name == "YOLO" else 0)
        dataset = CocoDataset(open_dataset(folder).split(split), keep, training=True)
        for index in range(len(dataset)):
            assert dataset[index][0].shape[1:] == dataset[index][1].image_size
    assert snapshot(folder) == before
    assert open_dataset(folder).format == name
    with pytest.raises(FileNotFoundError, match=r"no split 'test'; this .* dataset has train, val"):
        split_of(folder, "test")


def test_a_data_yaml_itself(scenes, write_as, tmp_path):
    folder = write_as("YOLO", scenes, tmp_path)
    assert split_of(folder / "data.yaml", "valid").annotations.path == split_of(folder, "val").annotations.path


@pytest.mark.parametrize(
    ("settings", "images"),
    [
        ({"train": ["a/images", "b/images"], "val": "b/images"}, ["a/images/1.png", "b/images/2.png"]),
        ({"train": "list.txt", "val": "b/images"}, ["b/images/2.png", "a/images/1.png"]),
        ({"train": "../a/images", "val": "b/images", "test": "../test/images"}, ["a/images/1.png"]),
        ({"path": "a", "train": "images", "val": "images"}, ["a/images/1.png"]),
    ],
)
def test_parts_of_a_data_yaml(settings, images, small_image, tmp_path):
    for name in ("a/images/1.png", "b/images/2.png"):
        small_image(tmp_path / name)
    (tmp_path / "list.txt").write_text("./b/images/2.png\na/images/1.png\n\n")
    (tmp_path / "data.yaml").write_text(json.dumps(settings | {"names": {0: "cat", 7: "dog"}}))
    record = json.loads(split_of(tmp_path, "train").annotations.path.read_text())
    assert [image["file_name"] for image in record["images"]] == images
    assert [(entry["id"], entry["name"]) for entry in record["categories"]] == [(0, "cat"), (7, "dog")]
    assert open_dataset(tmp_path).own_splits == ("train", "val")


def yolo_image(folder, small_image, label):
    small_image(folder / "images" / "train" / "a.png")
    small_image(folder / "images" / "val" / "b.png")
    (folder / "labels" / "train").mkdir(parents=True)
    (folder / "labels" / "train" / "a.txt").write_text(label)
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    return folder


def test_labels_that_are_a_link_to_nothing(small_image, tmp_path):
    """Their images are not without objects."""
    folder = yolo_image(tmp_path, small_image, "0 0.5 0.5 0.1 0.1\n")
    (folder / "labels" / "train" / "a.txt").unlink()
    (folder / "labels" / "train" / "a.txt").symlink_to(tmp_path / "nothing.txt")
    with pytest.raises(ValueError, match=r"labels/train/a\.txt: .*No such file"):
        split_of(folder, "train").found.raise_first(folder)


def test_outlines_empty_and_missing_labels(small_image, tmp_path):
    folder = yolo_image(tmp_path, small_image, "1 0.25 0.5 0.5 0.25 0.75 1.0\n\n0 0.5 0.5 0.5 0.5\n")
    record = json.loads(split_of(folder, "train").annotations.path.read_text())
    assert [(entry["category_id"], entry["bbox"]) for entry in record["annotations"]] == [
        (1, [10, 5, 20, 15]),
        (0, [10, 5, 20, 10]),
    ]
    assert json.loads(split_of(folder, "val").annotations.path.read_text())["annotations"] == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "class 2 is unknown; the data.yaml names 0 to 1"),
        ("0.5 0.5 0.5 0.1 0.1", r"class 0\.5 is unknown"),
        ("0 0.5 0.5 0.1", "4 numbers; expected"),
        ("0 0.5 0.5 0.1 0.1 0.9", "6 numbers; expected"),
        ("cat 0.5 0.5 0.1 0.1", "is not a row of numbers"),
        ("0 20 10 4 4", r"must be shares of the image in \[0, 1\]; they look like pixels"),
        ("0 0.5 0.5 nan 0.1", "is not a row of numbers"),
        ("0 0.5 0.5 0.1 0_1", "is not a row of numbers"),
    ],
)
def test_faults_of_a_label_file(line, message, small_image, tmp_path):
    folder = yolo_image(tmp_path, small_image, f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(ValueError, match=rf"a\.txt, line 2: .*{message}.*deformable-detr doctor"):
        split_of(folder, "train")
    assert split_of(folder, "val").annotations.path.is_file()


def test_a_image_turned_by_exif_is_measured_upright(small_image, tmp_path):
    folder = yolo_image(tmp_path, small_image, "0 0.5 0.5 0.5 0.5")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(folder / "images" / "train" / "a.png", exif=exif)
    dataset = CocoDataset(open_dataset(folder).split("train"), keep, training=True)
    image, target = dataset[0]
    assert image.shape == (3, 40, 20)
    assert target.image_size == (40, 20)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a\n", r"data\.yaml: not valid YAML"),
        ("train: images\nnames: [a]\nnames: [b]\n", r"data\.yaml: not valid YAML \(twice: names in .*line 1"),
        ("train: images\nnames: {0: a, 0: b}\n", r"data\.yaml: not valid YAML \(twice: 0 in .*line 2"),
        ("train: images\nnames: [{0: a}, {1: b}]\n", "`names` must be a list of class names"),
        ("train: images\nnames: 3\n", "`names` must be a list of class names"),
        ("train: images\n", "expected `names` and at least one of"),
        ("train: images\nnc: 3\nnames: [a, b]\n", r"data\.yaml: `nc` is '3', but there are 2 names of classes"),
        ("train: images\nnc: ²\nnames: {0: a, 1: b}\n", "`nc` is '²', but there are 2 names"),
    ],
)
def test_faults_of_a_data_yaml(text, message, tmp_path):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        split_of(tmp_path / "data.yaml", "train")


def test_another_yaml_file_does_not_disturb(scenes, write_as, tmp_path):
    folder = write_as("Pascal VOC", scenes, tmp_path)
    (folder / "settings.yaml").write_text("value: !!python/object:nowhere.Thing {}\n")
    (folder / "more.yaml").write_text("[")
    assert open_dataset(folder).format == "Pascal VOC"


def test_a_missing_folder_of_a_data_yaml(tmp_path):
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    with pytest.raises(ValueError, match=r"data\.yaml: 'train' names .*images/train, which is not there"):
        split_of(tmp_path, "train")


def test_classes_txt_without_a_yaml(small_image, tmp_path):
    folder = yolo_image(tmp_path, small_image, "1 0.5 0.5 0.5 0.5")
    (folder / "data.yaml").unlink()
    (folder / "classes.txt").write_text("cat\ndog\n")
    assert boxes_of(folder, "train") == [[("dog", [10, 5, 30, 15])]]


BNDBOX = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></object></annotation>"


@pytest.mark.parametrize(
    ("written", "difficult"),
    [
        ("Unspecified", False),
        ("1", True),
        ("true", True),
        (" Yes ", True),
        ("0", False),
        ("False", False),
        ("no", False),
        ("", False),
        (None, False),
    ],
)
def test_difficult_objects(written, difficult, small_image, tmp_path):
    small_image(tmp_path / "a.png")
    word = "" if written is None else f"<difficult>{written}</difficult>"
    (tmp_path / "a.xml").write_text(f"<annotation><object><name>x</name>{word}{BNDBOX}")
    assert split_of(tmp_path, "all").annotations.crowd.tolist() == [difficult]


@pytest.mark.parametrize("place", ["", "train/", "valid/"])
def test_xml_beside_the_images(place, as_voc_xml, small_image, tmp_path):
    """1-based, both ends included: pixels 11 … 30 of 40 are x 10 … 30 from 0. Difficult objects are crowd regions."""
    for part in (place, "train/", "valid/") if place else ("",):
        for name in ("a", "b"):
            small_image(tmp_path / f"{part}{name}.png")
        (tmp_path / f"{part}a.xml").write_text(as_voc_xml("elsewhere.jpg", (40, 20), [("dog", [10, 5, 20, 10])]))
        (tmp_path / f"{part}b.xml").write_text(as_voc_xml("b.png", (0, 0), [("ant", [0, 0, 40, 20])], difficult=1))
    split = {"valid/": "val", "train/": "train", "": "all"}[place]
    file = split_of(tmp_path, split).annotations.path
    assert boxes_of(tmp_path, split) == [[("dog", [10, 5, 30, 15])], []]
    record = json.loads(file.read_text())
    assert [entry["name"] for entry in record["categories"]] == ["ant", "dog"]
    assert [entry["iscrowd"] for entry in record["annotations"]] == [0, 1]
    assert [(image["width"], image["height"]) for image in record["images"]] == [(40, 20)] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", r"a\.xml: not valid XML"),
        ("<annotation><object><name>x</name></object></annotation>", r"a\.xml, object 1: 'x' has no bndbox of four numbers"),
        (
            "<annotation><object><name>x</name><difficult>2</difficult>" + BNDBOX,
            r"a\.xml, object 1: 'x': difficult is '2' is neither",
        ),
        ("<annotation><object><name>x</name><difficult>0.5</difficult>" + BNDBOX, "'x': difficult is '0.5' is neither"),
        ("<annotation><object><bndbox/></object></annotation>", r"a\.xml, object 1: has no name"),
        ("<annotation><object><name>cat</name><bndbox/><bndbox/></object></annotation>", r"object 1: 'cat' has several bndbox"),
        ("<annotation><object><name>cat</name><name>dog</name></object></annotation>", r"object 1: 'cat' has several name;"),
        ('<annotation xmlns="http://x.org"><object><name>x</name></object></annotation>', r"object 1: 'x' has no bndbox"),
        (
            "<annotation><object><name>x</name><bndbox><xmin>0.1</xmin><ymin>0.2</ymin><xmax>0.5</xmax><ymax>0.6</ymax></bndbox>"
            "</object></annotation>",
            r"a\.xml, object 1: 'x': bndbox \(0\.1, 0\.2, 0\.5, 0\.6\) in shares of the image; VOC has pixels",
        ),
    ],
)
def test_faults_of_an_xml_file(text, message, small_image, tmp_path):
    small_image(tmp_path / "a.png")
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(ValueError, match=message):
        split_of(tmp_path, "all")


def test_a_listed_xml_or_image_that_is_missing(scenes, write_as, tmp_path):
    folder = write_as("Pascal VOC", scenes, tmp_path)
    (folder / "Annotations" / "train_000001.xml").unlink()
    with pytest.raises(ValueError, match=r"train_000001\.xml: no such file, but it is listed in ImageSets/Main"):
        split_of(folder, "train")
    (folder / "JPEGImages" / "val_000002.png").unlink()
    with pytest.raises(ValueError, match=r"val_000002\.xml: its image .*no such image, neither beside it"):
        split_of(folder, "val")


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize(
    ("damage", "code"),
    [(lambda path: path.unlink(), "image-missing"), (lambda path: path.write_bytes(b""), "image-damaged")],
    ids=["missing", "damaged"],
)
def test_images_without_a_header_are_left_out_where_training_skips_such(name, damage, code, scenes, write_as, tmp_path):
    """As those of COCO are; the whole dataset was refused."""
    folder = write_as(name, scenes, tmp_path)
    paths = sorted(folder.glob("images/train/*") if name == "YOLO" else folder.glob("JPEGImages/train_*"))
    if name == "YOLO":  # a folder lists no image that is missing
        (folder / "train.txt").write_text("".join(f"{path}\n" for path in paths))
        (folder / "data.yaml").write_text((folder / "data.yaml").read_text().replace("images/train", "train.txt"))
    damage(paths[2])
    split = open_dataset(folder).split("train")
    for training in (True, False):
        with pytest.raises(ValueError, match=rf"{paths[2].stem}.*{KINDS[code].title}"):
            CocoDataset(split, keep, training=training, on_bad_image="stop")
    dataset = CocoDataset(split, keep, training=True, on_bad_image="skip")
    assert [dataset.image_path(index) for index in range(len(dataset))] == [path for path in paths if path != paths[2]]
    assert dataset.objects_per_image().tolist() == [len(found) for at, found in enumerate(boxes_of(scenes, "train")) if at != 2]
    assert dataset[2][0].shape[1:] == dataset[2][1].image_size
    errors = [(found.code, found.split, found.count) for found in examine(folder).findings if found.severity == "error"]
    assert errors == [(code, "train", 1)]


def test_a_change_in_the_data_converts_anew(small_image, tmp_path, caplog):
    folder = yolo_image(tmp_path, small_image, "0 0.5 0.5 0.5 0.5")
    with caplog.at_level(logging.INFO):
        first = split_of(folder, "train").annotations.path
        assert split_of(folder, "train").annotations.path == first
    assert caplog.text.count("read 1 images of train (YOLO)") == 1
    (folder / "labels" / "train" / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    assert split_of(folder, "train").annotations.path != first
    assert boxes_of(folder, "train") == [[("dog", [15, 5, 25, 15])]]
    small_image(folder / "images" / "train" / "new.png")
    assert len(boxes_of(folder, "train")) == 2


def test_a_read_only_data_set_is_converted_in_the_users_cache(small_image, tmp_path, monkeypatch):
    folder = yolo_image(tmp_path / "set", small_image, "0 0.5 0.5 0.5 0.5")
    (folder / FOLDER).write_text("a file in the way, as a disk without permission would be")
    monkeypatch.setattr("deformable_detr.data.cache.user_cache", lambda: tmp_path / "cache")
    file = split_of(folder, "train").annotations.path
    assert file.is_relative_to(tmp_path / "cache" / "data")
    assert boxes_of(folder, "train") == [[("cat", [10, 5, 30, 15])]]


def test_several_at_once(scenes, write_as, tmp_path):
    """All get the same, whole file, and nothing half written stays."""
    folder = write_as("YOLO", scenes, tmp_path, ("train",))
    found, errors = [], []

    def work():
        try:
            found.append(boxes_of(folder, "val"))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert all(boxes == found[0] for boxes in found)
    assert not list((folder / FOLDER).glob("*.partial"))


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("annotations/instances_default.json", "images/default"),
        ("annotations/instances_default.json", "images"),
        ("labels.json", "data"),
        ("result.json", "."),
        ("train.json", "train"),
    ],
)
def test_one_coco_file(file, images, scenes, tmp_path):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    shutil.copy(scenes / "annotations" / "instances_train.json", tmp_path / file)
    shutil.copytree(scenes / "train", tmp_path / images, dirs_exist_ok=True)
    (tmp_path / "other.json").write_text('{"no": "COCO"}')
    parts = {split: split_of(tmp_path, split) for split in ("train", "val", "test")}
    assert {part.path(0).parent for part in parts.values()} == {tmp_path / images}
    assert [len(CocoDataset(part, keep)) for part in parts.values()] == [8, 1, 1]
    whole = Path(file).stem.removeprefix("instances_")
    if whole != "train":
        assert split_of(tmp_path, whole).annotations.path == tmp_path / file
        assert len(split_of(tmp_path, "all").paths) == 10
    for split in parts:
        assert split_of(tmp_path / file, split).paths.tolist() == parts[split].paths.tolist()


def test_what_is_no_data_set(small_image, tmp_path):
    small_image(tmp_path / "a.png")
    with pytest.raises(
        FileNotFoundError, match=r"1 images without boxes, good for `predict` alone; looked for COCO .* YOLO .* VOC"
    ):
        split_of(tmp_path, "train")
    with pytest.raises(ValueError, match=r"a\.png: not a dataset; give its folder, a YOLO data\.yaml or a COCO \.json"):
        split_of(tmp_path / "a.png", "train")


def test_a_turned_box_counts_with_its_bounding_box(small_image, tmp_path):
    """As roLabelImg writes it: here 10 x 20 pixels, turned by a quarter."""
    small_image(tmp_path / "a.png")
    values = {"cx": 15, "cy": 11, "w": 10, "h": 20, "angle": math.pi / 2}
    box = "".join(f"<{key}>{value}</{key}>" for key, value in values.items())
    text = f"<annotation><object><name>x</name><robndbox>{box}</robndbox></object></annotation>"
    (tmp_path / "a.xml").write_text(text)
    assert open_dataset(tmp_path).own("all").check().annotations.boxes.tolist() == [[5, 6, 20, 10]]
    (tmp_path / "a.xml").write_text(text.replace("<w>10</w>", "<w>-10</w>"))
    with pytest.raises(ValueError, match=r"a\.xml, object 1: 'x': robndbox of -10 x 20"):
        open_dataset(tmp_path).own("all").check()
