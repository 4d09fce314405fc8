"""`torch.export`: the model as a .pt2 file, for PyTorch without this package (and for AOTInductor and other compilers)."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from deformable_detr.checkpoints.weights import tensors_crc
from deformable_detr.export.form import METADATA_KEY, ExportForm
from deformable_detr.ops import use_backend
from deformable_detr.process import without_warnings
from deformable_detr.structures import ImageBatch

_ALONE = threading.RLock()

LARGEST_SIDE, LARGEST_BATCH = 16384, 4096


def trace(network: nn.Module, form: ExportForm, batch: ImageBatch) -> ExportedProgram:
    """Record the model's operations, with symbols for what is not fixed.

    Args:
        network: takes the inputs that `form` names.
        form: what is fixed and what not, and with which form of the operator.
        batch: an example; its sizes leave no trace where they are not fixed.
    """
    with quiet(), torch.no_grad(), use_backend("reference" if form.grid_sample else "gather"):
        program = torch.export.export(
            network,
            tuple(form.given(batch)),
            dynamic_shapes=_dynamic_shapes(form),
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    _drop_inequalities(program)
    return program


def save_program(path: Path, program: ExportedProgram, form: ExportForm) -> None:
    """Write a .pt2 with the record of the detector in it."""
    record = replace(form, weights_crc=tensors_crc(program.state_dict)).to_json()
    with quiet(), path.open("wb") as file:
        torch.export.save(program, file, extra_files={METADATA_KEY: record})  # type: ignore[arg-type]


def _dynamic_shapes(form: ExportForm) -> tuple[dict[int, Dim], ...] | None:
    batch = {} if form.batch_size is not None else {0: Dim("batch", min=1, max=LARGEST_BATCH)}
    sides = [] if form.size is not None else [Dim(name, min=form.smallest_side, max=LARGEST_SIDE) for name in ("height", "width")]
    images, mask = (batch | dict(enumerate(sides, start)) for start in (2, 1))
    return (images, mask)[: len(form.inputs)] if images else None


def _drop_inequalities(program: ExportedProgram) -> None:
    """Remove the conditions that some expression of the sizes must *not* have a value, such as "the batch is not 2".

    The tracer notes them where it chose between two ways to the same result (a view or a copy, one large product or many) by the
    sizes of the example. Either way is right for all sizes, which the check of parity at several sizes confirms.
    """
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default and "expression Ne(" in str(node.args[1]):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


@contextmanager
def quiet() -> Iterator[None]:
    """Without the tracers' own log lines and warnings, which name nothing that a user could change.

    One thread at a time: what is switched off here, and what the tracers change, is the whole process's.
    """
    with _ALONE, without_warnings(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
