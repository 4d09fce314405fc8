"""One door for weights of every kind: `load_pretrained` looks at the file and picks the reader."""

from pathlib import Path

from deformable_detr.checkpoints.native import load_native
from deformable_detr.model import DeformableDETR


def load_pretrained(source: str | Path) -> DeformableDETR:
    """A detector from a weights file or a run folder (its best weights, else its last)."""
    path = Path(source)
    if path.is_dir():
        candidates = [path / "weights" / name for name in ("best.safetensors", "last.safetensors")]
        path = next((candidate for candidate in candidates if candidate.is_file()), candidates[0])
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    return load_native(path)
