"""Record a model's GPU kernels once per batch shape and replay them: no time is lost between small kernels.

A graph stores the launches with the addresses of their buffers. So images are copied into the buffer that was recorded, predictions
are copied out before the next replay overwrites them, and every tensor that a kernel reads is kept alive as long as its graph.
Padded batches are not recorded: a graph replays the mask and the image sizes of the batch that it was recorded with.
"""

import threading
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deformable_detr.acceleration.geometry import KeptGeometry
from deformable_detr.structures import Geometry, ImageBatch, Predictions, map_tensors

WARM_UPS = 3


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    place: ImageBatch  # the input buffer
    predictions: Predictions  # the output buffers
    kept: list[Geometry]  # further tensors that it reads; `KeptGeometry` may drop its own reference


class CudaGraphs:
    """Replays batches without padding; padded batches run without a graph.

    Args:
        network: what is recorded: an `ImageBatch` → `Predictions`.
        most_shapes: number of shapes that are recorded, the first ones to arrive; batches of other shapes run without a graph.
    """

    def __init__(self, network: nn.Module, most_shapes: int = 4) -> None:
        self.network, self.most_shapes = network, most_shapes
        self._recorded: dict[tuple, _Recording] = {}
        self._lock = threading.Lock()  # a recorded graph has one input buffer

    def __call__(self, batch: ImageBatch) -> Predictions:
        """Predictions that do not share memory with the graph's buffers."""
        key = (tuple(batch.images.shape), batch.images.dtype, batch.images.device)
        with self._lock:
            if batch.may_be_padded or (key not in self._recorded and len(self._recorded) >= self.most_shapes):
                return self.network(batch)
            if key not in self._recorded:
                self._recorded[key] = self._record(batch)
            recording = self._recorded[key]
            recording.place.images.copy_(batch.images)
            recording.graph.replay()
            return map_tensors(Tensor.clone, recording.predictions)

    def _record(self, batch: ImageBatch) -> _Recording:
        place = ImageBatch(batch.images.clone(), batch.padding_mask.clone(), (), batch.image_sizes)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # fills the caches of geometry, Triton and cuDNN: none of that may be recorded
            for _ in range(WARM_UPS):
                self.network(place)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may go on
            predictions = self.network(place)
        kept = [geometry for part in self.network.modules() if isinstance(part, KeptGeometry) for geometry in part.kept()]
        return _Recording(graph, place, predictions, kept)
