"""Our own weights files: safetensors with the model's metadata as JSON in the header."""

import json
import os
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from deformable_detr.config import Metadata
from deformable_detr.model import DeformableDETR, build_model

FORMAT = "deformable-detr"


def save_weights(
    path: str | Path, model: DeformableDETR, *, metadata: Metadata | None = None, state_dict: dict[str, Tensor] | None = None
) -> Path:
    """Write the weights and everything that is needed to use them; the file appears whole or not at all.

    Args:
        path: the `.safetensors` file.
        model: the detector.
        metadata: to be stored instead of `model.metadata`.
        state_dict: to be stored instead of the model's own weights, such as their moving average.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in (state_dict or model.state_dict()).items()}
    header = {"format": FORMAT, "metadata": json.dumps((metadata or model.metadata).to_dict())}
    write_atomically(path, save(tensors, header))
    return path


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the target, flush to the disk, then rename: a reader never sees half a file."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def load_native(path: Path) -> DeformableDETR:
    """Read a file of ours.

    Raises:
        ValueError: the file is damaged or does not fit the settings in its own header.
    """
    with safe_open(path, framework="pt") as file:
        metadata = Metadata.from_dict(json.loads(file.metadata()["metadata"]))
        state_dict = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    with torch.device("meta"):
        model = build_model(metadata.model, pretrained_backbone=False)
    model.load_state_dict(state_dict, assign=True)
    model.metadata = metadata
    return model
