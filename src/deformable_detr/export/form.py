"""What an exported file takes and gives: written into the file at export, read from it when it is run."""

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from torch import Tensor

from deformable_detr.checkpoints.families import stages_of
from deformable_detr.config import Metadata, ModelConfig
from deformable_detr.schema import check_number, convert, entries
from deformable_detr.structures import ImageBatch

logger = logging.getLogger(__name__)

METADATA_KEY = "deformable_detr"
"""Name of the JSON in ONNX's metadata_props, OpenVINO's rt_info and the extra files of a .pt2."""


@dataclass(frozen=True)
class ExportForm:
    """The interface of one exported file."""

    metadata: Metadata
    """Classes, category ids, mean and deviation, image sizes, variant."""

    padding_mask: bool = True
    """A second input says where a batch of different images is padded. False: the images of a batch all fill the canvas."""

    size: tuple[int, int] | None = None
    """(height, width) of the canvas, if it is fixed. None: any from `smallest_side` on."""

    batch_size: int | None = None
    """Images per run, if it is fixed. None: any number."""

    grid_sample: bool = True
    """False: gather and arithmetic replace GridSample."""

    opset: int = 20
    """Version of the ONNX operators."""

    fp16: Literal["weights", "compute"] | None = None
    """Weights of convolutions and linear maps in float16; `compute`: these operations, too."""

    preprocess: bool = False
    """The input is `images` `[B, H, W, 3]` uint8 RGB as decoded; resizing and normalisation are inside."""

    top_k: int | None = None
    """The outputs are the best `scores`, `labels` and `boxes`. None: `logits` and `boxes` of all queries."""

    int8: bool = False
    """Quantised; see `details` for what it cost."""

    smallest_side: int = 1
    """Height and width of the model's input must be at least this (pixels)."""

    weights_crc: int | None = None
    """CRC-32 of the network that this record was written for, as those of another export would fit, too: of the .bin beside an
    .xml, of the graph in an .onnx, of the weights in a .pt2. None: not known."""

    details: dict[str, Any] = field(default_factory=dict)
    """How an int8 file was made and what that cost. For people."""

    def __post_init__(self) -> None:
        for name, number in (("batch_size", self.batch_size), ("top_k", self.top_k), ("size", min(self.size or (1,)))):
            if number is not None:
                check_number(name, number, 1)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        if self.preprocess:
            return ("images",)
        return ("images", "padding_mask") if self.padding_mask else ("images",)

    def given(self, batch: ImageBatch) -> list[Tensor]:
        """The tensors of a batch that are its inputs, in order."""
        tensors = {"images": batch.images, "padding_mask": batch.padding_mask}
        return [tensors[name] for name in self.inputs]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return ("logits", "boxes") if self.top_k is None else ("scores", "labels", "boxes")

    def check_network(self, crc: int, path: Path) -> None:
        """Warn of a file whose network is not the one that this record was written for.

        Args:
            crc: of the network that is there, as for `weights_crc`.
            path: of the file.
        """
        if self.weights_crc not in (None, crc):
            text = "%s: its network is not the one that its record (classes, image sizes) was written with: either another tool "
            logger.warning(text + "has changed it, or they are of two exports; compare it with the detector before use", path)

    def to_json(self) -> str:
        """The inverse of :meth:`from_json`."""
        return json.dumps(asdict(self) | {"metadata": self.metadata.to_dict()}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | None, path: Path) -> Self:
        """Read the record that an exported file holds; keys of a newer version are ignored.

        Raises:
            ValueError: there is none, or it is damaged; the message names the file.
        """
        if not text:
            raise ValueError(f"{path} has no record of a detector in it: it was not written by deformable-detr export")
        try:
            record = json.loads(text)
            hints = {name: entry.hint for name, entry in entries(cls).items() if name in record and name != "metadata"}
            known = {name: convert(record[name], hint, name) for name, hint in hints.items()}
            return cls(Metadata.from_dict(record["metadata"]), **known)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: its record of the detector cannot be read ({type(error).__name__}: {error})") from error


def smallest_side(config: ModelConfig) -> int:
    """The smallest height and width that a program for any size holds for.

    Every level must be more than one pixel wide, or the tracer takes it for a constant; and a two-stage model needs as many
    positions as queries.
    """
    strides = level_strides(config)
    side = strides[-1] + 1
    while config.two_stage and sum((-(-side // stride)) ** 2 for stride in strides) < config.num_queries:
        side += 1
    return side


def level_strides(config: ModelConfig) -> tuple[int, ...]:
    """Pixels of the image per pixel of each of the L levels."""
    last = 16 if config.dilation else 32
    strides = [4, 8, 16, last][-stages_of(config) :]
    while len(strides) < config.num_feature_levels:
        strides.append(2 * strides[-1])
    return tuple(strides)
