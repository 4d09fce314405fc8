"""Whether a model is still what it was when something was derived from it."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from deformable_detr.acceleration.tracing import runs_as_written, runs_class_only

SETTINGS = (bool, int, float, str, tuple, type(None))
"""Types of a module's attributes that are compared."""

SAMPLE = 256
"""How many numbers of a long weight are compared at each call."""

WHOLE = 1024
"""Weights of up to this many numbers are compared wholly at each call."""

PART = 1_000_000
"""How many more numbers are compared at each call: 1.2 ms from memory."""

ROW = 1021
"""Numbers that are this far apart are summed; a prime, so that exchanged rows or filters do not give the same sums."""


class Watch:
    """What a model consists of, its settings, and what is in its weights.

    Modules, weights and hooks that come and go, settings (`eps`, `stride`) and writes that PyTorch counts are noticed at once. So
    are those that it does not count (through `weight.data`, through NumPy, to tensors made in inference mode) where they reach many
    numbers: a sample of each weight is compared. One million of all numbers is compared at each call, in turn: a single one that
    was written behind PyTorch's back is noticed at once in a model of a million weights, within 41 calls in one with a ResNet-50.

    Args:
        model: the module that is watched.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._contents = _Contents(model)
        self._named = [*model.modules(), *model.parameters(), *model.buffers()]  # alive, so that no id is used anew
        self._settings = [(values, _setting_names(values)) for values in map(vars, model.modules())]
        self._was = self._read()

    def unchanged(self) -> bool:
        """Whether it is what it was when this object was made."""
        return self._was == self._read() and self._contents.unchanged()

    def _read(self) -> list[object]:
        return [*_signature(self.model), *(values.get(name) for values, names in self._settings for name in names)]


def _signature(model: nn.Module) -> Iterator[object]:
    """Changes with every in-place write to a weight that PyTorch counts, with every weight and module that is put in the place of
    another, and with every hook and every other change by which a call of a module becomes more than its class's forward pass."""
    yield _has_any_global_hook()
    kinds = set()
    for module in model.modules():
        kinds.add(type(module))
        yield id(module), type(module), runs_class_only(module)
        for store in (module._parameters, module._buffers):
            for tensor in store.values():
                if tensor is not None:
                    yield id(tensor), tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version
    yield {kind: runs_as_written(kind) for kind in kinds}


def _setting_names(values: dict[str, object]) -> list[str]:
    """Of a module's attributes those that hold a plain value."""
    return [name for name, value in values.items() if name != "training" and isinstance(value, SETTINGS)]


class _Contents:
    """What is in a model's parameters and buffers on the device of the first one, as bits: NaN equals NaN."""

    def __init__(self, model: nn.Module) -> None:
        everything = (*model.parameters(), *model.buffers())
        tensors = [tensor.detach() for tensor in everything if type(tensor) in (Tensor, nn.Parameter) and _is_plain(tensor)]
        tensors = [tensor for tensor in tensors if tensor.device == tensors[0].device]
        dense, self.gapped = [], []
        for tensor in map(_as_integers, tensors):
            if torch.ops.aten.is_non_overlapping_and_dense(tensor):
                dense.append(tensor.as_strided([tensor.numel()], [1]))  # as one row, in the order of the memory
            else:
                self.gapped.append((tensor, tensor.clone()))
        self.sample = [_thinned(flat) for flat in dense]
        self.parts = list(_parts(dense))
        self.sampled, self.sums = self._read_sample(), [_sums(part) for part in self.parts]
        self.turn = 0

    def unchanged(self) -> bool:
        """Whether the sample is what it was, and the part whose turn it is."""
        if not torch.equal(self._read_sample(), self.sampled) or not all(torch.equal(*pair) for pair in self.gapped):
            return False
        turn = self.turn % max(1, len(self.parts))
        self.turn = turn + 1
        return not self.parts or torch.equal(_sums(self.parts[turn]), self.sums[turn])

    def _read_sample(self) -> Tensor:
        return torch.cat(self.sample) if self.sample else torch.zeros(0, dtype=torch.int32, device="cpu")


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_meta) and tensor.numel() > 0


def _as_integers(tensor: Tensor) -> Tensor:
    """The same memory as integers as wide as its numbers."""
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])


def _thinned(words: Tensor) -> Tensor:
    """All of a short row, about 256 of a long one, spread over the rows and columns of the tensor that it was."""
    return words if words.numel() <= WHOLE else words[:: words.numel() // SAMPLE | 1]  # odd: all columns


def _parts(rows: list[Tensor]) -> Iterator[list[Tensor]]:
    """The long rows, in parts of at most a million numbers."""
    part, room = [], PART
    for row in rows:
        rest = row if row.numel() > WHOLE else row[:0]
        while rest.numel():
            part.append(rest[:room])
            rest, room = rest[room:], room - part[-1].numel()
            if room == 0:
                yield part
                part, room = [], PART
    if part:
        yield part


def _sums(part: list[Tensor]) -> Tensor:
    """Sums of all numbers of the rows, of as many columns as there are; they change with every single number."""
    sums = []
    for row in part:
        whole = row.numel() // ROW * ROW
        sums += [row[:whole].view(-1, ROW).sum(0, dtype=row.dtype), row[whole:]]
    return torch.cat(sums)
