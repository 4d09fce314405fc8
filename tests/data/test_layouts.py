"""Datasets as tools and people lay them out: every label reaches its image, and what is not used is named."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from PIL import Image

from deformable_detr.data.cache import FOLDER, derived_folder
from deformable_detr.data.dataset import open_dataset
from deformable_detr.data.doctor.examine import examine
from deformable_detr.data.splits import split_sizes
from deformable_detr.data.yolo import YoloLayout

XML = "<annotation><filename>{name}</filename><object><name>cat</name><bndbox><xmin>6</xmin><ymin>7</ymin><xmax>25</xmax>\
<ymax>21</ymax></bndbox></object></annotation>"
BOX = [[5, 6, 20, 15]]
YOLO_FILES = ("images/train/1.png", "images/val/1.png", "labels/train/1.txt", "labels/val/1.txt")
LABEL = "0 0.375 0.5 0.25 0.5\n"  # of 40 x 20 pixels: 10, 5, 10, 10


def lay(root: Path, *files: str, text: dict[str, str] | None = None) -> Path:
    """Writes images, XML files and label files by their suffix, and other texts."""
    for number, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".xml":
            path.write_text(XML.format(name=path.with_suffix(".png").name))
        elif path.suffix == ".txt":
            path.write_text(LABEL)
        else:
            image = Image.new("RGB", (40, 20), (number * 20 % 256, 90, 90))
            image.save(path, format="JPEG" if path.suffix.lower() in (".jfif", ".jpe") else None)
    for name, content in (text or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def coco(*names: str, **image: object) -> str:
    images = [{"id": i, "file_name": name, "width": 40, "height": 20} | image for i, name in enumerate(names)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": BOX[0], "iscrowd": 0} for i in range(len(names))]
    return json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]})


def contents(root: Path, split: str) -> dict[str, list]:
    """The boxes of each image of a split, by the file that it is."""
    found = open_dataset(root).split(split).check()
    files = [Path(path).relative_to(root).as_posix() for path in found.paths.tolist()]
    assert all((root / file).is_file() for file in files)
    boxes: dict[str, list] = {file: [] for file in files}
    for image, box in zip(found.annotations.images.tolist(), found.annotations.boxes.tolist(), strict=True):
        boxes[files[image]].append(box)
    return boxes


def codes(root: Path) -> set[str]:
    return {finding.code for finding in examine(root).findings if finding.severity != "note"} - {"image-alike", "image-leak"}


@pytest.mark.parametrize(
    ("files", "split", "images"),
    [
        (["annotations/1.xml", "images/1.png"], "all", ["images/1.png"]),
        (["Annotations/1.xml", "Images/1.png"], "all", ["Images/1.png"]),
        (["a/b/xml/1.xml", "a/b/img/1.png"], "all", ["a/b/img/1.png"]),
        (["images/train/1.png", "images/train/1.xml", "images/test/2.png", "images/test/2.xml"], "test", ["images/test/2.png"]),
        (
            ["train/annotations/1.xml", "train/images/1.png", "val/annotations/1.xml", "val/images/1.png"],
            "val",
            ["val/images/1.png"],
        ),
        (["Train/1.xml", "Train/1.png", "Validation/1.xml", "Validation/1.png"], "train", ["Train/1.png"]),
        (["annotations/1.xml", "images/1.JPG"], "all", ["images/1.JPG"]),
    ],
)
def test_xml_in_other_folders(files, split, images, tmp_path):
    assert contents(lay(tmp_path, *files), split) == dict.fromkeys(images, BOX)
    assert codes(tmp_path) == set()


@pytest.mark.parametrize(
    "line", ["my cat 1", '"my cat 1"', "'my cat 1'", "my cat 1.png", "JPEGImages\\my cat 1.png", "my cat 1 1", "my cat 1  -1"]
)
def test_lists_of_image_sets(line, tmp_path):
    files = [f"Annotations/my cat {n}.xml" for n in (1, 2)] + [f"JPEGImages/my cat {n}.png" for n in (1, 2)]
    lists = {
        "ImageSets/Main/Train.txt": line + "\r\n",
        "ImageSets/Main/Test.txt": "my cat 2\n",
        "ImageSets/Main/cat_train.txt": "x 1",
    }
    lay(tmp_path, *files, text=lists)
    assert contents(tmp_path, "test") == {"JPEGImages/my cat 2.png": BOX}
    assert open_dataset(tmp_path).own("Train").paths.tolist() == [str(tmp_path / "JPEGImages/my cat 1.png")]
    assert "annotation-unused" in codes(tmp_path)  # the list of a single class


@pytest.mark.parametrize("folders", [("", ""), ("Annotations/", "JPEGImages/")])
def test_files_of_one_name_in_several_folders(folders, tmp_path):
    """As cameras number their images: both lists led to the first XML file of the name."""
    xml, image = folders
    lay(tmp_path, *(f"{xml}{camera}/1.xml" for camera in "ab"), *(f"{image}{camera}/1.png" for camera in "ab"))
    for camera, split in zip("ab", ("train", "val"), strict=True):
        lay(tmp_path, text={f"ImageSets/Main/{split}.txt": f"{camera}/1\n", f"{xml}{camera}/1.xml": XML.format(name="1.png")})
    (tmp_path / f"{xml}b/1.xml").write_text(XML.format(name="1.png").replace(">6<", ">8<"))
    assert contents(tmp_path, "train") == {f"{image}a/1.png": BOX}
    assert contents(tmp_path, "val") == {f"{image}b/1.png": [[7, 6, 18, 15]]}


def test_pascal_voc_itself(tmp_path):
    """It has segmentations of the images' names, which could be the images themselves."""
    folders = ("JPEGImages/1.jpg", "SegmentationClass/1.png", "SegmentationObject/1.png")
    lay(tmp_path, *folders, text={"Annotations/1.xml": XML.format(name="1.jpg"), "ImageSets/Main/train.txt": "1\n"})
    lay(tmp_path, text={"ImageSets/Segmentation/train.txt": "1\n", "ImageSets/Main/cat_train.txt": "1  1\n"})
    assert contents(tmp_path, "train") == {"JPEGImages/1.jpg": BOX}


def test_masks_that_are_nearer_than_the_images(tmp_path):
    """As in the Oxford-IIIT Pet dataset: the masks were taken for the images, without a word."""
    folders = ("images/cat_1.jpg", "annotations/trimaps/cat_1.png")
    lay(tmp_path, *folders, text={"annotations/xmls/cat_1.xml": XML.format(name="cat_1.jpg")})
    assert contents(tmp_path, "all") == {"images/cat_1.jpg": BOX}


def test_the_image_beside_an_xml_file_whatever_its_suffix(tmp_path):
    lay(tmp_path, "new/1.png", "old/1.jpg", text={"new/1.xml": XML.format(name="1.jpg")})
    assert contents(tmp_path, "all") == {"new/1.png": BOX}


def test_files_of_a_mac_are_no_annotations(tmp_path):
    lay(tmp_path, "1.png", "1.xml", text={"._1.xml": "\0 Mac OS X", "__MACOSX/1.xml": "\0"})
    assert contents(tmp_path, "all") == {"1.png": BOX}


@pytest.mark.parametrize(
    ("annotation_files", "images"),
    [
        (("annotations/instances_Train.json", "annotations/instances_Validation.json"), ("images/Train/", "images/Validation/")),
        (("annotations/instances_default.json", "annotations/val_instances_default.json"), ("images/a", "images/b")),
        (("Annotations/TRAIN.json", "Annotations/VAL.json"), ("images/train/", "images/val/")),
        (("train/labels.json", "valid/labels.json"), ("train/data/", "valid/data/")),
        (("train.json", "val.json"), ("images/train_", "images/val_")),
        (("instances/train2017.json", "instances/val2017.json"), ("train2017/", "val2017/")),
    ],
)
def test_coco_files_and_folders(annotation_files, images, tmp_path):
    for file, prefix, split in zip(annotation_files, images, ("train", "val"), strict=True):
        path = f"{prefix}1.png"
        lay(tmp_path, path, text={file: coco(Path(path).name)})
        folder = Path(file).parent
        if "data/" in prefix:
            (tmp_path / file).write_text(coco(f"data/{Path(path).name}"))
        assert folder is not None, split
    for prefix, split in zip(images, ("train", "val"), strict=True):
        assert contents(tmp_path, split) == {f"{prefix}1.png": BOX}
    assert codes(tmp_path) == set()


@pytest.mark.parametrize(
    ("written", "lies", "said"),
    [
        ("images\\1.png", "images/1.png", False),
        (".\\1.png", "images/1.png", False),
        ("../../label-studio/data/media/upload/4/1.png", "images/1.png", True),
        ("/data/local-files/?d=set/images/1.png", "images/1.png", True),
        ("https://host/a/1.png?size=2", "images/1.png", True),
        ("C:\\Users\\me\\set\\images\\1.png", "images/1.png", True),
        ("my%20cat.png", "images/my cat.png", True),
        ("1a2b3c4d-cat.png", "images/cat.png", True),
        ("Cat.PNG", "images/cat.png", True),
        ("cat.jpg", "images/cat.png", True),
        ("e\u0301l.png", "images/\u00e9l.png", True),
    ],
)
def test_images_found_under_another_name(written, lies, said, tmp_path):
    lay(tmp_path, lies, text={"train.json": coco(written)})
    found = open_dataset(tmp_path).own("train")
    assert found.paths.tolist() == [str(tmp_path / lies)]
    assert ("image-renamed" in codes(tmp_path)) == said


@pytest.mark.parametrize("name", ["'q'.png", '"q.png', " a.png", "back\\slash.png", "a\nb.png", "50%.png", "a%20b.png"])
def test_names_as_they_are(name, tmp_path):
    """A file that has exactly the annotated name is meant, whatever letters that name has."""
    (tmp_path / "train").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "train" / name)
    (tmp_path / "train.json").write_text(coco(name))
    assert contents(tmp_path, "train") == {f"train/{name}": BOX}
    assert codes(tmp_path) == set()


def test_what_is_not_unique_is_not_guessed(tmp_path):
    lay(tmp_path, "images/a/1.png", "images/b/1.png", "images/2.png", text={"all.json": coco("x/1.png", "u/2.png", "v/2.png")})
    found = open_dataset(tmp_path).own("all")
    assert [Path(path).exists() for path in found.paths.tolist()] == [False] * 3
    assert codes(tmp_path) >= {"image-missing"}


def test_an_image_of_another_split_is_not_taken(tmp_path):
    lay(tmp_path, "train/1.png", "val/2.png", text={"train.json": coco("1.png", "2.png"), "val.json": coco("2.png")})
    assert [Path(path).exists() for path in open_dataset(tmp_path).split("train").paths.tolist()] == [True, False]


YOLO = "train: {train}\nval: images/val\nnames: [cat, dog]\n"


@pytest.mark.parametrize(
    "train",
    [
        "images/train",
        "images\\train",
        "../images/train",
        "/content/set/images/train",
        "C:\\set\\images\\train",
        "train.txt",
    ],
)
@pytest.mark.parametrize("line", ["images/train/1.png", "data/images/train/1.png", "images\\train\\1.png", "./images/train/1.png"])
def test_paths_of_a_data_yaml(train, line, tmp_path):
    files = ["images/train/1.png", "labels/train/1.txt", "images/val/2.png", "labels/val/2.txt"]
    lay(tmp_path, *files, text={"data.yaml": YOLO.format(train=train), "train.txt": line + "\r\n"})
    assert contents(tmp_path, "train") == {"images/train/1.png": [[10, 5, 10, 10]]}
    assert ("path-replaced" in codes(tmp_path)) == train.startswith(("/", "C:"))


@pytest.mark.parametrize(
    ("image", "label", "said"),
    [
        ("images/train/1.png", "labels/train/1.txt", False),
        ("images/train/1.png", "images/train/1.txt", False),
        ("Images/1.png", "Labels/1.txt", False),
        ("train/images/1.jfif", "train/labels/1.txt", False),
        ("train/1.png", "train/1.txt", False),
        ("images/\u00e9l.png", "labels/%C3%A9l.txt", True),
        ("images/\u00e9l.png", "labels/e\u0301l.txt", True),
        ("images/Cat.png", "labels/cat.txt", True),
    ],
)
def test_where_labels_lie(image, label, said, tmp_path):
    lay(tmp_path, image, label, text={"classes.txt": "cat\ndog\n\n"})
    (name,) = open_dataset(tmp_path).own_splits
    found = open_dataset(tmp_path).own(name)
    assert found.annotations.boxes.tolist() == [[10, 5, 10, 10]]
    assert ("label-renamed" in codes(tmp_path)) == said


def test_labels_of_images_below_two_folders_of_such_names(tmp_path):
    """Where one label is found, the others would be missed without a word."""
    lay(tmp_path, "images/1.png", "images/imgs/2.png", text={"data.yaml": "train: images\nnames: [cat]\n"})
    lay(tmp_path, "labels/1.txt", "labels/imgs/2.txt")
    assert len(open_dataset(tmp_path).own("train").check().annotations.boxes) == 2


def test_names_of_a_list_that_would_lead_to_one_image(tmp_path):
    lay(tmp_path, "1.png", "2.png", text={"data.yaml": "train: train.txt\nnames: [cat]\n", "train.txt": "/old/a/1.png\n2.png\n"})
    assert "path-replaced" in codes(tmp_path)
    (tmp_path / "train.txt").write_text("/old/a/1.png\n/old/b/1.png\n")
    with pytest.raises(ValueError, match=r"old/a/1\.png: no such image"):
        open_dataset(tmp_path).own("train").check()


@pytest.mark.parametrize("line", ["2 -1", "0 0.5 0.5 0.1 0.1", "# images", "1.png 5,6,25,16,0"])
def test_lines_of_a_list_that_name_no_image(line, tmp_path):
    lay(tmp_path, "1.png", text={"data.yaml": "train: train.txt\nnames: [cat]\n", "train.txt": f"1.png\n{line}\n"})
    with pytest.raises(ValueError, match=rf"train\.txt: the line '{line}' is no path of an image"):
        open_dataset(tmp_path).own("train").check()


def test_folders_without_a_label_beside_a_list_of_classes(tmp_path):
    """Masks were images without objects."""
    files = ("images/1.png", "images/2.png", "labels/1.txt", "masks/1.png", "masks/2.png", "images/small/1.png")
    lay(tmp_path, *files, text={"classes.txt": "cat\n"})
    assert contents(tmp_path, "all") == {"images/1.png": [[10, 5, 10, 10]], "images/2.png": []}
    unused = [item.text for code, item in open_dataset(tmp_path).unused() if code == "image-unlisted"]
    assert sorted(unused) == ["images/small/1.png", "masks/1.png", "masks/2.png"]


def test_a_stated_number_of_classes(tmp_path):
    """In a data.yaml and in an obj.data; `nc:` without a value states none."""
    lay(tmp_path, "1.png", "1.txt", text={"data.yaml": "train: train.txt\nnc:\nnames: [cat]\n", "train.txt": "1.png\n"})
    assert len(open_dataset(tmp_path).own("train").check().annotations.boxes) == 1
    (tmp_path / "data.yaml").unlink()
    lay(tmp_path, text={"obj.data": "classes = 2\ntrain = train.txt\nnames = obj.names\n", "obj.names": "cat\n"})
    with pytest.raises(ValueError, match=r"obj\.data: `classes` is '2', but there are 1 names"):
        open_dataset(tmp_path)


def test_scores_that_are_none_of_predictions(tmp_path):
    """Null, of an image, or among the attributes of an object."""
    record = json.loads(coco("1.png", score=0.5))
    record["annotations"][0] |= {"score": None, "attributes": {"score": 0.9}}
    lay(tmp_path, "1.png", text={"train.json": json.dumps(record)})
    assert open_dataset(tmp_path).own("train").check().annotations.boxes.tolist() == BOX
    record["annotations"][0]["score"] = 0.5
    (tmp_path / "train.json").write_text(json.dumps(record))
    with pytest.raises(FileNotFoundError, match="no annotation file at all"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("name", ["score", "segments_info", "image_id"])
def test_classes_called_like_keys(name, tmp_path):
    """A file is recognised by its keys, not by what its classes are called."""
    lay(tmp_path, "train/1.png", "val/2.png", text={"val.json": coco("2.png")})
    (tmp_path / "train.json").write_text(coco("1.png").replace('"cat"', f'"{name}"'))
    assert open_dataset(tmp_path).own("train").check().annotations.categories.names == (name,)


def test_darknet_and_cvat(tmp_path):
    data = "classes = 1\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n"
    lists = {"train.txt": "data/obj_train_data/1.png\n", "valid.txt": "data/obj_valid_data/2.png\n"}
    files = ["obj_train_data/1.png", "obj_train_data/1.txt", "obj_valid_data/2.png", "obj_valid_data/2.txt"]
    lay(tmp_path, *files, text={"obj.data": data, "obj.names": "cat\n", **lists})
    assert contents(tmp_path, "train") == {"obj_train_data/1.png": [[10, 5, 10, 10]]}
    assert contents(tmp_path, "val") == {"obj_valid_data/2.png": [[10, 5, 10, 10]]}
    assert codes(tmp_path) == set()


@pytest.mark.parametrize("settings", ["data.yaml", "obj.data"])
def test_a_list_of_names_that_changes(settings, tmp_path):
    """The boxes were kept with the names of before, and the list was said to be unused."""
    texts = {
        "data.yaml": "train: images/train\nval: images/val\nnames: lists/classes.txt\n",
        "obj.data": "train = train.lst\nvalid = val.lst\nnames = lists/classes.txt\n",
    }
    lists = {f"{split}.lst": f"images/{split}/1.png\n" for split in ("train", "val")} if settings == "obj.data" else {}
    lay(tmp_path, *YOLO_FILES, text={settings: texts[settings], **lists})
    for names in ("cat\ndog\n", "dog\ncattle\n"):
        lay(tmp_path, text={"lists/classes.txt": names})
        opened = open_dataset(tmp_path)
        assert opened.own("train").check().annotations.categories.names == tuple(names.split())
        assert opened.unused() == []


def test_a_data_yaml_that_names_its_own_folder(tmp_path, monkeypatch):
    """From the root, and the dataset is opened by a relative path: all images and labels were said to be unused."""
    root = tmp_path / "set"
    settings = f"path: {root}\ntrain: images/train\nval: images/val\nnames: [cat]\n"
    lay(root, *YOLO_FILES, "more/2.png", text={"data.yaml": settings})
    monkeypatch.chdir(tmp_path)
    assert [(code, item.text) for code, item in open_dataset("set").unused()] == [("image-unlisted", "more/2.png")]


@pytest.mark.parametrize(
    "written", ["[no, 1.0, null, 2024-01-01, 'on', 007]", "{0: no, 1: 1.0, 2: null, 3: 2024-01-01, 4: 'on', 5: 007}"]
)
def test_class_names_as_their_author_wrote_them(written, tmp_path):
    lay(tmp_path, "images/1.png", "labels/1.txt", text={"data.yaml": f"train: images\nval:\ntest: null\nnames: {written}\n"})
    dataset = open_dataset(tmp_path)
    assert dataset.own_splits == ("train",)
    assert dataset.own("train").annotations.categories.names == ("no", "1.0", "null", "2024-01-01", "on", "007")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("{0: cat, 00: dog}", "`names` has a class twice: 0, 00"),
        ("{٠: cat}", "`names` must be a list"),
        (f"{{{'1' * 900}: cat}}", "`names` must be a list"),
    ],
)
def test_numbers_of_classes_that_cannot_be_meant(names, message, tmp_path):
    lay(tmp_path, "images/1.png", text={"data.yaml": f"train: images\nnames: {names}\n"})
    with pytest.raises(ValueError, match=rf"data\.yaml: {message}"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ("0 big cat\n1 dog\n", {0: "big cat", 1: "dog"}),
        ("1: dog\n0: cat", {0: "cat", 1: "dog"}),
        ("5 cent\n10 cent\n", {0: "5 cent", 1: "10 cent"}),
        ("0\n1\n", {0: "0", 1: "1"}),
    ],
)
def test_numbers_in_front_of_class_names(lines, names, tmp_path):
    lay(tmp_path, "images/1.png", "labels/1.txt", text={"classes.txt": lines})
    layout = open_dataset(tmp_path).layout
    assert isinstance(layout, YoloLayout)
    assert layout.names == names
    assert ("names-numbered" in codes(tmp_path)) == (names[0] not in lines.splitlines())


POSE = "0 0.5 0.5 0.5 0.5 0.1 0.2 0.3 0.4 0.5 0.6\n"
SQUARE = "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n"


@pytest.mark.parametrize(
    ("shape", "lines", "expected"),
    [
        ("kpt_shape: [3, 2]\n", POSE, [[10, 5, 20, 10]]),
        ("kpt_shape: [2, 3]\n", "0 0.5 0.5 0.5 0.5 0.1 0.2 2 0.3 0.4 0\n", [[10, 5, 20, 10]]),
        ("kpt_shape: none\n", POSE, [[4, 4, 16, 8]]),
        ("task: segment\n", POSE, [[4, 4, 16, 8]]),
        ("", SQUARE, [[10, 5, 20, 10]]),  # an oriented box
        ("", SQUARE + "0 0.1 0.1 0.4 0.1 0.2 0.5\n" + POSE, None),  # outlines of several lengths: no pose
        ("", "0 0.5 0.1 0.9 0.5 0.7 0.9 0.3 0.9 0.1 0.5\n", [[4, 2, 32, 16]]),
    ],
)
def test_lines_of_more_numbers(shape, lines, expected, tmp_path):
    lay(tmp_path, "images/1.png", text={"labels/1.txt": lines, "data.yaml": f"train: images\n{shape}names: [cat]\n"})
    boxes = open_dataset(tmp_path).own("train").check().annotations.boxes.round(3).tolist()
    assert len(boxes) == 3 if expected is None else boxes == expected


@pytest.mark.parametrize(
    ("shape", "line", "message"),
    [
        ("", POSE, r"11 numbers are an outline of 5 points, or a box with keypoints.*`kpt_shape: \[3, 2\]`"),
        ("", "0 0.5 0.5 0.5 0.5 0.4 0.4 1 0.6 0.6 1\n", r"`kpt_shape: \[3, 2\]` or `kpt_shape: \[2, 3\]`"),
        ("", "0 0.5 0.5 0.5 0.5 0.4 0.4 2\n", r"8 numbers; expected.*`kpt_shape: \[1, 3\]`"),
        ("", "0 0.5 0.5 0.5 0.5 0.9\n", "score of a prediction"),
        ("kpt_shape: [3, 2]\n", SQUARE, r"9 numbers; with kpt_shape \[3, 2\] a line has 5 or 11"),
        ("kpt_shape: [3]\n", POSE, "kpt_shape is .*; expected"),
        (f"kpt_shape: [{'9' * 5000}, 3]\n", POSE, r"data\.yaml: kpt_shape is .*; expected"),
        ("kpt_shape: [١٧, 3]\n", POSE, r"data\.yaml: kpt_shape is .*; expected"),
    ],
)
def test_lines_that_could_be_something_else(shape, line, message, tmp_path):
    lay(tmp_path, "images/1.png", text={"labels/1.txt": line, "data.yaml": f"train: images\n{shape}names: [cat]\n"})
    with pytest.raises(ValueError, match=message):
        open_dataset(tmp_path).own("train").check()


@pytest.mark.parametrize(
    ("form", "written"), [("corners", "class x1 y1 x2 y2"), ("left, top", "class left top w h"), ("centred", None)]
)
def test_boxes_that_are_not_written_around_their_centre(form, written, tmp_path):
    """Right, they stay in their images."""
    places = [(0.05, 0.1, 0.4, 0.5), (0.3, 0.2, 0.5, 0.3), (0.5, 0.4, 0.5, 0.6), (0.0, 0.0, 0.2, 0.9), (0.6, 0.7, 0.3, 0.3)]
    lines = {
        "corners": [(x, y, x + w, y + h) for x, y, w, h in places],
        "left, top": places,
        "centred": [(x + w / 2, y + h / 2, w, h) for x, y, w, h in places],
    }[form]
    text = "".join(f"0 {' '.join(map(str, line))}\n" for line in lines)
    lay(tmp_path, "images/1.png", text={"labels/1.txt": text, "data.yaml": "train: images\nnames: [cat]\n"})
    split = open_dataset(tmp_path).own("train")
    if written is None:
        assert len(split.check().annotations.boxes) == 5
    else:
        with pytest.raises(ValueError, match=rf"1\.txt, line 1: . of 5 boxes reach out .*look like `{written}`, not `class cx"):
            split.check()


def test_encodings(tmp_path):
    lay(tmp_path, "images/1.png", "labels/1.txt")
    (tmp_path / "classes.txt").write_bytes("\u732b\u72d7\n".encode("gbk"))
    with pytest.raises(ValueError, match=r"classes\.txt: not UTF-8 text \(byte 0x.. in line 1\)"):
        open_dataset(tmp_path)
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "classes.txt").write_bytes("\u732b\n".encode(encoding))
        (tmp_path / "labels" / "1.txt").write_bytes(LABEL.encode(encoding))
        found = open_dataset(tmp_path).own("all").check()
        assert (found.annotations.categories.names, len(found.annotations.boxes)) == (("\u732b",), 1)
        (tmp_path / "val.json").write_bytes(coco("1.png").encode(encoding))
        assert len(open_dataset(tmp_path / "val.json").own("val").check().annotations.boxes) == 1
        (tmp_path / "val.json").unlink()
    xml = "<?xml version='1.0' encoding='gbk'?>" + XML.format(name="1.png").replace("cat", "\u732b")
    shutil.rmtree(tmp_path / "labels")
    (tmp_path / "images" / "1.xml").write_bytes(xml.encode("gbk"))
    (tmp_path / "classes.txt").unlink()
    assert open_dataset(tmp_path).own("all").check().annotations.categories.names == ("\u732b",)


def test_every_file_is_accounted_for(tmp_path):
    predictions = json.loads(coco("1.png"))
    predictions["annotations"][0]["score"] = 0.9
    files = ["images/1.png", "labels/1.txt", "images/train/2.png", "labels/train/2.txt", "labels/lost.txt"]
    more = {"images/a.heic": "", "pred.json": json.dumps(predictions), "README.md": "x", "notes.json": "{}"}
    lay(tmp_path, *files, text={"classes.txt": "cat\n", **more})
    dataset = open_dataset(tmp_path)
    assert dataset.format == "YOLO"
    used = {tmp_path / name for name in ("images/train/2.png", "labels/train/2.txt", "classes.txt")}
    unused = {code: [] for code, _ in dataset.unused()}
    for code, item in dataset.unused():
        assert item.file is not None
        unused[code].append(Path(item.file).relative_to(tmp_path).as_posix())
    assert unused == {
        "image-unlisted": ["images/1.png"],  # train/ is a split, so what lies beside it is none
        "label-unused": ["labels/1.txt", "labels/lost.txt"],
        "image-format": ["images/a.heic"],
        "annotation-unused": ["pred.json"],
        "file-unused": ["README.md", "notes.json"],
    }
    listed = {tmp_path / name for names in unused.values() for name in names}
    everything = {path for path in tmp_path.rglob("*") if path.is_file() and FOLDER not in path.parts}
    assert listed | used == everything
    assert not listed & used


def test_a_second_annotation_file_is_named(tmp_path):
    lay(
        tmp_path,
        "train/1.png",
        text={f"annotations/{kind}_train.json": coco("1.png") for kind in ("instances", "person_keypoints")},
    )
    (unused,) = [item.text for code, item in open_dataset(tmp_path).unused() if code == "annotation-unused"]
    assert unused == "annotations/person_keypoints_train.json: the split is read from instances_train.json"


def test_predictions_alone_are_no_dataset(tmp_path):
    record = json.loads(coco("1.png"))
    record["annotations"][0]["score"] = 0.5
    lay(tmp_path, "1.png", text={"predictions.json": json.dumps(record)})
    with pytest.raises(FileNotFoundError, match="no annotation file at all"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("1.json", '{"shapes": [], "imagePath": "1.png", "imageHeight": 2}', "LabelMe"),
        ("via.json", '{"1.png123": {"filename": "1.png", "size": 123, "regions": []}}', "VIA"),
        ("via_project.json", '{"_via_settings": {}, "_via_img_metadata": {}}', "VIA"),
        ("a.json", '[{"image": "1.png", "annotations": []}]', "CreateML"),
        ("boxes.csv", "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax\n", "Open Images CSV"),
        ("labels.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\n", "TensorFlow CSV"),
        ("label_2/1.txt", "Car 0.00 0 -1.58 587.01 173.33 614.12 200.12 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59\n", "KITTI"),
        ("default.json", '{"info": {}, "categories": {"label": {}}, "items": []}', "Datumaro"),
        ("samples.json", '{"samples": []}', "FiftyOne"),
        ("annotations.xml", "<annotations><version>1.1</version><image/></annotations>", "CVAT"),
        ("labels/1.txt", LABEL, "YOLO without names of classes"),
    ],
)
def test_other_formats_are_named(name, text, kind, tmp_path):
    lay(tmp_path, "1.png", text={name: text})
    with pytest.raises(FileNotFoundError, match=rf"annotations in the format {kind}"):
        open_dataset(tmp_path)


def test_test_is_never_trained_on(tmp_path):
    files = [f"{split}/{number}.png" for split in ("train", "test") for number in range(10)]
    lists = {f"{split}.json": coco(*(f"{split}/{number}.png" for number in range(10))) for split in ("train", "test")}
    lay(tmp_path, *files, text=lists)
    dataset = open_dataset(tmp_path)
    parts = {split: set(dataset.split(split).annotations.file_names.tolist()) for split in ("train", "val", "test")}
    assert {split: len(names) for split, names in parts.items()} == split_sizes(10, {"val": 0.1}) | {"test": 10}
    assert parts["train"] | parts["val"] == {f"train/{number}.png" for number in range(10)}


def test_what_is_evaluated_without_a_split(tmp_path):
    lay(tmp_path, *(f"images/{n}.png" for n in range(10)), text={"labels.json": coco(*(f"{n}.png" for n in range(10)))})
    assert open_dataset(tmp_path).evaluation_split() == "all"
    assert len(open_dataset(tmp_path).split("all").paths) == 10
    open_dataset(tmp_path).split("train")  # divides it
    assert open_dataset(tmp_path).evaluation_split() == "val"
    assert len(open_dataset(tmp_path).split("all").paths) == 10


def test_one_entry_of_images_per_box(tmp_path):
    names = [name for n in range(10) for name in (f"{n}.png", f"./{n}.png")]
    record = json.loads(coco(*names))
    for entry in record["annotations"][1::2]:
        entry["bbox"] = [20, 2, 9, 9]
    lay(tmp_path, *(f"images/{n}.png" for n in range(10)), text={"labels.json": json.dumps(record)})
    for _ in range(2):
        parts = [open_dataset(tmp_path).split(split) for split in ("train", "val", "test")]
        assert [len(part.paths) for part in parts] == [8, 1, 1]
        assert all(len(part.annotations.boxes) == 2 * len(part.paths) for part in parts)
        written = json.loads((tmp_path / FOLDER / "splits.json").read_text())["labels.json"]["images"]
        assert sorted(name for names in written.values() for name in names) == [f"{n}.png" for n in range(10)]


def test_one_entry_of_images_per_box_of_which_two_are_the_same(tmp_path):
    """That the first two entries have the same box is no purpose: the copy of the image lacked the other boxes."""
    record = json.loads(coco("1.png", "1.png", "1.png", "2.png", "2.png"))
    record["annotations"][2]["bbox"] = [20, 2, 9, 9]
    lay(tmp_path, "1.png", "2.png", text={"labels.json": json.dumps(record)})
    found = open_dataset(tmp_path).own("labels").check().annotations
    assert found.file_names.tolist() == ["1.png", "2.png", "2.png"]
    boxes = [found.boxes[found.images == image].tolist() for image in range(3)]
    assert boxes == [[*BOX, *BOX, [20, 2, 9, 9]], BOX, BOX]


def test_faults_of_an_image_that_is_listed_again(tmp_path):
    """They belong to the one image that its entries become; they were forgotten with the second entry."""
    record = json.loads(coco("1.png", "1.png", "2.png"))
    box = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}
    faulty = [box | {"id": 7, "bbox": [1, 2, 3]}, box | {"id": 8, "category_id": 5}, box | {"id": 9, "image_id": 2, "iscrowd": 3}]
    record["annotations"][1]["bbox"] = [2, 2, 9, 9]
    record["annotations"] += faulty
    lay(tmp_path, "1.png", "2.png", text={"train.json": json.dumps(record)})
    found = open_dataset(tmp_path).own("train")
    assert [(code, item.annotation_id, item.image) for code, item in found.found.errors] == [
        ("box-malformed", 7, 0),
        ("category-unknown", 8, 0),
        ("entry-malformed", 9, 1),
    ]
    with pytest.raises(ValueError, match=r"annotation 7: bbox is \[1, 2, 3\].* \(and 2 more such faults\)"):
        open_dataset(tmp_path).own("train").check()


def test_sizes_that_are_missing_or_impossible(tmp_path):
    for image in ({"width": None}, {"height": 0}, {"width": "40"}, {"width": 40.0}, {"width": 10**12, "height": -3}):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        lay(root, "1.png", text={"train.json": coco("1.png", **image)})
        assert open_dataset(root).own("train").check().annotations.image_sizes.tolist() == [[20, 40]]


def test_folders_that_are_links(tmp_path):
    lay(tmp_path / "elsewhere", "1.png", "1.xml")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "set", target_is_directory=True)
    assert len(open_dataset(tmp_path / "set").own("train").check().annotations.boxes) == 1


def test_nowhere_to_write(tmp_path, monkeypatch):
    lay(tmp_path / "set", "1.png", text={FOLDER: "in the way", "temporary": "in the way"})
    monkeypatch.setattr("deformable_detr.data.cache.user_cache", lambda: Path("/proc/nowhere"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "t"))
    assert derived_folder(tmp_path / "set").is_relative_to(tmp_path / "t")
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/proc/nowhere")
    with pytest.raises(PermissionError, match="XDG_CACHE_HOME"):
        derived_folder(tmp_path / "set")


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), (coco(), "no images"), ("", "not valid JSON")])
def test_nothing_in_the_only_file(text, message, tmp_path):
    """The fault is named, by doctor and by training, though there is nothing to divide."""
    lay(tmp_path, "train/1.png", text={"annotations/instances_train.json": text})
    assert {finding.code for finding in examine(tmp_path).findings} & {"file-damaged", "no-images"}
    with pytest.raises(ValueError, match=message):
        open_dataset(tmp_path).split("train").check()


LONG = "9" * 400


@pytest.mark.parametrize(
    ("files", "text"),
    [
        (["images/a.png"], {"data.yaml": "train: [images, list.txt]\nnames: [cat]", "list.txt": f"images/a.png\n{LONG}.png"}),
        (["images/a.png"], {"data.yaml": f"train: {LONG}\nnames: [cat]"}),
        (["JPEGImages/a.png", "Annotations/a.xml"], {"ImageSets/Main/train.txt": f"a\n{LONG}"}),
    ],
    ids=["YOLO list", "YOLO path", "VOC list"],
)
def test_names_that_no_file_can_have(files, text, tmp_path):
    """pathlib raises for them where it says of any other name that there is no such file."""
    with pytest.raises((ValueError, FileNotFoundError), match=LONG):
        open_dataset(lay(tmp_path / "set", *files, text=text)).split("train").check()


def test_an_image_name_that_no_file_can_have(tmp_path):
    text = {"annotations/instances_train.json": coco("a.png", f"{LONG}.png")}
    codes = {finding.code for finding in examine(lay(tmp_path / "set", "train/a.png", text=text)).findings}
    assert codes & {"image-missing", "image-damaged"}


def spoil(content: bytes, chance: random.Random) -> bytes:
    """A byte, a line or a number is another one; or the end is missing; or the encoding is another."""
    lines, at = content.split(b"\n"), chance.randrange(len(content))
    odd = [b"\xff", b"\0", b"nan", b"1e999", b"-1", b"", b"- x", b"<object>", b"9" * 400, b"0 0.5", b"[1, {a: b}]", b"\t"]
    lines[chance.randrange(len(lines))] = chance.choice(odd)
    encoded = content.decode().encode(chance.choice(["utf-16", "utf-16-le", "utf-8-sig"]))
    return chance.choice([content[:at], content[:at] + chance.choice(odd) + content[at + 3 :], b"\n".join(lines), encoded])


@pytest.mark.parametrize("kind", ["YOLO", "Pascal VOC"])
def test_damaged_labels_lists_and_settings(kind, tmp_path):
    """Nothing but our own errors; and no box is lost in silence, except with a whole line."""
    images = ["images/train/a.png", "images/val/b.png"] if kind == "YOLO" else ["JPEGImages/a.png", "JPEGImages/b.png"]
    labels = ["labels/train/a.txt", "labels/val/b.txt"] if kind == "YOLO" else ["Annotations/a.xml", "Annotations/b.xml"]
    text = {"data.yaml": "train: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n"}
    lists = {"ImageSets/Main/train.txt": "a\n", "ImageSets/Main/val.txt": "b\n"}
    root = lay(tmp_path / "set", *images, *labels, text=text if kind == "YOLO" else lists)
    targets = [root / name for name in (*labels, *(text if kind == "YOLO" else lists))]
    chance, outcomes = random.Random(0), set()
    for _ in range(60):
        file = chance.choice(targets)
        before = file.read_bytes()
        file.write_bytes(spoil(before, chance))
        try:
            dataset = open_dataset(root)
            outcomes.add(sum(len(dataset.split(split).check().annotations.boxes) for split in ("train", "val")))
        except (ValueError, FileNotFoundError) as error:
            assert str(error)
            outcomes.add(type(error))
        file.write_bytes(before)
    assert ValueError in outcomes
    assert outcomes <= {0, 1, 2, ValueError, FileNotFoundError}


def test_names_of_files_that_are_no_text(tmp_path):
    """As disks of other systems have them."""
    lay(tmp_path, "images/1.png", "labels/1.txt", text={"data.yaml": "train: images\nnames: [cat]\n"})
    try:
        for folder, suffix in (("images", ".png"), ("labels", ".txt")):
            path = tmp_path / folder / f"1{suffix}"
            path.rename(path.with_name(os.fsdecode(b"\xe9" + suffix.encode())))
    except OSError:  # a disk without such names
        return
    for _ in range(2):  # converted, then from the kept file
        assert len(open_dataset(tmp_path).own("train").check().annotations.boxes) == 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_coco_of_any_name_in_other_encodings(tmp_path, encoding):
    lay(tmp_path, "1.png")
    (tmp_path / "export.json").write_bytes(coco("1.png").encode(encoding))
    assert len(open_dataset(tmp_path).own("export").check().annotations.boxes) == 1


def test_classes_are_counted_by_lines_as_everywhere(tmp_path):
    lay(tmp_path, "images/1.png", text={"classes.txt": "a\u2028b\nc\x0cd\ne\n", "labels/1.txt": "2 .5 .5 .1 .1\r\n"})
    found = open_dataset(tmp_path).own("all").check().annotations
    assert [found.categories.names[label] for label in found.labels.tolist()] == ["e"]


@pytest.mark.parametrize("other", ["IMG A.png", "img%20a.png"])
def test_names_that_differ_in_spelling_alone_are_images_of_their_own(tmp_path, other):
    lay(tmp_path / "yolo", "images/img a.png", f"images/{other}", "labels/img a.txt", text={"classes.txt": "cat\ndog\n"})
    found = open_dataset(tmp_path / "yolo").own("all").check()
    assert [Path(str(found.paths[image])).name for image in found.annotations.images.tolist()] == ["img a.png"]
    assert not found.found.items.get("label-renamed")
    lay(tmp_path / "voc", "img a.png", other, "img a.xml")
    found = open_dataset(tmp_path / "voc").own("all").check()
    assert [Path(path).name for path in found.paths.tolist()] == ["img a.png"]


def test_a_label_file_that_two_images_could_mean_is_none_of_theirs(tmp_path):
    lay(tmp_path, "images/IMG.png", "images/Img.png", "images/2.png", text={"classes.txt": "cat\n"})
    for name in ("img", "2"):
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / f"{name}.txt").write_text("0 .5 .5 .1 .1\n")
    found = open_dataset(tmp_path).own("all").check()
    assert [Path(str(found.paths[image])).name for image in found.annotations.images.tolist()] == ["2.png"]
    assert ("label-unused", "labels/img.txt") in [(code, item.text.split(":")[0]) for code, item in open_dataset(tmp_path).unused()]
