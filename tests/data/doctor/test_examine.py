"""Faults are planted one kind at a time, and exactly these are found; the repaired copy is clean and the original as it was."""

import json
import logging
import math
import shutil
from pathlib import Path

import pytest
from PIL import Image

from deformable_detr.cli.__main__ import main
from deformable_detr.data.cache import FOLDER
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.dataset import Split, open_dataset
from deformable_detr.data.doctor.examine import examine, quick_check
from deformable_detr.data.doctor.repair import repair
from deformable_detr.data.findings import KINDS
from deformable_detr.training.recipe import plan_run

COLUMNS = slice(4, None)


def found_in(examination):
    return {(finding.code, finding.split): finding.count for finding in examination.findings}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def boxes(record, *values):
    """Replaces the boxes of annotations 4, 5, …"""
    for entry, value in zip(record["annotations"][COLUMNS], values, strict=False):
        entry["bbox"] = value


def every_box(convert):
    def apply(record):
        for entry in record["annotations"]:
            entry["bbox"] = convert(*entry["bbox"])

    return apply


def append(section, *entries):
    return lambda record: record[section].extend(entries)


def box(number, **values):
    return {"id": number, "image_id": 1, "category_id": 0, "bbox": [10, 10, 20, 20], "iscrowd": 0} | values


def renamed(record):
    record["categories"][1]["name"] = "cat"


RECORD_FAULTS = {
    "image-unknown": (append("annotations", box(100, image_id=77), box(101, image_id=None)), 2),
    "category-unknown": (append("annotations", box(100, category_id=9), box(101, category_id="cat")), 2),
    "box-malformed": (
        lambda record: boxes(record, [1, 2, 3], [math.nan, 1, 2, 3], [1, 2, -3, 4], "no box", [1, math.inf, 2, 3], [1, "2", 3, 4]),
        5,  # a number in quotes is a number
    ),
    "box-outside": (lambda record: boxes(record, [96, 10, 10, 10], [200, 10, 5, 5], [-30, 10, 20, 10], [10, 64, 9, 9]), 4),
    "box-clipped": (lambda record: boxes(record, [90, 10, 10, 10], [-3, 10, 20, 10], [94, 10, 4, 10]), 2),
    "box-degenerate": (lambda record: boxes(record, [10, 10, 0, 10], [10, 10, 10, 0], [10, 10, 0, 0]), 3),
    "box-twice": (append("annotations", box(100), box(101), box(102)), 2),
    "box-two-classes": (append("annotations", box(100), box(101, category_id=1)), 1),
    "annotation-id-twice": (append("annotations", box(1), box(2, bbox=[40, 10, 5, 5])), 2),
    "image-id-twice": (append("images", {"id": 3, "file_name": "02.png", "width": 96, "height": 64}), 1),
    "entry-malformed": (
        append("images", {"file_name": "y.png"}, "z.png"),
        2,
    ),
    "file-name-missing": (append("images", {"id": 50, "width": 96, "height": 64}), 1),
    "box-elsewhere": (
        append(
            "annotations",
            box(100, bbox=[50, 30, 20, 20], segmentation=[[70, 30, 90, 30, 90, 50]]),
            box(101, bbox=[50, 3, 20, 20], segmentation=[[100, 6, 140, 6, 140, 46]]),  # of an image of twice the size
            box(102, bbox=[5, 40, 20, 20], segmentation=[[5, 40, 25, 45, 15, 60]]),
        ),
        2,
    ),
    "image-split": (lambda record: [image.update(split=f"s{image['id'] % 2}") for image in record["images"]], 1),
    "category-id-twice": (append("categories", {"id": 0, "name": "lion"}), 1),
    "category-name-twice": (renamed, 1),
    "class-empty": (append("categories", {"id": 2, "name": "lion"}), 1),
    "boxes-xyxy": (every_box(lambda x, y, w, h: [x, y, x + w, y + h]), 24),
    "boxes-centred": (every_box(lambda x, y, w, h: [x + w / 2, y + h / 2, w, h]), 24),
    "boxes-normalised": (every_box(lambda x, y, w, h: [x / 96, y / 64, w / 96, h / 64]), 24),
    "image-missing": (append("images", {"id": 50, "file_name": "no.png", "width": 96, "height": 64}), 1),
    "image-listed-twice": (append("images", {"id": 50, "file_name": "02.png", "width": 96, "height": 64}), 1),
    "crowd": (append("annotations", box(100, iscrowd=1)), 1),
    "ids-sparse": (append("categories", {"id": 7, "name": "lion"}), 1),
}
BESIDE = {  # what follows from a fault
    "category-name-twice": {("class-not-in-train", "val"): 1},  # val's dog
    "box-malformed": {("class-rare", "train"): 1, ("images-empty", "train"): 2},
    "ids-sparse": {("class-empty", "train"): 1},
    "image-missing": {("images-empty", "train"): 1},
    "file-name-missing": {("images-empty", "train"): 1, ("image-damaged", "train"): 1},
}


def files_of(dataset, *splits):
    return [open_dataset(dataset).split(split) for split in splits]


@pytest.mark.parametrize(("mode", "faults"), [(1, 0), ("XYWH_ABS", 0), (0, 24), ("XYXY_ABS", 24), (4, 24)])
def test_modes_of_boxes(mode, faults, clean, change):
    """detectron2 writes what the four numbers are."""
    change(lambda record: [entry.update(bbox_mode=mode) for entry in record["annotations"]])
    assert found_in(examine(clean)).get(("box-malformed", "train"), 0) == faults


def test_images_of_two_splits_before_a_training(clean):
    """Found without reading them: the same split twice, the same path, and a link."""
    files = files_of(clean, "train", "val")
    found = quick_check([files[0], files[0]], 300)
    assert [(finding.code, finding.count) for finding in found] == [("image-leak", 12)]
    assert found[0].items[0].text == "00.png: the same file as 00.png of train"
    (clean / "train/03.png").unlink()
    (clean / "train/03.png").symlink_to("../val/03.png")
    assert [(finding.code, finding.count) for finding in quick_check(files, 300)] == [("image-leak", 1)]


def test_images_of_two_splits_whose_names_come_again(tmp_path, image):
    """In folders of their own; only the first image of each name was compared."""
    for camera, seed in zip("abc", range(3), strict=True):
        (tmp_path / camera).mkdir()
        image(seed).save(tmp_path / camera / "1.png")
    for split, cameras in (("train", "bc"), ("val", "ab")):
        entries = [
            {"id": number, "file_name": f"{camera}/1.png", "width": 96, "height": 64} for number, camera in enumerate(cameras)
        ]
        record = {"images": entries, "annotations": [], "categories": [{"id": 0, "name": "cat"}]}
        (tmp_path / f"{split}.json").write_text(json.dumps(record))
    files = [Split.of_file(tmp_path / f"{split}.json", tmp_path, split) for split in ("train", "val")]
    found = [item.text for finding in quick_check(files, 300) if finding.code == "image-leak" for item in finding.items]
    assert found == ["b/1.png: the same file as b/1.png of val"]


def test_a_clean_data_set(clean):
    examination = examine(clean)
    assert found_in(examination) == {}
    assert quick_check(files_of(clean, "train", "val"), 300) == []
    assert examination.statistics["train"].classes == {"cat": 12, "dog": 12}
    assert examination.statistics["train"].shares == {"small": 1.0, "medium": 0.0, "large": 0.0}


@pytest.mark.parametrize("code", RECORD_FAULTS)
def test_faults_of_the_annotations(code, clean, change, tmp_path):
    fault, count = RECORD_FAULTS[code]
    change(fault)
    before = snapshot(clean)
    examination = examine(clean)
    found = found_in(examination)
    assert found.pop((code, "train")) == count
    assert found == BESIDE.get(code, {})
    quick = {finding.code for finding in quick_check(files_of(clean, "train", "val"), 300)}
    assert (code in quick) == (KINDS[code].severity != "note")

    repair(examination, tmp_path / "fixed")
    assert snapshot(clean) == before
    repaired = examine(tmp_path / "fixed")
    if code not in ("category-name-twice", "box-elsewhere", "image-split"):  # of these no copy can know better
        assert repaired.count("error") == repaired.count("warning") == 0, [str(finding) for finding in repaired.findings]
    for split in ("train", "val"):
        dataset = CocoDataset(open_dataset(tmp_path / "fixed").split(split), lambda image, target: (image, target), training=True)
        assert len([dataset[index] for index in range(len(dataset))]) == len(dataset)


@pytest.mark.parametrize(
    "convert",
    [
        lambda x, y, w, h: [x, y, x + w, y + h],
        lambda x, y, w, h: [x + w / 2, y + h / 2, w, h],
        lambda x, y, w, h: [x / 96, y / 64, w / 96, h / 64],
        lambda x, y, w, h: [(x + w / 2) / 96, (y + h / 2) / 64, w / 96, h / 64],
    ],
    ids=["corners", "centred", "shares", "centred shares"],
)
def test_boxes_of_another_form_are_converted_back(convert, clean, change, tmp_path):
    expected = [entry["bbox"] for entry in json.loads((clean / "annotations" / "instances_train.json").read_text())["annotations"]]
    change(every_box(convert))
    repair(examine(clean), tmp_path / "fixed")
    record = json.loads((tmp_path / "fixed" / "annotations" / "instances_train.json").read_text())
    for entry, box in zip(record["annotations"], expected, strict=True):
        assert entry["bbox"] == pytest.approx(box, abs=1e-3)


def test_corners_far_from_the_edge_are_told_by_their_areas(clean, change):
    def small(record):
        for entry in record["annotations"]:
            x, y, w, h = (value * 0.4 for value in entry["bbox"])
            entry |= {"bbox": [x, y, x + w, y + h], "area": w * h}

    change(small)
    assert found_in(examine(clean)) == {("boxes-xyxy", "train"): 24}
    change(every_box(lambda x, y, right, bottom: [x, y, right - x, bottom - y]))
    assert found_in(examine(clean)) == {}


def test_what_two_merged_datasets_leave(clean, change):
    """One of them had shares for boxes; and both their own spelling of a class."""
    change(lambda record: boxes(record, [0.2, 0.3, 0.5, 0.6], [0.5, 0.5, 0.25, 0.5]))
    change(lambda record: record["categories"].append({"id": 2, "name": " Dog"}))
    found = found_in(examine(clean))
    assert found.pop(("class-empty", "train")) == 1
    assert found == {("box-tiny", "train"): 2, ("category-name-alike", "train"): 1}


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def turned(path, image, size, seed=70):
    """Stored in `size`, to be turned by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image(seed, size).save(path, exif=exif)


def test_damaged_images(clean, tmp_path, image):
    truncate(clean / "train" / "03.png")
    (clean / "val" / "01.png").write_text("no image")
    (clean / "val" / "02.png").unlink()
    examination = examine(clean)
    expected = {("image-damaged", "train"): 1, ("image-damaged", "val"): 1, ("image-missing", "val"): 1}
    assert found_in(examination) == expected
    repair(examination, tmp_path / "fixed")
    assert examine(tmp_path / "fixed").count("error") == 0
    assert len(list((tmp_path / "fixed" / "val").iterdir())) == 4


def test_truncated_jpeg(clean, change, image):
    image(5).save(clean / "train" / "a.jpg")
    change(append("images", {"id": 50, "file_name": "a.jpg", "width": 96, "height": 64}))
    truncate(clean / "train" / "a.jpg")
    assert found_in(examine(clean)) == {("image-damaged", "train"): 1, ("images-empty", "train"): 1}


@pytest.mark.parametrize(
    ("size", "expected"),
    [((192, 128), [120, 80, 24, 40]), ((96, 96), [60, 40, 12, 20]), ((64, 50), None)],
    ids=["twice as large: boxes are scaled", "another aspect: they fit", "another aspect: they do not fit"],
)
def test_images_of_another_size(size, expected, clean, image, tmp_path):
    image(0, size).save(clean / "train" / "00.png")
    examination = examine(clean)
    assert found_in(examination) == {("image-size", "train"): 1}
    assert "is 1 x" not in examination.findings[0].items[0].text
    assert [finding.code for finding in quick_check(files_of(clean, "train"), 300)] == ["image-size"]
    repair(examination, tmp_path / "fixed")
    assert examine(tmp_path / "fixed").count("error") == 0
    record = json.loads((tmp_path / "fixed" / "annotations" / "instances_train.json").read_text())
    kept = [entry["bbox"] for entry in record["annotations"] if entry["image_id"] == 1 and entry["category_id"] == 1]
    assert kept == ([] if expected is None else [expected])


def test_what_else_an_image_says_of_itself_is_kept(clean, change, tmp_path):
    change(lambda record: record["images"][0].update(path="/photos/first.png", license=3))
    repair(examine(clean), tmp_path / "out")
    first = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())["images"][0]
    assert (first["file_name"], first["path"], first["license"]) == ("00.png", "/photos/first.png", 3)


def test_crowds_and_outlines_are_repaired_like_boxes(clean, change, image, tmp_path):
    """An image of twice the size; then corners in the whole file."""
    runs = {"size": [64, 96], "counts": [0, 64 * 96]}
    change(append("annotations", box(100, iscrowd=1, segmentation=runs), box(101, segmentation=[[10, 10, 30, 10, 30, 30]])))
    image(0, (192, 128)).save(clean / "train" / "00.png")
    for target, form in (("a", lambda *box: [*box]), ("b", lambda x, y, w, h: [x, y, x + w, y + h])):
        change(every_box(form))
        repair(examine(clean), tmp_path / target)
        record = json.loads((tmp_path / target / "annotations" / "instances_train.json").read_text())
        crowd, outline = record["annotations"][-2:]
        assert (crowd["bbox"], crowd["iscrowd"], "segmentation" in crowd) == ([20, 20, 40, 40], 1, False)
        assert (outline["bbox"], outline["segmentation"]) == ([20, 20, 40, 40], [[20, 20, 60, 20, 60, 60]])


def test_images_that_exif_turns(clean, change, image, tmp_path):
    """00: stored 96 x 64 and annotated so. 01: stored 96 x 64, stated upright (64 x 96), but boxes made on the stored pixels."""
    turned(clean / "train" / "00.png", image, (96, 64))
    turned(clean / "train" / "01.png", image, (96, 64), seed=71)
    change(lambda record: record["images"][1].update(width=64, height=96))
    examination = examine(clean)
    assert found_in(examination) == {("exif-stored", "train"): 1, ("exif-boxes", "train"): 1}
    repair(examination, tmp_path / "fixed")
    assert found_in(examine(tmp_path / "fixed")) == {("exif-stored", "train"): 2}


def test_the_copy_of_a_divided_dataset_is_divided_likewise(clean, change, tmp_path):
    """It was divided anew: validation images of the copy had been trained on."""
    (clean / "annotations" / "instances_val.json").unlink()
    change(lambda record: (record["images"][0].update(file_name="../train/00.png"), boxes(record, [90, 10, 30, 20])))
    open_dataset(clean).split("train")
    file = clean / FOLDER / "splits.json"
    written = json.loads(file.read_text())
    lists = written["annotations/instances_train.json"]["images"]
    lists["train"], lists["val"] = lists["train"][3:], lists["val"] + lists["train"][:3]
    file.write_text(json.dumps(written))
    (clean / "train" / lists["train"][-1]).write_bytes(b"")
    repair(examine(clean), tmp_path / "fixed")
    names = {"../train/00.png": "1_00.png"}  # what leads out of the folder gets another one
    for split, expected in lists.items():
        found = set(open_dataset(tmp_path / "fixed").split(split).check().annotations.file_names.tolist())
        assert found <= {names.get(name, name) for name in expected}, split
    assert sum(map(len, lists.values())) == 12


def test_a_validation_split_alone_is_none_that_is_trained_on(clean, change):
    """Its classes were said to have fewer than 10 training boxes, and without a box it was an error."""
    assert found_in(examine(clean, ["val"])) == {}
    change(lambda record: record["annotations"].clear(), "val")
    codes = {finding.code: finding.severity for finding in examine(clean, ["val"]).findings}
    assert codes == {"no-boxes-to-measure": "warning", "class-empty": "note", "images-empty": "note"}


def test_the_same_image_twice(clean, image, tmp_path):
    """A copy in the same split, one in the other split, and one that was saved anew, larger, as JPEG."""
    shutil.copy(clean / "train" / "02.png", clean / "train" / "05.png")
    shutil.copy(clean / "val" / "00.png", clean / "train" / "07.png")
    image(101, (192, 128)).resize((96, 64)).save(clean / "train" / "08.png")
    examination = examine(clean)
    assert found_in(examination) == {("image-copy", "train"): 1, ("image-leak", "train"): 2}
    texts = [item.text for finding in examination.findings for item in finding.items]
    assert texts == [
        "05.png: the same file as 02.png",
        "07.png: the same file as 00.png of val",
        "08.png: looks like 01.png of val",
    ]
    repair(examination, tmp_path / "fixed")
    assert found_in(examine(tmp_path / "fixed")) == {("class-rare", "train"): 2}
    kept = sorted(path.name for path in (tmp_path / "fixed" / "train").iterdir())
    assert kept == [f"{number:02d}.png" for number in range(12) if number not in (5, 7, 8)]


def test_every_training_image_that_val_has_is_named(clean, image):
    """Two training images are like each other and like one of val: both are leaks, and one is also like the other."""
    for number, grey in ((2, 1), (5, 2)):
        Image.eval(image(100), lambda value, grey=grey: min(value + grey, 255)).save(clean / "train" / f"{number:02d}.png")
    assert found_in(examine(clean)) == {("image-leak", "train"): 2, ("image-alike", "train"): 1}


def test_images_that_are_not_listed(clean, image):
    image(50).save(clean / "train" / "new.png")
    examination = examine(clean)
    assert found_in(examination) == {("image-unlisted", "train"): 1}
    assert examination.findings[0].items[0].file == str(clean / "train" / "new.png")


def test_numbers_and_suggestions(clean, change):
    """Boxes of 20 x 16, 12 x 20 and two larger: the side at a tenth is sqrt(12 · 20) = 15.5 pixels, in images of 64."""
    large = append("annotations", box(100, bbox=[0, 0, 40, 60]), box(101, bbox=[0, 0, 96, 64], image_id=2))
    change(large)
    examination = examine(clean)
    numbers = examination.statistics["train"]
    assert (numbers.images, numbers.boxes, numbers.most_objects, numbers.median_size) == (12, 26, 3, (96, 64))
    assert numbers.shares == {"small": round(24 / 26, 4), "medium": round(2 / 26, 4), "large": 0.0}
    assert [(found.setting, found.value) for found in examination.suggestions] == [
        ("data.eval_short_side", 256),  # 14 pixels for 12 of 64 would be 75, but no recipe goes below 256
        ("model.num_queries", 100),
    ]


@pytest.mark.parametrize("most", [3, 90])
def test_the_recipe_takes_what_the_doctor_suggests(clean, change, most):
    change(append("annotations", *(box(100 + i, bbox=[i % 30, i // 30, 20, 20]) for i in range(most))))
    config, _ = plan_run({"dataset": clean, "recipe": "small-data"})
    taken = {"data.eval_short_side": config.data.eval_short_side, "model.num_queries": config.model.num_queries}
    assert {found.setting: found.value for found in examine(clean).suggestions} == taken
    assert taken["model.num_queries"] == (100 if most == 3 else 340)  # 3.5 of 92 or 95, in twenties


def test_flat_images_are_not_taken_for_copies(clean, change):
    for number, grey in enumerate((40, 90, 140)):
        Image.new("RGB", (96, 64), (grey, grey, grey)).save(clean / "train" / f"{number:02d}.png")
    assert found_in(examine(clean)) == {}


def test_classes_between_splits(clean, change):
    def only_dogs(record):
        record["annotations"] = [entry for entry in record["annotations"] if entry["category_id"] == 1]

    change(only_dogs)
    assert found_in(examine(clean)) == {("class-untrained", "val"): 1}
    change(lambda record: record["categories"].pop(0))
    assert found_in(examine(clean)) == {("class-not-in-train", "val"): 1}


def test_more_objects_than_queries(clean):
    assert found_in(examine(clean, num_queries=1)) == {("too-many-objects", "train"): 12, ("too-many-objects", "val"): 6}


def test_nothing_to_train_on(clean, change):
    change(lambda record: record["annotations"].clear())
    found = found_in(examine(clean))
    assert found[("no-boxes", "train")] == 1
    assert found[("images-empty", "train")] == 12


def test_a_file_that_is_no_json(clean, tmp_path):
    (clean / "annotations" / "instances_val.json").write_text("{")
    examination = examine(clean)
    assert [(f.code, f.split) for f in examination.findings if f.severity == "error"] == [("file-damaged", "val")]
    with pytest.raises(ValueError, match=r"cannot be repaired: .*instances_val\.json: not valid JSON"):
        repair(examination, tmp_path / "fixed")
    assert not (tmp_path / "fixed").exists()


def test_all_faults_of_a_yolo_data_set(tmp_path, image):
    for number in range(3):
        (tmp_path / "set" / "images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / "labels").mkdir(exist_ok=True)
        image(number).save(tmp_path / "set" / "images" / f"{number}.png")
        (tmp_path / "set" / "labels" / f"{number}.txt").write_text(f"{number} 0.5 0.5 0.2 0.2\n0 50 50 2 2\n0 0.5 0.5 0.1\n")
    (tmp_path / "set" / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    examination = examine(tmp_path / "set")
    assert found_in(examination) == {("label-fault", "train"): 7, ("class-rare", "train"): 2, ("images-empty", "train"): 1}
    assert examination.undivided
    repair(examination, tmp_path / "fixed")
    assert examine(tmp_path / "fixed").count("error") == 0
    assert [len(open_dataset(tmp_path / "fixed").split(split).paths) for split in ("train", "val")] == [1, 1]


def test_a_copy_is_only_written_into_an_empty_folder(clean, tmp_path):
    examination = examine(clean)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="out: not an empty folder"):
        repair(examination, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    with pytest.raises(ValueError, match="fixed: lies in the dataset itself"):
        repair(examination, clean / "fixed")


def test_the_command(clean, change, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["doctor", str(clean), "--strict"]) == 0
    assert "nothing found" in capsys.readouterr().out
    change(RECORD_FAULTS["box-twice"][0])
    assert main(["doctor", str(clean)]) == 0
    assert main(["doctor", str(clean), "--strict"]) == 1
    change(lambda record: boxes(record, [200, 10, 5, 5]))
    page, numbers = tmp_path / "page.html", tmp_path / "found.json"
    arguments = ["--html", str(page), "--json", str(numbers), "--fix", str(tmp_path / "fixed")]
    assert main(["doctor", str(clean), *arguments]) == 1
    text = capsys.readouterr().out
    assert "error   train: boxes that lie wholly outside their image\n" in text
    assert "02.png, annotation 5: bbox [200, 10, 5, 5] in an image of 96 x 64" in text
    assert "1 errors, 1 warnings, 0 notes" in text
    findings = json.loads(numbers.read_text())["findings"]
    assert [(finding["code"], finding["count"]) for finding in findings] == [("box-outside", 1), ("box-twice", 2)]
    assert findings[0]["examples"][0] == {
        "file": "02.png",
        "image_id": 3,
        "annotation_id": 5,
        "text": "02.png, annotation 5: bbox [200, 10, 5, 5] in an image of 96 x 64",
    }
    html = page.read_text()
    assert html.count("data:image/jpeg;base64,") == 2
    assert "http" not in html
    assert main(["doctor", str(tmp_path / "fixed"), "--strict"]) == 0
    assert main(["doctor", str(clean), "--split", "minival"]) == 2
    assert "no split 'minival' of its own; there is train, val" in capsys.readouterr().err


def test_every_kind_is_in_the_documentation():
    text = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    assert [code for code in KINDS if f"`{code}`" not in text] == []


def test_training_warns_and_stops(clean, change, tmp_path, caplog):
    from deformable_detr.config import DataConfig, RunConfig
    from deformable_detr.training.preparation import open_data

    config = RunConfig(dataset=str(clean), data=DataConfig(num_workers=0))
    with caplog.at_level(logging.WARNING):
        open_data(config)
    assert caplog.text == ""
    change(RECORD_FAULTS["box-twice"][0])
    with caplog.at_level(logging.WARNING):
        open_data(config)
    assert "train: boxes that stand there twice: 2 (00.png, annotation 101: the same as annotation 100, …)" in caplog.text
    (clean / "val" / "03.png").unlink()
    with pytest.raises(ValueError, match=r"val: images that are not there \(03\.png: no such file\)\. `deformable-detr doctor"):
        open_data(config)


@pytest.mark.parametrize(
    "given", [{}, {"width": 0, "height": -3}, {"width": "96 px", "height": None}, {"width": 96.0, "height": "64"}]
)
def test_sizes_that_are_missing_or_impossible_are_read_from_the_files(clean, change, tmp_path, given):
    def spoil(record):
        for image in record["images"][:2]:
            del image["width"], image["height"]
            image |= given

    change(spoil)
    repair(examine(clean), tmp_path / "fixed")
    record = json.loads((tmp_path / "fixed" / "annotations" / "instances_train.json").read_text())
    assert [(image["width"], image["height"]) for image in record["images"]] == [(96, 64)] * 12
    assert len(record["annotations"]) == 24
    assert found_in(examine(tmp_path / "fixed")) == {}
