"""Swin Transformers in the files of others: names, mmdetection's order of merged patches, and the network that the tensors show."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from deformable_detr.checkpoints.prediction_heads import count
from deformable_detr.checkpoints.weights import Weights

STAGES = 4
_BODY = "backbone.body."
_STEM = f"{_BODY}patch_embed.proj.weight"
_TABLE = "relative_position_bias_table"
_INDEX = "relative_position_index"
_OFFICIAL_BLOCK = {"norm1": "norm1", "norm2": "norm2", "attn": "attn", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
_MMDET_BLOCK = _OFFICIAL_BLOCK | {"attn": "attn.w_msa", "mlp.fc1": "ffn.layers.0.0", "mlp.fc2": "ffn.layers.1"}
_PATCH_ORDER = [0, 2, 1, 3]
"""Where mmdetection's four patches that are merged stand among the original's."""

_NAMES: dict[tuple[int, tuple[int, ...], int], str] = {
    (96, (2, 2, 6, 2), 7): "swin_tiny_patch4_window7_224",
    (96, (2, 2, 18, 2), 7): "swin_small_patch4_window7_224",
    (128, (2, 2, 18, 2), 7): "swin_base_patch4_window7_224",
    (128, (2, 2, 18, 2), 12): "swin_base_patch4_window12_384",
    (192, (2, 2, 18, 2), 7): "swin_large_patch4_window7_224",
    (192, (2, 2, 18, 2), 12): "swin_large_patch4_window12_384",
}
"""(channels of the first stage, blocks of each stage, side of a window) → timm's name."""

_DROP_PATH = 0.2
"""Of the published detectors but some of H-DETR's, whose files say so."""


def count_norms(names: Iterable[str], prefix: str) -> int:
    """How many of the last stages have a norm of their own in the file of another project."""
    found = [stage for stage in range(STAGES) if f"{prefix}norm{stage}.weight" in names]
    return STAGES - min(found) if found else 0


def rules(prefix: str, norms: int, *, mmdet: bool = False) -> list[tuple[str, str]]:
    """Pairs of our names and theirs.

    Args:
        prefix: of the backbone there, such as `backbone.0.`.
        norms: how many of the last stages have a norm on their output.
        mmdet: mmdetection's names instead of the original's.
    """
    stages, block = ("stages", _MMDET_BLOCK) if mmdet else ("layers", _OFFICIAL_BLOCK)
    pairs = [
        (f"{_BODY}patch_embed.proj.{{rest}}", f"{prefix}patch_embed.{'projection' if mmdet else 'proj'}.{{rest}}"),
        (f"{_BODY}patch_embed.norm.{{rest}}", f"{prefix}patch_embed.norm.{{rest}}"),
    ]
    for stage in range(STAGES):
        theirs = f"{prefix}{stages}.{stage}"
        pairs += [
            (f"{_BODY}layers_{stage}.blocks.{{j}}.{ours}.{{rest}}", f"{theirs}.blocks.{{j}}.{name}.{{rest}}")
            for ours, name in block.items()
        ]
        # timm merges patches at the beginning of a stage, the others at the end of the one before
        pairs.append((f"{_BODY}layers_{stage + 1}.downsample.{{rest}}", f"{theirs}.downsample.{{rest}}"))
    return pairs + [(f"backbone.norms.{k}.{{rest}}", f"{prefix}norm{STAGES - norms + k}.{{rest}}") for k in range(norms)]


def reorder_from_mmdet(weights: Weights) -> Weights:
    """Bring merged patches into the original's order, in place: column c·4 + j there is patch `_PATCH_ORDER[j]` of channel c."""
    for name, tensor in weights.tensors.items():
        if _merges_patches(name):
            by_patch = tensor.unflatten(-1, (-1, 4)).transpose(-1, -2)  # [..., 4, C]
            weights.tensors[name] = by_patch[..., _PATCH_ORDER, :].flatten(-2).contiguous()
    return weights


def reorder_to_mmdet(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`reorder_from_mmdet`."""
    return {name: _interleaved(tensor) if _merges_patches(name) else tensor for name, tensor in tensors.items()}


def _interleaved(tensor: Tensor) -> Tensor:
    return tensor.unflatten(-1, (4, -1))[..., _PATCH_ORDER, :].transpose(-1, -2).flatten(-2).contiguous()


def _merges_patches(name: str) -> bool:
    return name.startswith(f"{_BODY}layers_") and ".downsample." in name


def position_indices(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the code of others saves beside each table of relative positions: which row each pair of a window's places reads.

    Args:
        tensors: of the file to be written, by the names there.
    """
    return {name.replace(_TABLE, _INDEX): _position_index(table) for name, table in tensors.items() if name.endswith(_TABLE)}


def _position_index(table: Tensor) -> Tensor:
    """`[(2w - 1)², heads]` → int64 `[w², w²]`."""
    side = _window(table)
    places = torch.arange(side, dtype=torch.int64, device="cpu")
    y, x = (axis.flatten() for axis in torch.meshgrid(places, places, indexing="ij"))
    rows, columns = (place[:, None] - place[None] + side - 1 for place in (y, x))
    return rows * (2 * side - 1) + columns


def _window(table: Tensor) -> int:
    return (round(len(table) ** 0.5) + 1) // 2


def settings_of_swin(tensors: Mapping[str, Tensor], drop_path_rate: float | None) -> dict[str, Any] | None:
    """The backbone's settings, read off its tensors; None where it is no Swin Transformer.

    Args:
        tensors: under our names.
        drop_path_rate: what the file says of it.
    """
    if _STEM not in tensors:
        return None
    depths = tuple(count(list(tensors), rf"backbone\.body\.layers_{stage}\.blocks\.(\d+)\.") for stage in range(STAGES))
    tables = [tensors.get(f"{_BODY}layers_{stage}.blocks.0.attn.{_TABLE}") for stage in range(STAGES)]
    if any(table is None or table.ndim != 2 for table in tables):
        return None
    channels, window = len(tensors[_STEM]), _window(tables[0])  # type: ignore[arg-type]
    options: dict[str, Any] = {"drop_path_rate": _DROP_PATH if drop_path_rate is None else drop_path_rate}
    name = _NAMES.get((channels, depths, window))
    if name is None:
        heads = tuple(table.shape[1] for table in tables)  # type: ignore[union-attr]
        options |= {"embed_dim": channels, "depths": depths, "num_heads": heads, "window_size": window, "img_size": 32 * window}
    return {
        "backbone": name or next(iter(_NAMES.values())),
        "backbone_options": options,
        "frozen_backbone_stages": 0,
    }
