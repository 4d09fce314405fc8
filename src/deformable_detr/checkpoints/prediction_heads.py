"""Prediction heads: other layouts keep one numbered list, with copies where heads are shared and the proposals' head at its end."""

import re

from torch import Tensor

from deformable_detr.checkpoints.weights import Weights, same

_HEAD = re.compile(r"(class_heads|decoder\.box_heads)\.(\d+)\.(.+)")
_PROPOSAL_HEADS = {"class_heads": "query_source.class_head", "decoder.box_heads": "query_source.box_head"}
TWO_STAGE_MARK = "query_source.memory_proj.weight"
_SHARED_MARK = "decoder.position_mlp.layers.0.weight"
"""Of DINO, whose refining layers share one head where all copies are equal."""


def fold_heads(weights: Weights, box_refinement: bool | None = None) -> None:
    """From their list of heads to ours: the proposals' head is named, copies of the shared head go.

    Args:
        weights: changed in place.
        box_refinement: whether every layer has its own head; None: as the tensors have it (all equal: shared).

    Raises:
        ValueError: heads that must be shared differ.
    """
    num_layers = count(weights.tensors, r"decoder\.layers\.(\d+)\.")
    two_stage = TWO_STAGE_MARK in weights.tensors
    if two_stage:
        _name_proposal_heads(weights, num_layers)
    copies = [name for name in weights.tensors if _layer_of(name) > 0 and _first(name) in weights.tensors]
    differing = [name for name in copies if not same(weights.tensors[name], weights.tensors[_first(name)])]
    refine = two_stage or (bool(differing) if box_refinement is None else box_refinement)
    if not refine and differing:
        raise ValueError(
            f"{weights.report.source_format} checkpoint: without refinement all layers share one head, but "
            f"{weights.named(differing[0])} differs from {weights.named(_first(differing[0]))}"
        )
    shared = refine and bool(copies) and not differing and _SHARED_MARK in weights.tensors
    if refine and not shared:
        _separate(weights, num_layers)
    else:
        for name in copies:
            weights.report.dropped.append(weights.named(name))
            weights.pop(name)
    weights.settings |= {"box_refinement": refine, "two_stage": two_stage, "shared_heads": shared}


def _separate(weights: Weights, num_layers: int) -> None:
    """Each layer its own memory, also where a file holds one head for all."""
    two_stage = TWO_STAGE_MARK in weights.tensors
    for name in [name for name in weights.tensors if _layer_of(name) == 0]:
        kind, _, rest = _HEAD.fullmatch(name).groups()  # type: ignore[union-attr]
        proposal = f"{_PROPOSAL_HEADS[kind]}.{rest}"
        single = not any(_layer_of(key) > 0 and _kind(key) == _kind(name) for key in weights.origin)
        if two_stage and single and proposal not in weights.tensors:
            weights.tensors[proposal] = weights.tensors[name].clone()
        for layer in range(1, num_layers):
            other = _at_layer(name, layer)
            if other not in weights.tensors:
                if single:
                    weights.tensors[other] = weights.tensors[name].clone()
            elif weights.tensors[other].data_ptr() == weights.tensors[name].data_ptr():
                weights.tensors[other] = weights.tensors[other].clone()


def _name_proposal_heads(weights: Weights, num_layers: int) -> None:
    for name in list(weights.tensors):
        if _layer_of(name) == num_layers:
            kind, _, rest = _HEAD.fullmatch(name).groups()  # type: ignore[union-attr]
            weights.rename(name, f"{_PROPOSAL_HEADS[kind]}.{rest}")


def unfold_heads(tensors: dict[str, Tensor], num_layers: int, *, proposals_last: bool = True) -> dict[str, Tensor]:
    """From our heads to their list: shared heads are repeated (without copying), the proposals' head is the last.

    Args:
        tensors: under our names.
        num_layers: of the decoder.
        proposals_last: whether their list ends in the proposals' head; False: it has a name of its own there, too.
    """
    result: dict[str, Tensor] = {}
    shared = "class_heads.1.weight" not in tensors
    for name, tensor in tensors.items():
        proposal = next((kind for kind, ours in _PROPOSAL_HEADS.items() if name.startswith(f"{ours}.")), None)
        if proposal and proposals_last:
            rest = name.removeprefix(f"{_PROPOSAL_HEADS[proposal]}.")
            result[f"{proposal}.{num_layers}.{rest}"] = tensor
        elif shared and _layer_of(name) == 0:
            result |= {_at_layer(name, layer): tensor for layer in range(num_layers)}
        else:
            result[name] = tensor
    return result


def count(names: dict[str, Tensor] | list[str], pattern: str) -> int:
    """How many numbers there are, from 0, in the first group of a pattern; 0 if none."""
    numbers = [int(match[1]) for name in names if (match := re.match(pattern, name))]
    return max(numbers, default=-1) + 1


def _layer_of(name: str) -> int:
    """The number of the head that a tensor belongs to; -1 for any other tensor."""
    match = _HEAD.fullmatch(name)
    return int(match[2]) if match else -1


def _kind(name: str) -> str:
    return name.split(".")[0]


def _at_layer(name: str, layer: int) -> str:
    kind, _, rest = _HEAD.fullmatch(name).groups()  # type: ignore[union-attr]
    return f"{kind}.{layer}.{rest}"


def _first(name: str) -> str:
    return _at_layer(name, 0)
