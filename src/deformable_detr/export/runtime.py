"""Run an exported file in place of the model: the same preparation and boxes, without building a PyTorch model."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deformable_detr.boxes import xyxy_to_cxcywh
from deformable_detr.export.sessions import SESSIONS, SUFFIXES
from deformable_detr.inference.predictor import Predictor
from deformable_detr.structures import ImageBatch, Predictions

logger = logging.getLogger(__name__)


def load_exported(path: str | Path, runtime: str | None = None) -> Predictor:
    """A detector from an exported file: `.predict` and `.iterate` as those of a trained one.

    Args:
        path: a .pt2, .onnx or .xml (OpenVINO).
        runtime: `pt2`, `onnx` (onnxruntime) or `openvino`; None takes the one of the suffix.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the runtime is not installed.
        ValueError: an unknown runtime, a file that it cannot run, or one that prepares images by itself.
    """
    network = ExportedNetwork(path, runtime)
    if network.form.preprocess:
        raise ValueError(
            f"{network.path.name} prepares images by itself: hand decoded images to {network.runtime} directly "
            "(docs/deploying.md shows how), or export once more without --preprocess"
        )
    return Predictor(network, device="cpu")


class ExportedNetwork(nn.Module):
    """An exported file as a callable like the model: an `ImageBatch` in, `Predictions` (of one layer) out.

    Images of different sizes in a batch run one size after the other, so that padding has no influence: as in the model. A file
    that prepares images by itself takes decoded ones, `[B, 3, H, W]` from 0 to 255, in place of normalised ones.

    Args and errors are those of :func:`load_exported`, which cannot take a file that prepares images by itself.
    """

    fixed_precision = True
    """Its arithmetic is in the file; autocast changes nothing."""

    def __init__(self, path: str | Path, runtime: str | None = None) -> None:
        super().__init__()
        self.path = Path(path)
        runtime = self.runtime = runtime or SUFFIXES.get(self.path.suffix.lower(), "")
        if runtime not in SESSIONS:
            known = f"known are {', '.join(SESSIONS)}"
            raise ValueError(f"unknown runtime {runtime!r}; {known}" if runtime else f"no runtime for {self.path.name}; {known}")
        if not self.path.is_file():
            raise FileNotFoundError(f"no exported model at {self.path}")
        self._said: set[str] = set()  # a set: a plain attribute that changes is to `Watch` a setting that changes
        self.form, self._run = SESSIONS[runtime](self.path)
        config = self.form.metadata.model
        detections = min(config.max_detections, self.form.top_k or config.max_detections)  # there are no others in it
        self.metadata = replace(self.form.metadata, model=config.replace(max_detections=detections))

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) of the images that the file was written for, where it was for one size."""
        return self.form.size

    def forward(self, images: ImageBatch) -> Predictions:
        """Find the objects of a batch.

        Raises:
            ValueError: an image that the file's fixed or smallest size does not allow.
        """
        sizes = images.image_sizes or _sizes_of(images.padding_mask)
        logits: list[Tensor] = [torch.empty(0, dtype=torch.float32, device="cpu")] * len(sizes)
        boxes = list(logits)
        for size in dict.fromkeys(sizes):
            members = [index for index, other in enumerate(sizes) if other == size]
            step = self.form.batch_size or len(members)
            for part in (members[start : start + step] for start in range(0, len(members), step)):
                outputs = self._detect(images.images[part, :, : size[0], : size[1]].float().cpu())
                for row, index in enumerate(part):
                    logits[index], boxes[index] = outputs[0][row], outputs[1][row]
        return Predictions(torch.stack(logits)[None], torch.stack(boxes)[None])

    def _detect(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images of one size, `[B, 3, h, w]` → logits and boxes."""
        outputs = self._run(self.arrays(images))
        found, classes = [output.shape for output in outputs], self.metadata.model.num_classes
        rows = found[0][:2]
        if found != ([(*rows, classes), (*rows, 4)] if self.form.top_k is None else [rows, rows, (*rows, 4)]):
            wanted = f"{', '.join(self.form.outputs)} of {classes} classes"
            raise ValueError(f"{self.path.name} gives {found} where its record says {wanted}: it was changed after its export")
        return self._as_predictions(*(torch.from_numpy(output[: len(images)]) for output in outputs))

    def arrays(self, images: Tensor) -> list[np.ndarray]:
        """The file's inputs for images of one size, `[B, 3, h, w]`.

        Raises:
            ValueError: a size that the file does not allow.
        """
        missing = (self.form.batch_size or len(images)) - len(images)
        images = torch.cat((images, images[:1].expand(missing, -1, -1, -1)))  # a fixed batch: copies of its first image
        if self.form.preprocess:
            return [np.ascontiguousarray(images.permute(0, 2, 3, 1).to(torch.uint8).numpy())]
        return [np.ascontiguousarray(tensor.numpy()) for tensor in self.form.given(self._on_canvas(images))]

    def _on_canvas(self, images: Tensor) -> ImageBatch:
        mask = torch.zeros_like(images[:, 0], dtype=torch.bool)
        height, width = images.shape[2:]
        smallest = self.form.smallest_side
        canvas = self.form.size or (max(height, smallest), max(width, smallest))
        right, bottom = canvas[1] - width, canvas[0] - height
        if right == 0 and bottom == 0:
            return ImageBatch(images, mask)
        if right < 0 or bottom < 0 or not self.form.padding_mask:
            allowed = "x".join(map(str, self.form.size)) if self.form.size else f"at least {smallest} pixels on each side"
            raise ValueError(
                f"an image of {height}x{width} pixels after resizing does not go into {self.path.name}, which takes {allowed}"
            )
        if "padding" not in self._said:
            self._said.add("padding")
            logger.warning(
                "%s: %dx%d pixels after resizing are padded to %dx%d, which moves scores a little against the detector's own "
                "(said once; docs/deploying.md)",
                *(self.path.name, height, width, *canvas),
            )
        return ImageBatch(F.pad(images, (0, right, 0, bottom)), F.pad(mask, (0, right, 0, bottom), value=True))

    def _as_predictions(self, *outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Where the best are already chosen, each becomes a query that is sure of its one class."""
        if self.form.top_k is None:
            return outputs[0], outputs[1]
        scores, labels, boxes = outputs
        logits = scores.new_full((*scores.shape, self.metadata.model.num_classes), float("-inf"))
        return logits.scatter(2, labels.long()[..., None], scores.logit()[..., None]), xyxy_to_cxcywh(boxes)

    def extra_repr(self) -> str:
        """The file and its interface."""
        return f"{self.path}, inputs {', '.join(self.form.inputs)}, outputs {', '.join(self.form.outputs)}"

    def __deepcopy__(self, memo: dict[int, Any]) -> "ExportedNetwork":
        return self  # a session holds no state of its own

    def __reduce__(self) -> tuple[Any, ...]:
        """For other processes, which open the file themselves."""
        return type(self), (self.path, self.runtime)


def _sizes_of(padding_mask: Tensor) -> tuple[tuple[int, int], ...]:
    inside = ~padding_mask
    return tuple((int(one[:, 0].sum()), int(one[0].sum())) for one in inside)
