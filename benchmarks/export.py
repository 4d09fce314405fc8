"""Exported files beside the model: time, size and distance, in one process, the runs of all forms interleaved.

python benchmarks/export.py --size 480 640 --forms onnx onnx-gather openvino --json table.json

With --folder the files are kept, and those that are there already are not exported again.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from deformable_detr.acceleration import InferenceModel
from deformable_detr.export import ExportedNetwork, export_model
from deformable_detr.model import build_model
from deformable_detr.structures import ImageBatch

FORMS = {
    "pt2": ("detector.pt2", {}),
    "onnx": ("detector.onnx", {}),
    "onnx-gather": ("gather.onnx", {"grid_sample": False}),
    "openvino": ("openvino.xml", {}),
    "openvino-gather": ("openvino-gather.xml", {"grid_sample": False}),
}


def main() -> None:
    """Export, run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="r50")
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
    model = build_model(options.preset, pretrained_backbone=False).eval()
    height, width = options.size
    batch = ImageBatch.from_images([torch.randn(3, height, width)])
    rows: dict[str, dict] = {
        "PyTorch model": {"run": model},
        "PyTorch, optimised": {"run": InferenceModel(model)},
        "PyTorch, optimised, bf16": {"run": InferenceModel(model, precision="bf16")},
    }
    clock = time.process_time if options.cpu_time else time.perf_counter
    keep = contextlib.nullcontext(options.folder) if options.folder else tempfile.TemporaryDirectory()
    with keep as folder, torch.no_grad():
        Path(folder).mkdir(parents=True, exist_ok=True)
        for form in options.forms:
            rows[form] = exported_row(model, form, Path(folder), (height, width))
        if options.peer:
            rows |= peer_rows(batch.images, Path(folder))
        rows = {form: row for form, row in rows.items() if any(word in form for word in options.only)}
        seconds: dict[str, list[float]] = {form: [] for form in rows}
        for _ in range(options.runs + 1):
            for form, row in rows.items():
                began = clock()
                row["run"](batch)
                seconds[form].append(clock() - began)
    record = {}
    for form, row in rows.items():
        del row["run"]
        record[form] = row | {"ms": 1000 * statistics.median(seconds[form][1:])}
    first, base = next((form, row["ms"]) for form, row in record.items())
    print(f"{options.preset}, {height}x{width}, batch 1, {torch.get_num_threads()} threads, medians of {options.runs}\n")
    print(f"| form | ms | × {first} | MB | scores differ by | boxes differ by | export, s |\n|---|---|---|---|---|---|---|")
    for form, row in record.items():
        rest = (
            [f"{row['megabytes']:.0f}", f"{row['score']:.0e}", f"{row['box']:.0e}", f"{row['export_s']:.0f}"]
            if "box" in row
            else [""] * 4
        )
        print("| " + " | ".join([form, f"{row['ms']:.0f}", f"{row['ms'] / base:.2f}", *rest]) + " |")
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def exported_row(model: torch.nn.Module, form: str, folder: Path, size: tuple[int, int]) -> dict:
    """One form as a file, and how it was written; see the record beside it."""
    name, settings = FORMS[form]
    path, record = folder / name, folder / f"{name}.json"
    if not record.exists():
        began = time.perf_counter()
        difference = export_model(model, path, size=size, batch_size=1, **settings)
        weights = path.with_suffix(".bin") if path.suffix == ".xml" else path
        how = {"export_s": time.perf_counter() - began, "megabytes": weights.stat().st_size / 1e6}
        record.write_text(json.dumps(how | {"score": difference.score, "box": difference.box}))
        print(form, f"exported in {how['export_s']:.0f} s", flush=True)
    return {"run": ExportedNetwork(path)} | json.loads(record.read_text())


def peer_rows(images: torch.Tensor, folder: Path) -> dict[str, dict]:
    """transformers' model with fresh weights, and what OpenVINO makes of its ONNX at this size."""
    import openvino
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
