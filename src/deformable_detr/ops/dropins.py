"""The call signatures under which others know the operator, so that a foreign project changes one line.

- `MSDeformAttnFunction.apply` of fundamentalvision/Deformable-DETR, which is also `MultiScaleDeformableAttnFunction.apply` of mmcv;
- `patch_transformers()` for the Deformable DETR family in Hugging Face transformers.
"""

import importlib
import inspect
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from deformable_detr.ops.levels import check_table, pairs_of_table
from deformable_detr.ops.ms_deform_attn import ms_deform_attn

TRANSFORMERS_MODELS = (
    "deformable_detr",
    "grounding_dino",
    "mm_grounding_dino",
    "rt_detr",
    "omdet_turbo",
    "mask2former",
    "oneformer",
)
_CLASS, _FUNCTION = "MultiScaleDeformableAttention", "multi_scale_deformable_attention"


class MSDeformAttnFunction:
    """Replaces the original's autograd function: only `apply` is used."""

    @staticmethod
    def apply(
        value: Tensor,
        value_spatial_shapes: Tensor | Sequence[tuple[int, int]],
        value_level_start_index: Tensor | Sequence[int],
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int = 64,
    ) -> Tensor:
        """`[B, S, M, D]` → `[B, Q, M * D]`, see `ms_deform_attn`.

        Args:
            value: `[B, S, M, D]`.
            value_spatial_shapes: `[L, 2]`, (h, w); this and the next may be lists.
            value_level_start_index: `[L]`, the first token of each level; must be that of levels one after the other.
            sampling_locations: `[B, Q, M, L, P, 2]`, (x, y) in [0, 1].
            attention_weights: `[B, Q, M, L, P]`.
            im2col_step: not needed; there is no such buffer.

        Raises:
            ValueError: see `ms_deform_attn`; or first tokens that do not fit the shapes.
        """
        table = _with_starts(value_spatial_shapes, value_level_start_index, value.device)
        return ms_deform_attn(value, table, sampling_locations, attention_weights)


MultiScaleDeformableAttnFunction = MSDeformAttnFunction


def _with_starts(shapes: Tensor | Sequence, starts: Tensor | Sequence, device: torch.device) -> Tensor:
    """`[L, 3]`: one tensor, so that a GPU is waited for once."""
    shapes, starts = _integers("spatial_shapes", shapes, device), _integers("level_start_index", starts, device)
    check_table(shapes)
    if starts.shape != shapes.shape[:1] or starts.is_floating_point():
        expected = f"expected {shapes.shape[0]} integers, one per level"
        raise ValueError(f"level_start_index: {expected}, got {list(starts.shape)} {starts.dtype}")
    return torch.cat([shapes[:, :2], starts[:, None].to(shapes)], dim=1)


def _integers(name: str, given: Tensor | Sequence, device: torch.device) -> Tensor:
    """A tensor as it is; a list as a tensor."""
    if isinstance(given, Tensor):
        return given
    try:
        numbers = [number for item in given for number in (item if isinstance(item, Sequence) else [item])]
        if all(isinstance(number, Integral) and not isinstance(number, bool) for number in numbers):
            return torch.tensor(given, dtype=torch.int64, device=device)
    except (TypeError, ValueError):  # no sequence, or rows of different lengths
        pass
    raise ValueError(f"{name}: expected integers, got {given!r}")


def _transformers_forward(
    self: Any,
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_spatial_shapes_list: Sequence[tuple[int, int]],
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    if level_start_index.device.type == "cpu" and not torch.compiler.is_compiling():  # a GPU would have to be waited for
        pairs = pairs_of_table(_with_starts(value_spatial_shapes, level_start_index, value.device))
        if [(int(h), int(w)) for h, w in value_spatial_shapes_list or pairs] != pairs:
            raise ValueError(f"value_spatial_shapes_list: {value_spatial_shapes_list}, but value_spatial_shapes holds {pairs}")
    return ms_deform_attn(value, value_spatial_shapes_list, sampling_locations, attention_weights)


def _transformers_function(
    value: Tensor,
    value_spatial_shapes: Tensor | Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    return ms_deform_attn(value, value_spatial_shapes, sampling_locations, attention_weights)


def patch_transformers(*model_types: str) -> Callable[[], None]:
    """Make models of transformers, already built ones included, use this operator.

    Args:
        model_types: as in `transformers.models`, e.g. "deformable_detr"; none: all of `TRANSFORMERS_MODELS` that are installed.

    Returns:
        A function that puts the originals back.

    Raises:
        ImportError: transformers is not installed.
        ValueError: a model that does not have the operator, or has it under another signature than the known one.
    """
    try:
        importlib.import_module("transformers")
    except ImportError as error:
        raise ImportError("patch_transformers needs transformers: pip install transformers") from error
    replaced: list[tuple[Any, str, Any]] = []
    for model_type in model_types or TRANSFORMERS_MODELS:
        try:
            module = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
        except ModuleNotFoundError as error:
            if model_types:
                raise ValueError(f"model_types: this transformers has no model {model_type!r}") from error
            continue
        owner, name, ours = _place(module, model_type)
        replaced.append((owner, name, getattr(owner, name)))
        setattr(owner, name, ours)

    def restore() -> None:
        for owner, name, original in replaced:
            setattr(owner, name, original)

    return restore


def _place(module: Any, model_type: str) -> tuple[Any, str, Callable]:
    """Where the operator lives in a modeling file, and what goes there."""
    if hasattr(module, _CLASS):
        owner, name, ours = getattr(module, _CLASS), "forward", _transformers_forward
    elif hasattr(module, _FUNCTION):
        owner, name, ours = module, _FUNCTION, _transformers_function
    else:
        raise ValueError(f"model_types: {model_type!r} does not use multi-scale deformable attention")
    known, found = list(inspect.signature(ours).parameters), list(inspect.signature(getattr(owner, name)).parameters)
    if found != known:
        raise ValueError(
            f"model_types: the operator of {model_type!r} takes {found}, expected {known}; it means something else there"
        )
    return owner, name, ours
