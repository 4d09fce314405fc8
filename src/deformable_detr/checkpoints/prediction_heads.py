"""Prediction heads: other layouts keep one numbered list, with copies where heads are shared and the proposals' head at its end."""

import re

from torch import Tensor

from deformable_detr.checkpoints.weights import Weights, same

_HEAD = re.compile(r"(class_heads|decoder\.box_heads)\.(\d+)\.(.+)")
_PROPOSAL_HEADS = {"class_heads": "query_source.class_head", "decoder.box_heads": "query_source.box_head"}
TWO_STAGE_MARK = "query_source.memory_proj.weight"
DINO_MARK = "decoder.position_mlp.layers.0.weight"
"""Of DINO, whose refining layers share one head where all copies are equal."""


def fold_heads(weights: Weights, box_refinement: bool | None = None) -> None:
    """From their list of heads to ours: the proposals' head is named, copies of the shared head go.

    Args:
        weights: changed in place.
        box_refinement: whether every layer has its own head; None: as the tensors have it (all equal: shared).

    Raises:
        ValueError: heads that must be shared differ.
    """
    num_layers, tensors = count(weights.tensors, r"decoder\.layers\.(\d+)\."), weights.tensors
    two_stage, parts = TWO_STAGE_MARK in tensors, _parts_of_heads(tensors)
    for (kind, rest), places in parts.items():
        if two_stage and num_layers in places:
            weights.rename(places.pop(num_layers), f"{_PROPOSAL_HEADS[kind]}.{rest}")
    copies = [(places[0], places[place]) for places in parts.values() if 0 in places for place in places if place]
    differing = [(first, name) for first, name in copies if not same(tensors[first], tensors[name])]
    refine = two_stage or (bool(differing) if box_refinement is None else box_refinement)
    if not refine and differing:
        first, name = differing[0]
        raise ValueError(
            f"{weights.report.source_format} checkpoint: without refinement all layers share one head, but "
            f"{weights.named(name)} differs from {weights.named(first)}"
        )
    shared = refine and bool(copies) and not differing and DINO_MARK in tensors
    if refine and not shared:
        _separate(weights, parts, num_layers)
    else:
        for _, name in copies:
            weights.report.dropped.append(weights.named(name))
            weights.pop(name)
    weights.settings |= {"box_refinement": refine, "two_stage": two_stage, "shared_heads": shared}


Parts = dict[tuple[str, str], dict[int, str]]
"""(kind of head, name of a tensor in it) → number of the head → its whole name."""


def _parts_of_heads(tensors: dict[str, Tensor]) -> Parts:
    parts: Parts = {}
    for name in tensors:
        if match := _HEAD.fullmatch(name):
            parts.setdefault((match[1], match[3]), {})[int(match[2])] = name
    return parts


def _separate(weights: Weights, parts: Parts, num_layers: int) -> None:
    """Each layer its own memory, also where a file holds one head for all."""
    tensors = weights.tensors
    several = {kind for (kind, _), places in parts.items() if any(places)}
    for (kind, rest), places in parts.items():
        if 0 not in places:
            continue
        first, proposal = tensors[places[0]], f"{_PROPOSAL_HEADS[kind]}.{rest}"
        if kind not in several and TWO_STAGE_MARK in tensors and proposal not in tensors:
            tensors[proposal] = first.clone()
        for layer in range(1, num_layers):
            name = f"{kind}.{layer}.{rest}"
            if kind not in several or (name in tensors and tensors[name].data_ptr() == first.data_ptr()):
                tensors[name] = tensors.get(name, first).clone()


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
        elif shared and (head := _HEAD.fullmatch(name)):
            result |= {f"{head[1]}.{layer}.{head[3]}": tensor for layer in range(num_layers)}
        else:
            result[name] = tensor
    return result


def count(names: dict[str, Tensor] | list[str], pattern: str) -> int:
    """How many numbers there are, from 0, in the first group of a pattern; 0 if none."""
    numbers = [int(match[1]) for name in names if (match := re.match(pattern, name))]
    return max(numbers, default=-1) + 1
