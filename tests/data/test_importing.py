"""Other formats become COCO datasets; what cannot be converted is said."""

import base64
import io
import json
import zlib

import pytest
from PIL import Image, ImageColor

from deformable_detr.cli.__main__ import main
from deformable_detr.data.annotation_reader import parse_record
from deformable_detr.data.dataset import open_dataset
from deformable_detr.data.doctor.examine import examine
from deformable_detr.data.doctor.repair import repair
from deformable_detr.data.images import read_size
from deformable_detr.data.importing import convert_dataset


def labelme(name, *shapes):
    size = {"imageWidth": 40, "imageHeight": 20}
    return json.dumps({"version": "5.0", "imagePath": name, "shapes": list(shapes), "imageData": None, **size})


RECTANGLE = {"label": "cat", "points": [[5, 6], [25, 16]], "shape_type": "rectangle", "group_id": None, "flags": {}}


@pytest.fixture
def images(tmp_path):
    for number, name in enumerate(("train/1.png", "train/2.png", "val/1.png")):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20), (number, 0, 0)).save(tmp_path / "set" / name)
    return tmp_path / "set"


def check(out):
    dataset = open_dataset(out)
    assert dataset.format == "COCO"
    for split, boxes in (("train", [[5, 6, 20, 10]]), ("val", [[5, 6, 20, 10]])):
        found = dataset.split(split).check()
        assert found.annotations.boxes.tolist() == boxes
        assert found.annotations.categories.names == ("cat",)
        assert all(read_size(path) == (20, 40) for path in found.paths.tolist())
    assert len(dataset.split("train").paths) == 2


def test_labelme(images, tmp_path, capsys):
    (images / "train" / "1.json").write_text(labelme("1.png", RECTANGLE))
    (images / "train" / "2.json").write_text(labelme("..\\2.png"))
    (images / "val" / "1.json").write_text(labelme("1.png", RECTANGLE))
    with pytest.raises(FileNotFoundError, match=r"format LabelMe: `deformable-detr doctor .* --convert FOLDER`"):
        open_dataset(images)
    assert main(["doctor", str(images), "--convert", str(tmp_path / "out")]) == 0
    assert "train: 2 images, 1 boxes" in capsys.readouterr().out
    check(tmp_path / "out")


@pytest.mark.parametrize("kind", ["circle", "line", "mask", None])
def test_shapes_of_labelme_that_have_no_box_are_no_loss_without_a_word(images, tmp_path, kind):
    (images / "train" / "1.json").write_text(labelme("1.png", RECTANGLE, RECTANGLE | {"shape_type": kind}))
    with pytest.raises(ValueError, match=rf"1\.json: shapes of the type {kind} are not read"):
        convert_dataset(images, tmp_path / "out")


def test_numbers_as_all_programs_read_them(images, tmp_path):
    """supervision takes what Python's float takes."""
    box = {"label": "cat", "coordinates": {"x": "1_5", "y": 11, "width": 20, "height": 10}}
    wide = labelme("1.png", RECTANGLE | {"shape_type": "polygon"}).replace('"imageWidth": 40', '"imageWidth": 1e400')
    for text in (
        labelme("1.png", RECTANGLE | {"points": [["1_0", 6], [25, 16]]}),
        json.dumps([{"image": "1.png", "annotations": [box]}]),
        wide,
    ):
        (images / "train" / "1.json").write_text(text)
        with pytest.raises(ValueError, match=r"1\.json: "):
            convert_dataset(images, tmp_path / "out")


@pytest.mark.parametrize("number", [-1, 2])
def test_labels_of_datumaro_that_are_not_there(images, tmp_path, number):
    """A negative number would count from the end."""
    name, content = datumaro(["1.png"])
    (images / "train" / name).write_text(content.replace('"label_id": 1', f'"label_id": {number}'))
    with pytest.raises(ValueError, match=f"label_id is {number}, of 2 labels"):
        convert_dataset(images, tmp_path / "out")


def test_createml(images, tmp_path):
    box = {"label": "cat", "coordinates": {"x": 15, "y": 11, "width": 20, "height": 10}}
    for split, names in (("train", ("1.png", "2.png")), ("val", ("1.png",))):
        entries = [{"image": name, "annotations": [box] if name == "1.png" else []} for name in names]
        (images / split / "_annotations.createml.json").write_text(json.dumps(entries))
    convert_dataset(images, tmp_path / "out")
    check(tmp_path / "out")


def test_what_cannot_be_converted(images, tmp_path):
    with pytest.raises(ValueError, match="no known format"):
        convert_dataset(images, tmp_path / "out")
    (images / "train.tfrecord").write_bytes(b"1234")
    with pytest.raises(ValueError, match="format TFRecord: not read here; export it as COCO"):
        convert_dataset(images, tmp_path / "out")
    (images / "train.tfrecord").unlink()
    (images / "a.json").write_text(labelme("nowhere.png", RECTANGLE))
    with pytest.raises(FileNotFoundError, match=r"a\.json: its image nowhere\.png is not there"):
        convert_dataset(images, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="lies in the dataset itself"):
        convert_dataset(images, images / "out")


CAR = [5, 6, 20, 10]  # left, top, width, height in an image of 40 x 20
SHARES = {"XMin": 5 / 40, "XMax": 25 / 40, "YMin": 6 / 20, "YMax": 16 / 20}


def via(names):
    rect = {"name": "rect", "x": 5, "y": 6, "width": 20, "height": 10}
    outline = {"name": "polygon", "all_points_x": [5, 25, 9], "all_points_y": [6, 10, 16]}
    regions: dict[str, object] = {"1.png": [{"shape_attributes": rect, "region_attributes": {"colour": "", "class": "car"}}]}
    regions["3.png"] = {"0": {"shape_attributes": outline, "region_attributes": {"what": {"car": True, "van": False}}}}
    return "via.json", json.dumps({name: {"filename": name, "size": 9, "regions": regions.get(name, [])} for name in names})


def datumaro(names):
    found = {"1.png": [{"type": "bbox", "label_id": 1, "bbox": [5, 6, 20, 10]}]}
    found["3.png"] = [{"type": "polygon", "label_id": 1, "points": [5, 6, 25, 10, 9, 16]}]
    items = [{"id": name[0], "annotations": found.get(name, []), "image": {"path": name}} for name in names]
    labels = {"label": {"labels": [{"name": "van"}, {"name": "car"}]}}
    return "default.json", json.dumps({"info": {}, "categories": labels, "items": items})


def fiftyone(names):
    box = {"_cls": "Detection", "label": "car", "bounding_box": [5 / 40, 6 / 20, 20 / 40, 10 / 20]}
    samples = [
        {"filepath": f"data/{name}", "ground_truth": {"_cls": "Detections", "detections": [box] if name != "2.png" else []}}
        for name in names
    ]
    return "samples.json", json.dumps({"samples": samples})


def table(columns, rows):
    return "\n".join([",".join(columns), *(",".join(str(row[column]) for column in columns) for row in rows)])


def open_images(names):
    rows = [{"ImageID": name[0], "LabelName": "/m/0k4j", **SHARES, "IsGroupOf": -1} for name in names if name != "2.png"]
    return "boxes.csv", table(["ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf"], rows)


def tensorflow(names):
    box = {"xmin": 5, "ymin": 6, "xmax": 25, "ymax": 16, "width": 40, "height": 20, "class": "car"}
    rows = [{**box, "filename": name} for name in names if name != "2.png"]
    return "labels.csv", table(["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"], rows)


def retinanet(names):
    return "annotations.csv", "\n".join(f"{name},{'5,6,25,16,car' if name != '2.png' else ',,,,'}" for name in names)


def cvat(names):
    shapes = {
        "1.png": '<tag label="day"/><box label="car" xtl="10" ytl="1" xbr="20" ybr="21" rotation="90" occluded="0"/>',
        "3.png": '<polygon label="car" points="5.0,6.0;25.0,10.0;9.0,16.0;"/>',
    }
    images = "".join(f'<image id="{i}" name="{name}">{shapes.get(name, "")}</image>' for i, name in enumerate(names))
    return "annotations.xml", f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{images}</annotations>'


STUDIO = {"x": 12.5, "y": 30, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": ["car"]}
TURNED = {
    "x": 62.5,
    "y": 30,
    "width": 25,
    "height": 100,
    "rotation": 90,
    "rectanglelabels": ["car"],
}  # around its upper left corner
PIXELS = {"original_width": 40, "original_height": 20}


def label_studio(names):
    found = {"1.png": [STUDIO], "3.png": [TURNED]}
    tasks = []
    for number, name in enumerate(names):
        regions = [{"type": "rectanglelabels", "value": value, **PIXELS} for value in found.get(name, [])]
        done = {"result": [*regions, {"type": "choices", "value": {"choices": ["day"]}}], "was_cancelled": False}
        cancelled = {"result": [], "was_cancelled": True}
        tasks.append({"id": number, "data": {"image": f"/data/upload/1/0123abcd-{name}"}, "annotations": [cancelled, done]})
    return "project-1.json", json.dumps(tasks)


def label_studio_min(names):
    found = {"1.png": {"label": [STUDIO | PIXELS]}, "3.png": {"label": [TURNED | PIXELS]}}
    return "export.json", json.dumps(
        [{"id": 1, "image": f"/data/local-files/?d=x/{name}", "annotator": 1, **found.get(name, {})} for name in names]
    )


def bdd(names):
    labels = [{"category": "car", "box2d": {"x1": 5, "y1": 6, "x2": 25, "y2": 16}}, {"category": "lane", "poly2d": []}]
    return "labels.json", json.dumps([{"name": name, "labels": labels if name != "2.png" else None} for name in names])


def panoptic(names):
    segments = [{"id": 9, "category_id": 3, "bbox": CAR, "iscrowd": 0}, {"id": 8, "category_id": 4, "bbox": [0, 0, 40, 5]}]
    record = {
        "images": [{"id": name, "file_name": name} for name in names],
        "annotations": [{"image_id": name, "segments_info": segments if name != "2.png" else []} for name in names],
        "categories": [{"id": 3, "name": "car", "isthing": 1}, {"id": 4, "name": "sky", "isthing": 0}],
    }
    return "panoptic.json", json.dumps(record)


def of_tools(*writers):
    return [pytest.param(write, id=write.__name__) for write in writers]


@pytest.mark.parametrize(
    "write",
    of_tools(via, datumaro, fiftyone, open_images, tensorflow, retinanet, cvat, label_studio, label_studio_min, bdd, panoptic),
)
def test_other_formats(images, tmp_path, write):
    """Splits by folder; the second image of train has no object."""
    Image.new("RGB", (40, 20), "blue").save(images / "val" / "3.png")
    for split, names in (("train", ("1.png", "2.png")), ("val", ("1.png", "3.png"))):
        name, text = write(names)
        (images / split / name).write_text(text)
    (images / "class-descriptions.csv").write_text("/m/0k4j,car\n/m/01g317,Person\n")
    lines = [line for line in convert_dataset(images, tmp_path / "out") if not line.startswith(("left out, without", "not used"))]
    rows = write in (open_images, tensorflow)  # one per box, so that an image without boxes is in none
    assert lines[1:] == ["val: 2 images, 2 boxes", *(["left out: 1 images that no annotation speaks of"] if rows else [])]
    dataset = open_dataset(tmp_path / "out")
    assert len(dataset.split("train").paths) == (1 if rows else 2)
    for split, count in (("train", 1), ("val", 2)):
        found = dataset.split(split).check().annotations
        assert found.boxes.round(3).tolist() == [CAR] * count
        assert found.categories.names[found.labels[0]] == "car"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    "write", of_tools(via, tensorflow, retinanet, cvat, lambda names: ("1.json", labelme(names[0], RECTANGLE)))
)
def test_encodings(images, tmp_path, write, encoding):
    name, text = write(("1.png",))
    (images / "train" / name).write_bytes(text.replace("utf-8", "utf-16").encode(encoding))
    convert_dataset(images, tmp_path / "out")
    assert open_dataset(tmp_path / "out").own("train").check().annotations.boxes.round(3).tolist() == [CAR]


@pytest.mark.parametrize(("written", "crowd"), [("true", True), ("false", False), ("0", False), (1, True), (None, False)])
def test_crowds(images, tmp_path, written, crowd):
    """Flags as people write them: `bool("false")` is true."""
    _, text = datumaro(("1.png",))
    record = json.loads(text)
    record["items"][0]["annotations"][0]["attributes"] = {"is_crowd": written}
    (images / "train" / "default.json").write_text(json.dumps(record))
    convert_dataset(images, tmp_path / "out")
    assert open_dataset(tmp_path / "out").own("train").check().annotations.crowd.tolist() == [crowd]


def test_supervisely(tmp_path):
    mask = io.BytesIO()
    Image.new("1", (20, 10), 1).save(mask, "PNG")
    bitmap = {"data": base64.b64encode(zlib.compress(mask.getvalue())).decode(), "origin": [5, 6]}
    corners = {"exterior": [[25, 16], [5, 6]], "interior": []}
    things = {"1": {"geometryType": "rectangle", "points": corners}, "2": {"geometryType": "bitmap", "bitmap": bitmap}}
    for split, number in (("train", "1"), ("train", "2"), ("val", "1")):
        for folder in ("img", "ann"):
            (tmp_path / "set" / split / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20)).save(tmp_path / "set" / split / "img" / f"{number}.png")
        record = {"size": {"height": 20, "width": 40}, "tags": [], "objects": [{"classTitle": "car", **things[number]}]}
        (tmp_path / "set" / split / "ann" / f"{number}.png.json").write_text(json.dumps(record))
    (tmp_path / "set" / "meta.json").write_text('{"classes": [], "tags": []}')
    lines = ["train: 2 images, 2 boxes", "val: 1 images, 1 boxes", "not used: 1 files of other formats (meta.json)"]
    assert convert_dataset(tmp_path / "set", tmp_path / "out") == lines
    assert open_dataset(tmp_path / "out").split("train").check().annotations.boxes.tolist() == [CAR, CAR]


def test_dota(tmp_path):
    for split, text in (
        ("train", "imagesource:GoogleEarth\ngsd:0.1\n5 6 25 6 25 16 5 16 car 0\n9 9 12 9 12 12 9 12 car 1\n"),
        ("val", "5.5 6 25 6 25 16 5 16 large vehicle\n5 6 25 6 25 16 5 16 large vehicle 1\n"),
    ):
        for folder in ("images", "labelTxt"):
            (tmp_path / "set" / split / folder).mkdir(parents=True)
        Image.new("RGB", (40, 20)).save(tmp_path / "set" / split / "images" / "P0001.png")
        (tmp_path / "set" / split / "labelTxt" / "P0001.txt").write_text(text)
    convert_dataset(tmp_path / "set", tmp_path / "out")
    found = open_dataset(tmp_path / "out").split("train").check().annotations
    assert found.boxes.tolist() == [CAR, [9, 9, 3, 3]]
    assert found.crowd.tolist() == [False, True]
    assert found.categories.names == ("car", "large vehicle")
    assert open_dataset(tmp_path / "out").split("val").check().annotations.crowd.tolist() == [False, True]
    (tmp_path / "set" / "val" / "labelTxt" / "P0001.txt").write_text("5 6 25 6 25 16 5 16 car 0\n5 6 25 6 25 16 5 16 car 7\n")
    with pytest.raises(ValueError, match=r"P0001\.txt: a line of DOTA has eight numbers, a class and 0 or 1"):
        convert_dataset(tmp_path / "set", tmp_path / "other")


def test_kitti(tmp_path):
    root, colours = tmp_path / "kitti", {"training/image_2": "red"}
    for folder in ("training/image_2", "training/image_3", "testing/image_2", "training/label_2"):
        (root / folder).mkdir(parents=True)
        for name in ("000000", "000001") if "image" in folder else ():
            Image.new("RGB", (40, 20), colours.get(folder, "blue")).save(root / folder / f"{name}.png")
    rest = "1.5 1.6 3.9 -16.5 2.4 58.5 1.6"
    (root / "training/label_2/000000.txt").write_text(
        f"Car 0.00 0 1.85 5.00 6.00 25.00 16.00 {rest}\nDontCare -1 -1 -10 1 1 2 2 {rest}\n"
    )
    (root / "training/label_2/000001.txt").write_text("")
    assert convert_dataset(root, tmp_path / "out") == [
        "train: 2 images, 1 boxes",
        "left out, without a box: 1 DontCare",
        "left out: 4 images that no annotation speaks of",
    ]
    found = open_dataset(tmp_path / "out").split("train").check()
    assert found.annotations.boxes.tolist() == [CAR]
    assert found.annotations.categories.names == ("Car",)
    with Image.open(found.paths[0]) as image:
        assert image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    faults = {"Car 0.00 0 1.85 5.00": "not 5", f"Car 0 0 0 5 6 25 16 {rest} 0.93": "a 16th is the score of a prediction"}
    for line, what in faults.items():
        (root / "training/label_2/000001.txt").write_text(line)
        with pytest.raises(ValueError, match=rf"000001\.txt: a line of KITTI has 15 words, .*{what}"):
            convert_dataset(root, tmp_path / "other")


@pytest.mark.parametrize("suffix", ["txt", "json"])
def test_many_files_of_other_kinds_hide_no_format(suffix, tmp_path):
    """KITTI comes with thousands of files of calibration, in a folder before that of the labels."""
    label = "Car 0.00 0 -1.58 10 5 20 15 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59\n"
    shape = {"label": "Car", "points": [[10, 5], [20, 15]], "shape_type": "rectangle"}
    labelme = json.dumps({"shapes": [shape], "imagePath": "../image_2/1.png", "imageHeight": 20, "imageWidth": 40})
    for folder in ("calib", "label_2", "image_2"):
        (tmp_path / "set/training" / folder).mkdir(parents=True)
    for number in range(200):
        (tmp_path / f"set/training/calib/{number}.{suffix}").write_text("P0: 7.2 0.0 6.1\n" if suffix == "txt" else "{}")
    (tmp_path / f"set/training/label_2/1.{suffix}").write_text(label if suffix == "txt" else labelme)
    Image.new("RGB", (40, 20)).save(tmp_path / "set/training/image_2/1.png")
    convert_dataset(tmp_path / "set", tmp_path / "out")
    assert open_dataset(tmp_path / "out").own("train").check().annotations.boxes.tolist() == [[10, 5, 10, 10]]


TABLE = "filename,width,height,class,xmin,ymin,xmax,ymax"
RECT = {"name": "rect", "x": 5, "y": 6, "width": 20, "height": 10}


def bitmap(data):
    thing = {"classTitle": "car", "bitmap": {"data": base64.b64encode(data).decode(), "origin": [0, 0]}}
    return json.dumps({"size": {"height": 20, "width": 40}, "tags": [], "objects": [thing]})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", f'{TABLE}\n1.png,40,20,"5 inches{"x," * 70000}', r"t\.csv: field larger than field limit"),
        ("b.csv", '1.png,5,6,25,16,"car\n2.png,5,6,25,16,car\n', r"b\.csv: unexpected end of data"),
        ("a.csv", "1.png,5,6,25,16,K\xe4fer\n".encode("latin-1"), r"^[^:]*a\.csv: not UTF-8 text"),
        (
            "c.xml",
            '<annotations><image name="1.png"><polygon label="car" points=";"/></image></annotations>',
            r"c\.xml: an outline without points",
        ),
        ("default.json", datumaro(("2.png",))[1].replace("[]", "null"), r"default\.json: .* not of the form that Datumaro has"),
        (
            "studio.json",
            json.dumps([{"id": 1, "data": {"image": "1.png"}, "annotations": [], "predictions": []}]),
            "not one box is annotated in its 1 files of the format Label Studio JSON",
        ),
        ("1.png.json", bitmap(b"no zlib"), r"1\.png\.json: a bitmap is damaged"),
        ("1.png.json", bitmap(zlib.compress(b"no image")), r"1\.png\.json: a bitmap: not an image"),
    ],
)
def test_damaged_files_are_named(images, tmp_path, name, text, message):
    (images / "train" / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        convert_dataset(images, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_the_readers_do_not_guess(images, tmp_path):
    def fails(name, text, message):
        (images / "train" / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            convert_dataset(images, tmp_path / "out")
        (images / "train" / name).unlink()

    def region(shape, **attributes):
        return json.dumps(
            {"1.png": {"filename": "1.png", "regions": [{"shape_attributes": shape, "region_attributes": attributes}]}}
        )

    fails(
        "via.json", region({"name": "point", "cx": 1, "cy": 1}, label="car"), r"via\.json: a region of the shape 'point' has no box"
    )
    fails("1.json", labelme("1.png", RECTANGLE).replace("40", "null"), r"1\.json: imageHeight and imageWidth are no size")
    crowd = json.dumps([{"name": "1.png", "labels": [{"category": "car", "box2d": {"x1": 1, "y1": 1, "x2": 2, "y2": 2}}]}])
    fails("bdd.json", crowd.replace('"car"', '"car", "attributes": {"crowd": "many"}'), "'many' is neither yes .1, true. nor no")
    fails("via.json", region({"name": "rect"}, a="x", b="y"), "which of the attributes a, b is the class")
    fails("via.json", region({"name": "rect"}, label=""), "names no class")
    shapes = [{"shape_attributes": RECT, "region_attributes": named} for named in ({}, {"class": "car"})]
    some = json.dumps({"1.png": {"filename": "1.png", "regions": shapes}})
    fails("via.json", some, r"1\.png: its object at \(5.*\) has no class; name it")
    fails("t.csv", f"{TABLE}\n1.png,40,20,,5,6,25,16\n2.png,40,20,car,5,6,25,16", r"1\.png: its object at .* has no class")
    fails("t.csv", f"{TABLE}\n1.png,40,20,car,5,6,2_5,16", "'2_5' is no number")
    scored = fiftyone(["1.png"])[1].replace('"label"', '"confidence": 0.9, "label"')
    fails("samples.json", scored, r"1\.png: boxes of 'ground_truth' have a confidence, as predictions have")
    fails("samples.json", scored.replace("ground_truth", "model"), "as predictions have: no ground truth")
    tags = fiftyone(["1.png"])[1].replace('"filepath"', '"tags": ["train", "x", "val"], "filepath"')
    fails("samples.json", tags, "which of the tags train, val is its split")
    fails("via.json", region({"name": "rect", "x": 1}, label="car"), r"via\.json: the entry 'y' is missing")
    fails("t.csv", TABLE + "\n1.png,40,20,car,5,6,nan,16", r"t\.csv: 'nan' is no number")
    fails("t.csv", TABLE + "\n1.png,40,20,car,5", r"t\.csv: ")
    fails(
        "a.xml", '<annotations><track id="0" label="car"><box frame="0"/></track></annotations>', "tracks of a video name no images"
    )
    point = '<points label="car" points="1,2"/>'
    fails("a.xml", f'<annotations><image id="0" name="1.png">{point}</image></annotations>', "kind 'points' has no box")
    fails("a.xml", '<annotations><image id="0" name="1.png">', r"a\.xml: not valid XML")
    task = {"id": 7, "data": {"image": "1.png"}, "annotations": [{"result": []}, {"result": []}]}
    fails("p.json", json.dumps([task]), "the task 7 has 2 annotations; keep one")
    task["annotations"] = [{"result": [{"value": {**STUDIO, "rotation": 5}}]}]
    fails("p.json", json.dumps([task]), "a turned region without original_width")
    task["annotations"] = [{"result": [{"value": {**STUDIO, "rectanglelabels": ["car", "red"]}}]}]
    fails("p.json", json.dumps([task]), "several labels: car, red")
    task["annotations"] = [{"result": [{"original_width": 0, "original_height": 0, "value": {**STUDIO, "rotation": 5}}]}]
    fails("p.json", json.dumps([task]), "a turned region without original_width")
    fails("t.csv", f"{TABLE}\n1.png,40,20,car,5,6,25,16,9", r"t\.csv: a row has not as many cells as the head")
    assert not (tmp_path / "out").exists()


def sized_labelme(size):
    text = labelme("1.png", RECTANGLE | {"points": [[10, 12], [50, 32]]}).replace('"imageWidth": 40', f'"imageWidth": {size[1]}')
    return "1.json", text.replace('"imageHeight": 20', f'"imageHeight": {size[0]}')


def sized_table(size):
    return "t.csv", f"{TABLE}\n1.png,{size[1]},{size[0]},cat,10,12,50,32"


def sized_cvat(size):
    box = '<box label="cat" xtl="10" ytl="12" xbr="50" ybr="32"/>'
    return "a.xml", f'<annotations><image id="0" name="1.png" width="{size[1]}" height="{size[0]}">{box}</image></annotations>'


def sized_datumaro(size):
    name, text = datumaro(["1.png"])
    boxes = text.replace("[5, 6, 20, 10]", "[10, 12, 40, 20]").replace('"path": "1.png"', f'"path": "1.png", "size": {list(size)}')
    return name, boxes


def sized_bdd(size):
    box = {"category": "cat", "box2d": {"x1": 10, "y1": 12, "x2": 50, "y2": 32}}
    return "l.json", json.dumps([{"name": "1.png", "size": {"width": size[1], "height": size[0]}, "labels": [box]}])


def sized_panoptic(size):
    record = json.loads(panoptic(["1.png"])[1])
    record["images"][0] |= {"height": size[0], "width": size[1]}
    record["annotations"][0]["segments_info"][0]["bbox"] = [10, 12, 40, 20]
    return "panoptic.json", json.dumps(record)


def sized_supervisely(size):
    corners = {"exterior": [[10, 12], [50, 32]], "interior": []}
    thing = {"classTitle": "cat", "geometryType": "rectangle", "points": corners}
    return "ann/1.png.json", json.dumps({"size": {"height": size[0], "width": size[1]}, "tags": [], "objects": [thing]})


SIZED = (sized_labelme, sized_table, sized_cvat, sized_datumaro, sized_bdd, sized_panoptic, sized_supervisely)


@pytest.mark.parametrize("write", of_tools(*SIZED))
def test_images_that_were_scaled_after_their_annotation(tmp_path, write):
    """The record keeps the size that the boxes belong to; it is said, and doctor --fix scales them."""
    name, text = write((40, 80))
    for folder in ("img", "ann"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    Image.new("RGB", (40, 20)).save(tmp_path / "set" / ("img" if "ann" in name else ".") / "1.png")
    (tmp_path / "set" / name).write_text(text)
    lines = convert_dataset(tmp_path / "set", tmp_path / "out")
    assert "of another size than annotated: 1 images" in lines[-1] and "1.png is 40 x 20, annotated as 80 x 40" in lines[-1]
    examination = examine(tmp_path / "out")
    assert "image-size" in {finding.code for finding in examination.findings}
    repair(examination, tmp_path / "fixed")
    assert open_dataset(tmp_path / "fixed").own("all").check().annotations.boxes.tolist() == [CAR]
    (tmp_path / "set" / name).write_text(write((20, 40))[1])
    assert len(convert_dataset(tmp_path / "set", tmp_path / "same")) == 1


def test_shares_of_an_image_that_was_only_scaled_are_right_as_they_are(images, tmp_path):
    sizes = {"original_width": 400, "original_height": 200}
    regions = [{"value": STUDIO, "to_name": "image", **sizes}]
    task = {"id": 1, "data": {"image": "train/1.png"}, "annotations": [{"result": regions}]}
    (images / "p.json").write_text(json.dumps([task]))
    assert convert_dataset(images, tmp_path / "out")[0] == "train: 1 images, 1 boxes"
    assert open_dataset(tmp_path / "out").own("train").check().annotations.boxes.tolist() == [CAR]
    sizes["original_width"] = 200  # it was cut or turned
    regions[0] |= sizes
    (images / "p.json").write_text(json.dumps([task]))
    assert "annotated as 200 x 200" in convert_dataset(images, tmp_path / "other")[-1]
    regions.append({"value": STUDIO, "to_name": "image", "original_width": 9, "original_height": 9})
    (images / "p.json").write_text(json.dumps([task]))
    with pytest.raises(ValueError, match=r"p\.json: the task 1 has regions on images of several sizes"):
        convert_dataset(images, tmp_path / "third")


CONFIG = '<View><Image name="left" value="$a"/><Image name="right" value="$b"/><RectangleLabels name="l" toName="right"/></View>'


@pytest.mark.parametrize(
    ("fields", "to_name", "config", "expected"),
    [
        (("thumb", "image"), "image", None, "image"),
        (("thumb", "image"), "img", None, "image"),
        (("thumb", "image"), "thumb", None, "thumb"),
        (("image", "b"), "right", CONFIG, "b"),
        (("a", "b"), "left", CONFIG, "a"),
        (("a", "b"), "img", None, None),
        (("image", "b"), "right", '<View><Image name="right" value="$c"/></View>', None),
    ],
)
def test_label_studio_tasks_with_two_images(images, tmp_path, fields, to_name, config, expected):
    region = {"value": STUDIO, "to_name": to_name, **PIXELS}
    data = dict(zip(fields, ("train/1.png", "train/2.png"), strict=True))
    (images / "p.json").write_text(json.dumps([{"id": 7, "data": data, "annotations": [{"result": [region]}]}]))
    if config:
        (images / "config.xml").write_text(config)
    if expected is None:
        with pytest.raises(ValueError, match=r"p\.json: the task 7 has several images, .*put it beside"):
            convert_dataset(images, tmp_path / "out")
    else:
        convert_dataset(images, tmp_path / "out")
        found = open_dataset(tmp_path / "out").own("train").check().annotations
        assert found.file_names.tolist() == [data[expected].partition("/")[2]] and found.boxes.tolist() == [CAR]


def test_label_studio_tasks_whose_images_are_both_annotated(images, tmp_path):
    (images / "config.xml").write_text(CONFIG)
    regions = [{"value": value, "to_name": name, **PIXELS} for name, value in (("left", STUDIO), ("right", STUDIO | {"x": 0}))]
    task = {"id": 1, "data": {"a": "train/1.png", "b": "train/2.png"}, "annotations": [{"result": regions}]}
    (images / "p.json").write_text(json.dumps([task]))
    convert_dataset(images, tmp_path / "out")
    found = open_dataset(tmp_path / "out").own("train").check().annotations
    assert (found.file_names.tolist(), found.boxes.tolist()) == (["1.png", "2.png"], [CAR, [0, 6, 20, 10]])


def test_outlines_of_bdd(images, tmp_path):
    def outline(category, **more):
        return {"category": category, "poly2d": [{"vertices": [[5, 6], [25, 6], [9, 16]], "types": "LLL", "closed": True} | more]}

    labels = [outline("car"), outline("lane/road curb", closed=False), outline("area/drivable"), {"category": "bus", "box3d": {}}]
    (images / "l.json").write_text(json.dumps([{"name": "train/1.png", "labels": labels}]))
    lines = convert_dataset(images, tmp_path / "out")
    assert lines[:2] == [
        "train: 1 images, 1 boxes",
        "left out, without a box: 1 lane/road curb, 1 area/drivable, 1 bus",
    ]
    assert open_dataset(tmp_path / "out").own("train").check().annotations.boxes.tolist() == [CAR]


def test_tags_of_fiftyone_that_are_no_splits(images, tmp_path):
    samples = json.loads(fiftyone(["1.png"])[1])
    samples["samples"][0] |= {"filepath": "train/1.png", "tags": ["reviewed", "validation"], "predictions": {"_cls": "Detections"}}
    samples["samples"].append({"filepath": "train/2.png", "predictions": {"_cls": "Detections", "detections": [{}]}})
    (images / "samples.json").write_text(json.dumps(samples))
    assert convert_dataset(images, tmp_path / "out")[:2] == ["val: 1 images, 1 boxes", "train: 1 images, 0 boxes"]


@pytest.mark.parametrize("kind", ["labelme", "dota"])
def test_names_of_images_are_no_splits(tmp_path, kind):
    """Where every image has a file, which is called like it."""
    for name in ("test_1", "train station", "x"):
        Image.new("RGB", (40, 20)).save(tmp_path / f"{name}.png")
        text = labelme(f"{name}.png", RECTANGLE) if kind == "labelme" else "5 6 25 6 25 16 5 16 cat 0\n"
        (tmp_path / f"{name}.{'json' if kind == 'labelme' else 'txt'}").write_text(text)
    assert convert_dataset(tmp_path, tmp_path.parent / f"{tmp_path.name}-out") == ["all: 3 images, 3 boxes"]


@pytest.mark.parametrize("rows", [("a/1.png", "b/1.png"), ("train/1.png", "c/2.png", "d/2.png")])
def test_two_names_are_not_one_image(images, tmp_path, rows):
    (images / "val" / "1.png").unlink()
    (images / "t.csv").write_text("\n".join([TABLE, *(f"{name},40,20,cat,5,6,25,16" for name in rows)]))
    with pytest.raises(FileNotFoundError, match=r"could be .*, but so could another one"):
        convert_dataset(images, tmp_path / "out")


def test_two_files_are_not_of_one_image(images, tmp_path):
    (images / "val" / "1.png").unlink()
    for folder in ("train", "other"):
        (images / folder).mkdir(exist_ok=True)
        (images / folder / "a.json").write_text(labelme("1.png", RECTANGLE))
    with pytest.raises(ValueError, match=r"a\.json: its image 1\.png may be train/1\.png, but so may .*: give the paths of both"):
        convert_dataset(images, tmp_path / "out")


def test_a_dot_in_a_name_is_no_suffix(tmp_path):
    """`a.1` is not `a.png`."""
    (tmp_path / "set").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "set" / "a.png")
    (tmp_path / "set" / "a.1.txt").write_text("5 6 25 6 25 16 5 16 cat 0\n")
    with pytest.raises(FileNotFoundError, match=r"a\.1\.txt: its image a\.1 is not there"):
        convert_dataset(tmp_path / "set", tmp_path / "out")
    Image.new("RGB", (40, 20), "red").save(tmp_path / "set" / "a.1.png")
    convert_dataset(tmp_path / "set", tmp_path / "out")
    assert open_dataset(tmp_path / "out").own("all").annotations.file_names.tolist() == ["a.1.png"]


def test_images_of_createml_in_folders(images, tmp_path):
    box = {"label": "cat", "coordinates": {"x": 15, "y": 11, "width": 20, "height": 10}}
    (images / "a.json").write_text(json.dumps([{"image": f"{split}/1.png", "annotations": [box]} for split in ("train", "val")]))
    assert convert_dataset(images, tmp_path / "out")[:2] == ["train: 1 images, 1 boxes", "val: 1 images, 1 boxes"]


@pytest.mark.parametrize("damage", [lambda content: content[:60], lambda content: b"\xb3" + content])
def test_a_damaged_file_among_others_is_no_loss_without_a_word(images, tmp_path, damage):
    (images / "train" / "1.json").write_text(labelme("1.png", RECTANGLE))
    (images / "train" / "2.json").write_bytes(damage(labelme("2.png").encode()))
    (images / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"2\.json: "):
        convert_dataset(images, tmp_path / "out")
    (images / "train" / "2.json").unlink()
    assert "not used: 1 files of other formats (other.json)" in convert_dataset(images, tmp_path / "out")


@pytest.mark.parametrize("fix", [False, True])
def test_copies_never_overwrite_images(tmp_path, fix):
    """Copies are links to the originals, and their names may meet: 1.png, 1-2.png, and 1.png once more."""
    names, colours = ["a/1-2.png", "a/1.png", "b/1.png", "b/1-2.png"], ["red", "lime", "blue", "white"]
    for name, colour in zip(names, colours, strict=True):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20), colour).save(tmp_path / "set" / name)
    if fix:
        images = [{"id": i, "file_name": f"../set/{name}", "width": 40, "height": 20} for i, name in enumerate(names)]
        boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": CAR} for i in range(4)]
        record = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
        (tmp_path / "set" / "l.json").write_text(json.dumps(record))
        repair(examine(tmp_path / "set"), tmp_path / "out")
    else:
        (tmp_path / "set" / "t.csv").write_text("\n".join([TABLE, *(f"{name},40,20,cat,5,6,25,16" for name in names)]))
        convert_dataset(tmp_path / "set", tmp_path / "out")

    def corner(path):
        with Image.open(path) as image:
            return image.getpixel((0, 0))

    assert [corner(tmp_path / "set" / name) for name in names] == [ImageColor.getrgb(colour) for colour in colours]
    assert (
        len({corner(path) for path in open_dataset(tmp_path / "out").own(open_dataset(tmp_path / "out").own_splits[0]).paths}) == 4
    )


def test_turned_boxes(images, tmp_path):
    """CVAT's exports have the box as it was before it was turned, and an angle beside it."""
    name, text = datumaro(["1.png"])
    turned = text.replace("[5, 6, 20, 10]", "[10, 1, 10, 20]").replace(
        '"label_id": 1', '"label_id": 1, "attributes": {"rotation": 90}'
    )
    (images / "train" / name).write_text(turned)
    convert_dataset(images, tmp_path / "out")
    assert open_dataset(tmp_path / "out").own("train").check().annotations.boxes.round(3).tolist() == [CAR]
    angle = {"attributes": {"occluded": False, "rotation": 90.0}}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 1, 10, 20]}
    record = {"images": [{"id": 1, "file_name": "1.png"}], "annotations": [box | angle], "categories": [{"id": 1, "name": "cat"}]}
    assert list(parse_record(record, tmp_path).found.items) == ["size-missing", "box-turned"]
    record["annotations"] = [box | {"attributes": {"rotation": 0.0}}]
    assert list(parse_record(record, tmp_path).found.items) == ["size-missing"]
    attribute = "<attributes><attribute><name>rotation</name><value>45.0</value></attribute></attributes>"
    corners = "<bndbox><xmin>6</xmin><ymin>7</ymin><xmax>25</xmax><ymax>16</ymax></bndbox>"
    (tmp_path / "voc").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "voc" / "1.png")
    for text, expected in ((attribute, {"box-turned"}), (attribute.replace("45", "0"), set())):
        (tmp_path / "voc" / "1.xml").write_text(f"<annotation><object><name>cat</name>{corners}{text}</object></annotation>")
        assert set(open_dataset(tmp_path / "voc").own("all").check().annotations.found.items) == expected


HEAD = "filename,width,height,class,xmin,ymin,xmax,ymax\n"


def test_cells_of_csv_may_have_several_lines(images, tmp_path):
    (images / "train" / "labels.csv").write_text(HEAD + '1.png,40,20,"traffic\nlight",5,6,25,16\n2.png,40,20,a\u2028b,5,6,25,16\n')
    convert_dataset(images, tmp_path / "out")
    assert open_dataset(tmp_path / "out").own("train").check().annotations.categories.names == ("a\u2028b", "traffic\nlight")


def test_without_any_box_nothing_is_written(images, tmp_path):
    lines = {"_cls": "Polylines", "polylines": [{"label": "cat", "points": [[[0.1, 0.2], [0.5, 0.5]]]}]}
    samples = {"samples": [{"filepath": "train/1.png", "ground_truth": lines}]}
    for name, text in (("labels.csv", HEAD), ("samples.json", json.dumps(samples))):
        (images / name).write_text(text)
        with pytest.raises(ValueError, match="not one box is annotated"):
            convert_dataset(images, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        (images / name).unlink()


def test_circles_of_via_have_numbers_in_quotes_as_boxes_do(images, tmp_path):
    circle = {"name": "circle", "cx": "15", "cy": "11", "r": "5"}
    region = {"shape_attributes": circle, "region_attributes": {"class": "cat"}}
    (images / "via.json").write_text(json.dumps({"a": {"filename": "train/1.png", "size": 1, "regions": [region]}}))
    convert_dataset(images, tmp_path / "out")
    assert open_dataset(tmp_path / "out").own("train").check().annotations.boxes.tolist() == [[10, 6, 10, 10]]


@pytest.mark.parametrize("content", [b"no deflate stream", zlib.compress(b"no image")])
def test_damaged_bitmaps_of_supervisely(tmp_path, content):
    (tmp_path / "set" / "img").mkdir(parents=True)
    Image.new("RGB", (40, 20)).save(tmp_path / "set" / "img" / "1.png")
    bitmap = {"classTitle": "cat", "bitmap": {"origin": [1, 2], "data": base64.b64encode(content).decode()}}
    (tmp_path / "set" / "ann").mkdir()
    record = {"size": {"height": 20, "width": 40}, "tags": [], "objects": [bitmap]}
    (tmp_path / "set" / "ann" / "1.png.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"1\.png\.json: a bitmap"):
        convert_dataset(tmp_path / "set", tmp_path / "out")


def test_segments_of_no_category_are_said(images, tmp_path):
    segments = [{"id": 1, "category_id": 1, "bbox": [5, 6, 20, 10]}, {"id": 2, "category_id": 9, "bbox": [1, 1, 2, 2]}]
    record = {
        "images": [{"id": 1, "file_name": "1.png", "height": 20, "width": 40}],
        "annotations": [{"image_id": 1, "segments_info": segments}],
        "categories": [{"id": 1, "name": "cat", "isthing": 1}],
    }
    (images / "train" / "panoptic.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="category_id 9, which no category has"):
        convert_dataset(images, tmp_path / "out")


@pytest.mark.parametrize("kind", ["VIA", "Datumaro"])
def test_outlines_with_half_a_point(images, tmp_path, kind):
    shape = {"name": "polygon", "all_points_x": [5, 25, 9], "all_points_y": [6, 16]}
    region = {"shape_attributes": shape, "region_attributes": {"class": "cat"}}
    polygon = {"type": "polygon", "label_id": 0, "points": [5, 6, 25, 16, 9]}
    item = {"id": "1", "annotations": [polygon], "image": {"path": "train/1.png"}}
    record = {"info": {}, "categories": {"label": {"labels": [{"name": "cat"}]}}, "items": [item]}
    via = {"a": {"filename": "train/1.png", "size": 1, "regions": [region]}}
    (images / "export.json").write_text(json.dumps(via if kind == "VIA" else record))
    with pytest.raises(ValueError, match=r"export\.json: an outline of 3 x and 2 y"):
        convert_dataset(images, tmp_path / "out")
