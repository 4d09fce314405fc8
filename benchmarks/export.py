"""Exported files beside the model: time, size and distance, in one process, the runs of all forms interleaved.

python benchmarks/export.py --size 480 640 --forms onnx onnx-gather openvino --json table.json
python benchmarks/export.py --weights runs/first --data my_data --size 192 256

Times are ratios to the optimised model in the same round, of which the median is taken. With --data the AP of each form on the
split val is measured as well; without, int8 takes its ranges from noise. With --folder the files are kept, and those that are there
already are not exported again.
"""

import argparse
import contextlib
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import torch

from deformable_detr import Detector
from deformable_detr.acceleration import InferenceModel
from deformable_detr.export import ExportedNetwork, export_model
from deformable_detr.export.half import halve_onnx
from deformable_detr.export.onnx import save_onnx
from deformable_detr.export.quantize import quantize_onnx, write_int8
from deformable_detr.model import build_model
from deformable_detr.structures import ImageBatch, Predictions

FORMS = {
    "pt2": ("detector.pt2", {}),
    "onnx": ("detector.onnx", {}),
    "onnx-fp16-weights": ("fp16-weights.onnx", {}),
    "onnx-fp16-compute": ("fp16-compute.onnx", {}),
    "onnx-int8": ("int8.onnx", {}),
    "onnx-gather": ("gather.onnx", {"grid_sample": False}),
    "openvino": ("openvino.xml", {}),
    "openvino-default": ("openvino.xml", {}),
    "openvino-gather": ("openvino-gather.xml", {"grid_sample": False}),
}
OPTIMISED = "PyTorch, optimised"


def main() -> None:
    """Export, run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="r50")
    parser.add_argument("--weights", help="a trained detector in place of the preset's random weights")
    parser.add_argument("--data", help="dataset with a split val, whose images are resized to --size")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), help="height and width, fixed in the files")
    parser.add_argument("--forms", nargs="*", choices=FORMS, default=list(FORMS))
    parser.add_argument("--runs", type=int, default=5, help="of each form, after one that does not count")
    parser.add_argument(
        "--peer",
        action="store_true",
        help="also transformers: as it is, and its ONNX in OpenVINO, in float32 and as it runs by default",
    )
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="run the rows alone whose name holds one of these")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time: for one thread on a machine that others use, too")
    parser.add_argument("--folder", type=Path, help="where the files are kept (for one preset and size)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    build = build_model(options.preset, pretrained_backbone=False) if options.weights is None else None
    model = (build or Detector.load(options.weights, device="cpu").model).eval()
    height, width = options.size
    batch = ImageBatch.from_images([torch.randn(3, height, width)])
    rows: dict[str, dict] = {
        "PyTorch model": {"run": model},
        OPTIMISED: {"run": InferenceModel(model)},
        "PyTorch, optimised, bf16": {"run": InferenceModel(model, precision="bf16")},
    }
    clock = time.process_time if options.cpu_time else time.perf_counter
    keep = contextlib.nullcontext(options.folder) if options.folder else tempfile.TemporaryDirectory()
    with keep as folder, torch.no_grad():
        Path(folder).mkdir(parents=True, exist_ok=True)
        for form in options.forms:
            rows[form] = exported_row(model, form, Path(folder), (height, width), options.data)
        if options.peer:
            rows |= peer_rows(batch.images, Path(folder))
        rows = {form: row for form, row in rows.items() if any(word in form for word in options.only)}
        seconds: dict[str, list[float]] = {form: [] for form in rows}
        for _ in range(options.runs + 1):
            for form, row in rows.items():
                began = clock()
                row["run"](batch)
                seconds[form].append(clock() - began)
        if options.data:
            for row in rows.values():
                row["ap"] = average_precision(row["run"], model, options.data)
    record = {}
    for form, row in rows.items():
        del row["run"]
        ratios = [one / base for one, base in zip(seconds[form][1:], seconds[OPTIMISED][1:], strict=True)]
        record[form] = row | {"ms": 1000 * statistics.median(seconds[form][1:]), "ratio": statistics.median(ratios)}
    name, threads = options.weights or options.preset, torch.get_num_threads()
    print(f"{name}, {height}x{width}, batch 1, {threads} threads, medians of {options.runs}\n")
    print(f"| form | ms | × {OPTIMISED} | AP | MB | scores differ by | boxes differ by | export, s |\n" + "|---" * 8 + "|")
    for form, row in record.items():
        cells = [form, f"{row['ms']:.0f}", f"{row['ratio']:.2f}"]
        for name, shown in {
            "ap": "{:.4f}",
            "megabytes": "{:.0f}",
            "score": "{:.0e}",
            "box": "{:.0e}",
            "export_s": "{:.0f}",
        }.items():
            cells.append(shown.format(row[name]) if name in row else "")
        print(f"| {' | '.join(cells)} |")
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def exported_row(model: Any, form: str, folder: Path, size: tuple[int, int], data: str | None) -> dict:
    """One form as a file, and how it was written; see the record beside it."""
    name, settings = FORMS[form]
    path, record = folder / name, folder / f"{name}.json"
    if not record.exists():
        began = time.perf_counter()
        if form in DERIVED:
            exported_row(model, "onnx", folder, size, data)
            shutil.copy(folder / FORMS["onnx"][0], path)
            DERIVED[form](path, data)
            how = {"export_s": time.perf_counter() - began}
        else:
            difference = export_model(model, path, size=size, batch_size=1, **settings)
            how = {"export_s": time.perf_counter() - began, "score": difference.score, "box": difference.box}
        weights = path.with_suffix(".bin") if path.suffix == ".xml" else path
        record.write_text(json.dumps(how | {"megabytes": weights.stat().st_size / 1e6}))
        print(form, f"written in {time.perf_counter() - began:.0f} s", flush=True)
    network = ExportedNetwork(path)
    if form == "openvino-default":
        core = openvino.Core()
        core.set_property({"INFERENCE_NUM_THREADS": torch.get_num_threads()})
        compiled = core.compile_model(core.read_model(str(path)), "CPU")
        print(form, "computes in", compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
        network._run = lambda arrays: [np.array(array) for array in compiled(arrays).to_tuple()]
    return json.loads(record.read_text()) | {"run": network}


def add_int8(path: Path, data: str | None) -> None:
    """Quantise a file with the images of a dataset, or noise."""
    if data is not None:
        print(quantize_onnx(path, data))
        return
    network = ExportedNetwork(path)
    noise = [network.arrays(torch.randn(1, 3, *(network.form.size or ()))) for _ in range(2)]
    write_int8(path, path, noise)
    save_onnx(path, onnx.load(path), replace(network.form, int8=True))


DERIVED: dict[str, Callable[[Path, str | None], object]] = {
    "onnx-fp16-weights": lambda path, data: print(halve_onnx(path, "weights")),
    "onnx-fp16-compute": lambda path, data: print(halve_onnx(path, "compute")),
    "onnx-int8": add_int8,
}
"""What is done to a copy of the float32 .onnx."""


def average_precision(run: Callable[[ImageBatch], Predictions], model: torch.nn.Module, data: str) -> float:
    """COCO AP of one form on a dataset."""
    network = run if isinstance(run, torch.nn.Module) else model
    return Detector(network, device="cpu").evaluate(data, num_workers=0).ap or 0.0


def peer_rows(images: torch.Tensor, folder: Path) -> dict[str, dict]:
    """transformers' model with fresh weights, and what OpenVINO makes of its ONNX at this size."""
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    torch.manual_seed(0)
    settings = DeformableDetrConfig(use_pretrained_backbone=False, num_labels=91, disable_custom_kernels=True)
    model = DeformableDetrForObjectDetection(settings).eval()

    class Answer(torch.nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            found = model(pixel_values=pixel_values)
            return found.logits, found.pred_boxes

    path = folder / "peer.onnx"
    if not path.exists():
        began = time.perf_counter()
        torch.onnx.export(Answer().eval(), (images,), str(path), dynamo=True, opset_version=20, external_data=False)
        print(f"transformers exported in {time.perf_counter() - began:.0f} s", flush=True)
    core = openvino.Core()
    core.set_property({"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    rows: dict[str, dict] = {"transformers": {"run": lambda batch: model(pixel_values=batch.images)}}
    for name, settings in (("float32", {"INFERENCE_PRECISION_HINT": "f32"}), ("its default precision", {})):
        compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
        used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        rows[f"transformers' ONNX in OpenVINO, {name} ({used})"] = {
            "run": lambda batch, compiled=compiled: compiled([batch.images.numpy()]).to_tuple()
        }
    return rows


if __name__ == "__main__":
    main()
