"""Images per second from a folder of JPEGs to detections, beside the bare network and beside OpenVINO and onnxruntime.

OMP_NUM_THREADS=2 python benchmarks/throughput.py --preset r50 --size 480 640 --peers
OMP_NUM_THREADS=1 python benchmarks/throughput.py --preset demo-fast --size 128 128 --images 64 --peers --cpu-time

The bare network has its images in memory, prepared and put together into batches. All rows take turns on the same images, and each
is compared in the same round with the bare network at the same batch size (peers: at batch 1); printed are medians. The peers are
bare, too: OpenVINO in its throughput mode, which keeps several requests of one image on their way, and onnxruntime image by image.
With `--connections`, `deformable-detr serve` runs beside them in a process of its own, and so many connections at a time send it
the images. It is compared with the bare network at half as many images in a batch, or the nearest size below that is measured:
while one half is computed, the other is on its way. Weights are random. `benchmarks/serve.py` is about load on a running server.
"""

import argparse
import http.client
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deformable_detr import Detector
from deformable_detr.checkpoints import save_weights
from deformable_detr.data.transforms import eval_transform
from deformable_detr.export import ExportedNetwork, export_model
from deformable_detr.model import build_model
from deformable_detr.structures import ImageBatch

Pass = Callable[[], object]
"""All images once."""

BARE = "bare network, batch {}"


def main() -> None:
    """Write the images, run every row in turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="r50")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), help="height and width of the images and of the network")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--connections", type=int, nargs="+", default=[], help="measure `deformable-detr serve` as well")
    parser.add_argument("--rounds", type=int, default=5, help="after one that does not count")
    parser.add_argument("--precision", default="fp32", help="of ours: fp32, bf16 or auto")
    parser.add_argument("--peers", action="store_true", help="export, and run OpenVINO and onnxruntime as well")
    parser.add_argument("--cpu-time", action="store_true", help="of all threads: for a machine that others use, too")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = build_model(options.preset, pretrained_backbone=False)
    model.metadata = replace(model.metadata, eval_short_side=min(options.size), max_long_side=max(options.size))
    detector = Detector(model, device="cpu", precision=options.precision)
    clock = time.process_time if options.cpu_time else time.perf_counter
    with ExitStack() as stack, torch.inference_mode():
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        files = write_images(Path(folder), options.images, options.size)
        prepared = prepare(detector, files)
        rows: dict[str, Pass] = {}
        beside: dict[str, str] = {}
        for size in options.batch_sizes:
            starts = range(0, len(prepared), size)
            batches = [ImageBatch.from_images(prepared[start : start + size]) for start in starts]
            rows[BARE.format(size)] = lambda batches=batches: [detector.inference_model(batch) for batch in batches]
            rows[f"folder to detections, batch {size}"] = lambda size=size: detector.predict(files, 0.5, batch_size=size)
            beside |= dict.fromkeys(list(rows)[-2:], BARE.format(size))
        if options.connections:
            port = stack.enter_context(server(detector, Path(folder), options.precision))
            for count in options.connections:
                row = f"server, {count} connections"
                rows[row] = partial(send, files, port, count)
                beside[row] = BARE.format(max((size for size in options.batch_sizes if 2 * size <= count), default=1))
        if options.peers:
            rows |= peers(detector, prepared, Path(folder), options.size)
        seconds: dict[str, list[float]] = {row: [] for row in rows}
        for _ in range(options.rounds + 1):
            for row, run in rows.items():
                began = clock()
                run()
                seconds[row].append(clock() - began)
    what = "per second of CPU time" if options.cpu_time else "per second"
    size = "x".join(map(str, options.size))
    print(f"{options.preset}, {size}, {options.precision}, {torch.get_num_threads()} threads, {options.images} images\n")
    print(f"| row | images {what} | x bare network |\n|---|---|---|")
    for row, times in seconds.items():
        bare = seconds[beside.get(row, BARE.format(1))]
        ratio = statistics.median(base / one for one, base in zip(times[1:], bare[1:], strict=True))
        print(f"| {row} | {options.images / statistics.median(times[1:]):.2f} | {ratio:.2f} |")


def write_images(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """JPEGs with large and small structures, which take about as long to decode as photographs."""
    generator = np.random.default_rng(0)
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for path in paths:
        coarse = Image.fromarray(generator.integers(0, 256, (size[0] // 16, size[1] // 16, 3), dtype=np.uint8))
        noise = generator.normal(0, 12, (*size, 3))
        pixels = np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC)) + noise
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


def prepare(detector: Detector, files: list[Path]) -> list[Tensor]:
    """What the network is given for each file, `[3, H, W]`."""
    known = detector.metadata
    transform = eval_transform(known.eval_short_side, known.max_long_side, known.mean, known.std)
    pixels = [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in files]
    return [transform(one, None)[0] for one in pixels]


@contextmanager
def server(detector: Detector, folder: Path, precision: str) -> Iterator[int]:
    """`deformable-detr serve` with these weights; its port."""
    save_weights(folder / "served.safetensors", detector.model)  # pyright: ignore[reportArgumentType]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "deformable_detr", "serve", str(folder / "served.safetensors"), "--device", "cpu"]
    options = ["--precision", precision, "--port", str(port), "--no-access-log"]
    process = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def send(files: list[Path], port: int, connections: int) -> None:
    """All images once, each connection sending its share one after the other."""

    def share(first: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        for path in files[first::connections]:
            connection.request("POST", "/detect", path.read_bytes(), {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            response.read()
            assert response.status == 200, response.status
        connection.close()

    with ThreadPoolExecutor(connections) as pool:
        list(pool.map(share, range(connections)))


def peers(detector: Detector, prepared: list[Tensor], folder: Path, size: tuple[int, int]) -> dict[str, Pass]:
    """OpenVINO in float32 and as it runs by default, each in throughput mode, and onnxruntime."""
    import openvino

    export_model(detector.model, folder / "network.onnx", size=size, batch_size=1)  # pyright: ignore[reportArgumentType]
    export_model(detector.model, folder / "network.xml", size=size, batch_size=1)  # pyright: ignore[reportArgumentType]
    session = ExportedNetwork(folder / "network.onnx")
    core = openvino.Core()
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "THROUGHPUT"}
    arrays = [ExportedNetwork(folder / "network.xml").arrays(image[None]) for image in prepared]
    images = [ImageBatch.from_images([image]) for image in prepared]
    rows: dict[str, Pass] = {"onnxruntime, bare": lambda: [session(image) for image in images]}
    for name, precision in (("float32", {"INFERENCE_PRECISION_HINT": "f32"}), ("its default precision", {})):
        compiled = core.compile_model(core.read_model(str(folder / "network.xml")), "CPU", threads | precision)
        queue = openvino.AsyncInferQueue(compiled)

        def run(queue: openvino.AsyncInferQueue = queue) -> None:
            for one in arrays:
                queue.start_async(one)
            queue.wait_all()

        used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        rows[f"OpenVINO, bare, throughput mode, {name} ({used})"] = run
    return rows


if __name__ == "__main__":
    main()
