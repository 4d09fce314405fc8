"""A detector as a web page: a folder that any static server serves, and that detects in the visitor's browser.

The folder holds the page, the detector as ONNX with the preparation of the images and the choice of the best inside, and
onnxruntime-web, which is no part of this package: npm fetches it once, and it is kept in the user's cache.
"""

import hashlib
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from deformable_detr.config import DEFAULT_THRESHOLD, Metadata
from deformable_detr.data.cache import user_cache
from deformable_detr.export.files import export_model
from deformable_detr.export.parity import Difference
from deformable_detr.files import atomic_file, atomic_folder
from deformable_detr.model import DeformableDETR

VERSION = "1.30.0"
ARCHIVE = f"onnxruntime-web-{VERSION}.tgz"
SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
RUNTIME_FILES = (
    *("dist/ort.webgpu.bundle.min.mjs", "dist/ort-wasm-simd-threaded.asyncify.mjs", "dist/ort-wasm-simd-threaded.asyncify.wasm"),
    *("dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm"),
)
"""What the page loads: the first line where the browser has WebGPU, the second elsewhere."""

PAGE = Path(__file__).parent / "web"
"""The page's own files."""

MODEL = "detector.onnx"


def export_web(
    model: DeformableDETR,
    folder: str | Path,
    *,
    runtime: str | Path | None = None,
    grid_sample: bool = True,
    top_k: int | None = None,
) -> Difference:
    """Write a web page that detects in the browser; nothing that it is shown leaves the visitor's machine.

    Args:
        model: the detector.
        folder: gets `index.html` and everything beside it; other files in it stay.
        runtime: the npm package onnxruntime-web of version :data:`VERSION` as a .tgz. None: from the cache, else fetched by
            `npm pack`.
        grid_sample: as for :func:`~deformable_detr.export.files.export_model`.
        top_k: detections per image; None: as many as the model gives.

    Returns:
        How far the ONNX file is from the model.

    Raises:
        FileNotFoundError: onnxruntime-web cannot be fetched; the message says how to get it.
        ValueError: `runtime` is another file than the pinned one.
        ParityError, ImportError: as for `export_model`.
    """
    archive = runtime_archive(runtime)
    metadata = model.metadata
    with atomic_folder(folder, merge=True) as partial:
        top_k = top_k or metadata.model.max_detections
        worst = export_model(model, partial / MODEL, preprocess=True, batch_size=1, grid_sample=grid_sample, top_k=top_k)
        _unpack(archive, partial / "onnxruntime")
        (partial / "detector.json").write_text(json.dumps(_record(metadata), ensure_ascii=False), encoding="utf-8")
        for file in sorted(PAGE.iterdir()):
            shutil.copyfile(file, partial / file.name)
    return worst


def runtime_archive(given: str | Path | None = None) -> Path:
    """The npm package of onnxruntime-web: the one given, that of the cache, or fetched to it.

    Raises:
        FileNotFoundError: there is none, and none can be fetched.
        ValueError: it is not the pinned one.
    """
    path = Path(given) if given is not None else user_cache() / ARCHIVE
    if given is None and not path.is_file():
        _fetch(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: expected the npm package onnxruntime-web {VERSION}, {ARCHIVE}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(f"{path} is not {ARCHIVE} as published: its SHA-256 is {found}, not {SHA256}. Fetch it anew")
    return path


def _fetch(target: Path) -> None:
    """By npm, so that its settings (mirrors, proxies) hold."""
    advice = (
        f"where there is npm, `npm pack onnxruntime-web@{VERSION}` writes {ARCHIVE}; hand it over with --onnxruntime-web {ARCHIVE}"
    )
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(f"the page needs onnxruntime-web {VERSION}, which npm would fetch, but npm is not here: {advice}")
    with atomic_file(target) as partial:
        command = [npm, "pack", "--silent", "--fetch-retries=1", "--fetch-timeout=60000"]  # offline, npm would try for minutes
        command += ["--pack-destination", str(partial.parent), f"onnxruntime-web@{VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not target.is_file():
            said = (done.stderr.strip() or done.stdout.strip() or "no file").splitlines()[-1]
            raise FileNotFoundError(f"npm could not fetch onnxruntime-web {VERSION} ({said}): {advice}")
        target.replace(partial)


def _unpack(archive: Path, folder: Path) -> None:
    folder.mkdir()
    with tarfile.open(archive) as package:
        for name in RUNTIME_FILES:
            source = package.extractfile(f"package/{name}")
            assert source is not None, name
            with (folder / Path(name).name).open("wb") as file:
                shutil.copyfileobj(source, file)


def _record(metadata: Metadata) -> dict[str, Any]:
    """What the page knows of the detector beside the file: names, thresholds, suppression."""
    names = metadata.named_categories.names
    thresholds = metadata.thresholds or [DEFAULT_THRESHOLD] * len(names)
    return {"names": list(names), "thresholds": list(thresholds), "nms_iou": metadata.nms_iou}
