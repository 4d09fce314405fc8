"""A detector in ExecuTorch (.pte, XNNPACK) or LiteRT (.tflite): converted, compared with PyTorch, and timed beside it.

python benchmarks/mobile.py runs/first detector.pte --size 480 640
python benchmarks/mobile.py tiny detector.tflite --size 128 128 --cpu-time

Both start from the .pt2 that `deformable-detr export` writes: one size, one image, gather in place of GridSample, no mask. Needs
`executorch`, or `litert-torch` with `ai-edge-litert`, which are in none of the extras (docs/deploying.md says what was tried).
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.export import ExportedProgram
from torchvision.transforms.functional import to_tensor

from deformable_detr import Detector
from deformable_detr.acceleration import InferenceModel
from deformable_detr.data.scenes import draw_scene
from deformable_detr.export import export_model
from deformable_detr.model import DeformableDETR, build_model
from deformable_detr.presets import MODEL_PRESETS
from deformable_detr.structures import ImageBatch

Run = Callable[[Tensor], Any]


def to_executorch(program: ExportedProgram, images: Tensor, path: Path) -> Run:
    """Write a .pte for XNNPACK, and open it."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    del images
    path.write_bytes(to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer)
    method = Runtime.get().load_program(path).load_method("forward")
    return lambda images: method.execute([images])


def to_litert(program: ExportedProgram, images: Tensor, path: Path) -> Run:
    """Write a .tflite, and open it."""
    import litert_torch

    converted = litert_torch.convert(program.module(), (images,))
    converted.export(str(path))
    return lambda images: [torch.as_tensor(output) for output in converted(images)]


WRITERS = {".pte": to_executorch, ".tflite": to_litert}


def main() -> None:
    """Convert, compare, time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="a run folder or weights; a preset's name for random ones")
    parser.add_argument("output", type=Path, help=f"the file to write: {', '.join(WRITERS)}")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), help="height and width")
    parser.add_argument("--runs", type=int, default=9, help="of both, after one that does not count")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time")
    options = parser.parse_args()
    model = load(options.weights)
    scene = Image.fromarray(draw_scene(np.random.default_rng(0))[0]).resize(options.size[::-1])
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "detector.pt2"
        fixed: dict[str, Any] = {"size": tuple(options.size), "batch_size": 1, "grid_sample": False, "padding_mask": False}
        print(f".pt2: {export_model(model, source, **fixed)}", flush=True)
        program = torch.export.load(source)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.metadata.mean, model.metadata.std))
    images = ((to_tensor(scene) - mean) / std)[None]
    began = time.process_time()
    run = WRITERS[options.output.suffix](program, images, options.output)
    size, took = options.output.stat().st_size / 1e6, time.process_time() - began
    print(f"{options.output}: {size:.0f} MB, converted in {took:.0f} s of CPU time")
    with torch.no_grad():
        for name, found, exact in zip(("logits", "boxes"), run(images), program.module()(images), strict=True):
            print(f"{name} differ by at most {(found - exact).abs().max():.1e}")
    forms = {
        "PyTorch, optimised": (InferenceModel(model), ImageBatch.from_images([images[0]])),
        options.output.suffix: (run, images),
    }
    clock = time.process_time if options.cpu_time else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(options.runs + 1):
        for name, (function, argument) in forms.items():
            began = clock()
            function(argument)
            seconds[name].append(clock() - began)
    ours, theirs = (one[1:] for one in seconds.values())
    ratio = statistics.median(there / here for here, there in zip(ours, theirs, strict=True))
    here, there = (1000 * statistics.median(one) for one in (ours, theirs))
    print(f"PyTorch {here:.0f} ms, {options.output.suffix} {there:.0f} ms: × {ratio:.2f}")


def load(weights: str) -> DeformableDETR:
    """Trained weights, or random ones of a preset."""
    if weights in MODEL_PRESETS:
        torch.manual_seed(0)
        return build_model(weights, pretrained_backbone=False).eval()
    return Detector.load(weights, device="cpu").model.eval()  # pyright: ignore[reportReturnType]


if __name__ == "__main__":
    main()
