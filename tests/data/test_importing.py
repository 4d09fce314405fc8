"""LabelMe and CreateML become COCO datasets; what cannot be converted is said."""

import json

import pytest
from PIL import Image

from deformable_detr.cli.__main__ import main
from deformable_detr.data.dataset import open_dataset
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
    (images / "via.json").write_text('{"_via_img_metadata": {}}')
    with pytest.raises(ValueError, match="format VIA: not read here; export it as COCO"):
        convert_dataset(images, tmp_path / "out")
    (images / "via.json").unlink()
    (images / "a.json").write_text(labelme("nowhere.png", RECTANGLE))
    with pytest.raises(FileNotFoundError, match=r"a\.json: its image nowhere\.png is not there"):
        convert_dataset(images, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="lies in the dataset itself"):
        convert_dataset(images, images / "out")
