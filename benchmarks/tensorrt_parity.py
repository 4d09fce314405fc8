"""A TensorRT engine beside its .onnx in onnxruntime: how far apart, and how fast. Runs where TensorRT and a GPU are.

    deformable-detr export runs/first detector.onnx --to tensorrt --size 800 1088 --batch-size 1
    trtexec --onnx=detector.onnx --saveEngine=detector.engine --stronglyTyped
    python benchmarks/tensorrt_parity.py detector.onnx detector.engine

Not tried: no machine of this project has TensorRT.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from deformable_detr.export.parity import parity_batches
from deformable_detr.export.sessions import open_onnxruntime

RUNS = 50


def open_engine(path: Path):
    """A function of the named inputs, on the GPU, that gives the outputs by name."""
    import tensorrt as trt  # pyright: ignore[reportMissingImports]

    engine = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(path.read_bytes())
    context, stream = engine.create_execution_context(), torch.cuda.Stream()
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    outputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]

    def run(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for name, value in inputs.items():
            context.set_input_shape(name, tuple(value.shape))
            context.set_tensor_address(name, value.data_ptr())
        found = {}
        for name in outputs:
            kind = torch.from_numpy(np.empty(0, trt.nptype(engine.get_tensor_dtype(name)))).dtype
            found[name] = torch.empty(tuple(context.get_tensor_shape(name)), dtype=kind, device="cuda")
            context.set_tensor_address(name, found[name].data_ptr())
        context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        return found

    return run


def main() -> None:
    """Compare on drawn scenes, then time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("engine", type=Path)
    arguments = parser.parse_args()
    form, session = open_onnxruntime(arguments.onnx)
    run = open_engine(arguments.engine)
    for batch in parity_batches(form):
        tensors = {"images": batch.images, "padding_mask": batch.padding_mask}
        inputs = {name: tensors[name].cuda().contiguous() for name in form.inputs}
        expected = session([tensors[name].numpy() for name in form.inputs])
        found = run(inputs)
        gaps = {
            name: float(np.abs(found[name].cpu().numpy() - array).max()) for name, array in zip(form.outputs, expected, strict=True)
        }
        began = time.perf_counter()
        for _ in range(RUNS):
            run(inputs)
        print(f"{tuple(batch.images.shape)}: largest differences {gaps}, {(time.perf_counter() - began) / RUNS * 1000:.2f} ms")


if __name__ == "__main__":
    main()
