"""Files that hold no weights: what each is, told from its content, and what to do with it."""

import re
import tarfile
import zipfile
from pathlib import Path

AGAIN = "was a download or copy interrupted? Fetch it again"
_RUN_IT = (
    "`deformable-detr predict` runs it as it is (docs/deploying.md); training and conversion need the weights that it was made from"
)
_ORIGINAL = "pass the PyTorch or safetensors weights that it was made from"
_UNPACK = "unpack it, and pass the weights file in it"

_SIGNATURES = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the weights themselves", "run `git lfs pull` in that folder"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and TensorFlow write them", _ORIGINAL),
    (4, b"TFL3", "a TensorFlow Lite model", _ORIGINAL),
    (0, b"ptrt", "a TensorRT engine", _ORIGINAL),
    (0, b"ftrt", "a TensorRT engine", _ORIGINAL),
    (0, b"GGUF", "a GGUF file of llama.cpp", _ORIGINAL),
    (0, b"\x93NUMPY", "a NumPy array", "save the tensors with torch.save or as safetensors"),
    (0, b"\x1f\x8b", "a gzip archive", _UNPACK),
    (0, b"BZh", "a bzip2 archive", _UNPACK),
    (0, b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (0, b"Rar!", "a RAR archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"\xff\xd8\xff", "an image (JPEG)", "pass the weights first, then the images"),
    (0, b"\x89PNG", "an image (PNG)", "pass the weights first, then the images"),
    (0, b"GIF8", "an image (GIF)", "pass the weights first, then the images"),
    (0, b"BM", "an image (BMP)", "pass the weights first, then the images"),
    (0, b"II*\x00", "an image (TIFF)", "pass the weights first, then the images"),
    (0, b"MM\x00*", "an image (TIFF)", "pass the weights first, then the images"),
    (8, b"WEBP", "an image (WebP)", "pass the weights first, then the images"),
    (4, b"ftyp", "a video or an image (MP4, MOV, HEIC, AVIF)", "pass the weights first, then what shall be looked at"),
    (0, b"%PDF", "a PDF", "pass a weights file"),
    (0, b"\x7fELF", "a program or library", "pass a weights file"),
    (0, b"SQLite format 3", "an SQLite database", "pass a weights file"),
)
"""(place, bytes found there, what the file is, what to do)."""

_ENGINES = (".engine", ".trt", ".plan")
_PROTOBUFS = {".pb": "a TensorFlow model", ".mlmodel": "a Core ML model", ".pbtxt": "a TensorFlow model"}
_PYTORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""What files of PyTorch before 1.6 start with: its magic number as a pickle of protocol 2."""


def describe_foreign_file(path: Path) -> str | None:
    """Say what a file is that cannot be read as weights.

    Args:
        path: an existing file; its first 512 bytes decide, the suffix only between formats without a signature.

    Returns:
        "what it is: what to do"; None where it may hold weights.
    """
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return f"empty: {AGAIN}"
    if start.startswith(b"PK"):
        return _describe_zip(path)
    if start.startswith(_PYTORCH_LEGACY) or is_safetensors(start):
        return None
    for place, signature, what, advice in _SIGNATURES:
        if start[place:].startswith(signature):
            return f"{what}: {advice}"
    if start[0] == 0x80 and start[1:2] <= b"\x05":  # a pickle and its protocol
        return (
            "refused, a plain Python pickle, which could run code; nothing was executed. If it comes from a source that you trust, "
            "save its state_dict with torch.save or as safetensors"
        )
    return _describe_protobuf(path, start) or _describe_text(path, start) or _describe_rest(path, start)


def is_safetensors(start: bytes) -> bool:
    """Whether a file starts as safetensors do: eight bytes of length (at most 100 MB), then JSON."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= 100_000_000


def _describe_zip(path: Path) -> str | None:
    """PyTorch's checkpoints, TorchScript, exported programs, Keras and NumPy all use zip archives."""
    if not zipfile.is_zipfile(path):
        return f"an incomplete PyTorch checkpoint or zip archive: {AGAIN}"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    inner = {name.split("/", 1)[-1] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        return f"a TorchScript program: {_ORIGINAL}"
    if "archive_format" in inner or "serialized_exported_program.json" in names:
        return f"an exported program of torch.export: {_RUN_IT}"
    if "data.pkl" in inner:
        return None
    if any(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays: save the tensors with torch.save or as safetensors"
    if "model.weights.h5" in names:
        return f"a Keras model: {_ORIGINAL}"
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"a zip archive ({shown or 'empty'}): {_UNPACK}"


def _describe_protobuf(path: Path, start: bytes) -> str | None:
    """ONNX begins with its version (field 1), then text or a message; others that do so are told apart by their suffix."""
    suffix = path.suffix.lower()
    if suffix in _PROTOBUFS:
        return f"{_PROTOBUFS[suffix]}: {_ORIGINAL}"
    if len(start) > 2 and start[0] == 0x08 and start[1] < 0x20 and start[2] in (0x12, 0x1A, 0x22, 0x2A, 0x32, 0x3A, 0x42):
        return f"an ONNX model: {_RUN_IT}"
    return None


def _describe_text(path: Path, start: bytes) -> str | None:
    try:
        text = start.decode("utf-8-sig") if len(start) < 512 else start[:508].decode("utf-8-sig", errors="ignore")
    except UnicodeDecodeError:
        return None
    if any(ord(character) < 32 and character not in "\t\n\r\f" for character in text):
        return None
    text = text.lstrip()
    if text.startswith("<"):
        if "<net " in text:
            return f"an OpenVINO model: {_RUN_IT}"
        kind = "an XML file" if text.startswith("<?xml") and "<html" not in text.lower() else "a web page (HTML)"
        return f"{kind}, not weights: did the download link lead to a page? Fetch the file itself"
    if path.suffix.lower() in (".yaml", ".yml"):
        return "a YAML file, settings and not weights: those of a run go to `deformable-detr train --config`"
    kind = "a JSON file" if re.match(r"\{|\[\s*[\[{\d\"\]]", text) else "a text file"
    first = text.splitlines()[0][:40] if text else ""
    return f"{kind}, not weights (it begins with {first!r}): pass the weights themselves"


def _describe_rest(path: Path, start: bytes) -> str:
    if path.suffix.lower() in _ENGINES:
        return f"a TensorRT engine: {_ORIGINAL}"
    if path.suffix == ".bin" and path.with_suffix(".xml").is_file():
        return f"one half of the OpenVINO model {path.with_suffix('.xml').name}: {_RUN_IT.replace('it as', 'the .xml as')}"
    if tarfile.is_tarfile(path):
        return f"a tar archive: {_UNPACK}"
    return f"neither a safetensors file nor a whole PyTorch checkpoint (it begins with {start[:12]!r}): {AGAIN}"
