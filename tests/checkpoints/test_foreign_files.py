"""Files that hold no weights: each is called what it is, and the message says what to do."""

import io
import json
import tarfile
import zipfile

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from deformable_detr.checkpoints import load_pretrained


def image_bytes(kind):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    return buffer.getvalue()


def onnx_bytes():
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
    )
    return onnx.helper.make_model(graph).SerializeToString()


def zipped(name, content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def tarred(name, content):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def numpy_bytes(save, *arrays):
    buffer = io.BytesIO()
    save(buffer, *arrays)
    return buffer.getvalue()


def exported_program():
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), buffer)
    return buffer.getvalue()


def scripted():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), buffer)
    return buffer.getvalue()


SIGNATURES = {
    "model.h5": (b"\x89HDF\r\n\x1a\n" + bytes(200), "an HDF5 file"),
    "model.keras": (zipped("model.weights.h5", b"x"), "a Keras model"),
    "saved_model.pb": (b"\x08\x01\x12\xa5" + bytes(100), "a TensorFlow model"),
    "model.tflite": (b"\x1c\0\0\0TFL3" + bytes(100), "a TensorFlow Lite model"),
    "a.engine": (b"ftrt" + bytes(100), "a TensorRT engine"),
    "b.engine": (bytes(range(128, 228)), "a TensorRT engine"),
    "weights.gz": (b"\x1f\x8b\x08" + bytes(100), "a gzip archive: unpack it"),
    "weights.zip": (zipped("r50.pth", b"x" * 100), r"a zip archive \(r50.pth\): unpack it"),
    "weights.tar": (tarred("r50.pth", b"x" * 100), "a tar archive: unpack it"),
    "cut.pth": (zipped("archive/data.pkl", b"x" * 100)[:80], "an incomplete PyTorch checkpoint or zip archive"),
    "net.onnx": (onnx_bytes(), "an ONNX model: `deformable-detr predict` runs it"),
    "renamed.pth": (onnx_bytes(), "an ONNX model: `deformable-detr predict` runs it"),
    "net.xml": (b'<?xml version="1.0"?>\n<net name="Model0" version="11">', "an OpenVINO model"),
    "data.xml": (b"<?xml version='1.0'?>\n<annotation>", "an XML file"),
    "page.pth": (b"\n <!DOCTYPE html><html><body>Sign in", "a web page"),
    "config.yaml": (b"model:\n  num_classes: 3\n", "a YAML file, settings and not weights"),
    "yolo.cfg": (b"[net]\nbatch=1\n", r"a text file, not weights \(it begins with '\[net\]'\)"),
    "coco.json": (b'{"images": []}', "a JSON file, not weights"),
    "list.json": (b'[{"images": []}]', "a JSON file, not weights"),
    "bom.txt": (b"\xef\xbb\xbfclasses\n", "a text file"),
    "noise.pth": (bytes(range(128, 228)), "neither a safetensors file nor a whole PyTorch checkpoint"),
    "short.safetensors": (b"\x10\0\0", "neither a safetensors file nor a whole PyTorch checkpoint"),
    "a.npy": (numpy_bytes(np.save, np.ones(2)), "a NumPy array"),
    "a.npz": (numpy_bytes(np.savez, np.ones(2)), "an archive of NumPy arrays"),
    "photo.pth": (image_bytes("JPEG"), r"an image \(JPEG\)"),
    "photo.png": (image_bytes("PNG"), r"an image \(PNG\)"),
    "photo.webp": (image_bytes("WEBP"), r"an image \(WebP\)"),
    "photo.tif": (image_bytes("TIFF"), r"an image \(TIFF\)"),
    "street.mp4": (b"\0\0\0\x18ftypmp42" + bytes(50), "a video or an image"),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_what_it_is(name, tmp_path):
    content, message = SIGNATURES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_pretrained(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("write", "message"), [(scripted, "a TorchScript program"), (exported_program, "an exported program of torch.export")]
)
def test_programs_are_no_weights(write, message, tmp_path):
    (tmp_path / "a.pt").write_bytes(write())
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path / "a.pt")


def test_half_of_an_openvino_model(tmp_path):
    (tmp_path / "a.xml").write_text("<net name='a'>")
    (tmp_path / "a.bin").write_bytes(bytes(range(128, 228)))
    with pytest.raises(ValueError, match=r"one half of the OpenVINO model a\.xml"):
        load_pretrained(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["adapter_config.json", "adapter_model.bin"], "an adapter of peft, but no adapter_model.safetensors"),
        (["saved_model.pb"], "a TensorFlow SavedModel"),
        (["__0_0.distcp", ".metadata"], "a distributed checkpoint"),
        (["epoch_1.pth", "epoch_2.pth"], r"which of its files is meant \(epoch_1.pth, epoch_2.pth\)"),
        (["checkpoint-5/model.safetensors"], "checkpoint-5/model.safetensors"),
        (["readme.txt"], "expected one of weights/best.safetensors"),
    ],
)
def test_folders_without_weights(names, message, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=message):
        load_pretrained(tmp_path)


def test_an_index_of_something_else(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"files": []}))
    with pytest.raises(ValueError, match="is not an index of weights"):
        load_pretrained(path)
    path.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(ValueError, match="names files outside of its folder"):
        load_pretrained(path)
