"""Record a network's GPU kernels once per batch shape and replay them: no time is lost between small kernels."""

import threading
from dataclasses import dataclass

import torch

from deformable_detr.inference.constants import Constants
from deformable_detr.inference.network import InferenceNetwork
from deformable_detr.structures import ImageBatch, Predictions

WARM_UPS = 3


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    place: ImageBatch  # where it reads its images
    predictions: Predictions  # where it writes
    constants: list[Constants]  # what it reads besides; kept, as the cache may let go of them


class CudaGraphs:
    """Replays whole batches without padding; other batches run as they come.

    Args:
        network: whose kernels are recorded.
        most_shapes: so many shapes are recorded, the first ones that come; others run as they are.
    """

    def __init__(self, network: InferenceNetwork, most_shapes: int = 4) -> None:
        self.network, self.most_shapes = network, most_shapes
        self._recorded: dict[tuple, _Recording] = {}
        self._lock = threading.Lock()  # a recorded graph has one place for its images

    def __call__(self, batch: ImageBatch) -> Predictions:
        """Predictions in memory of their own."""
        height, width = batch.images.shape[-2:]
        whole = batch.image_sizes is not None and set(batch.image_sizes) == {(height, width)}
        key = (tuple(batch.images.shape), batch.images.dtype, batch.images.device)
        with self._lock:
            if not whole or (key not in self._recorded and len(self._recorded) >= self.most_shapes):
                return self.network(batch)
            if key not in self._recorded:
                self._recorded[key] = self._record(batch)
            recording = self._recorded[key]
            recording.place.images.copy_(batch.images)
            recording.graph.replay()
            return _copy(recording.predictions)

    def _record(self, batch: ImageBatch) -> _Recording:
        place = ImageBatch(batch.images.clone(), batch.padding_mask.clone(), (), batch.image_sizes)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # fills the caches of constants, Triton and cuDNN: none of that may be recorded
            for _ in range(WARM_UPS):
                self.network(place)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            predictions = self.network(place)
        constants = [] if self.network.constants is None else self.network.constants.kept()
        return _Recording(graph, place, predictions, constants)


def _copy(predictions: Predictions) -> Predictions:
    encoder = predictions.encoder_logits, predictions.encoder_boxes
    copies = (None if tensor is None else tensor.clone() for tensor in encoder)
    return Predictions(predictions.logits.clone(), predictions.boxes.clone(), *copies)
