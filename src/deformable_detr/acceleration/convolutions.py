"""The backbone for inference: batch norms folded into convolutions, activations in place or inside the convolution.

Works on a recorded graph, so that it takes any timm model whose forward pass does not branch on values. The graph shares all
modules that stay as they are with the original; only convolutions with folded weights are new.
"""

import copy
import logging
import operator
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from timm.layers import Conv2dSame
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from deformable_detr.acceleration.fused_convolutions import (
    CONVOLUTIONS,
    FusedConvolution,
    WinogradConvolution,
    fits_winograd,
    fused_convolutions_work,
)
from deformable_detr.acceleration.tracing import BATCH_NORMS, trace, untouched
from deformable_detr.ops.winograd import winograd_available

logger = logging.getLogger(__name__)

ADDITIONS = (operator.add, operator.iadd, torch.add)
FOLDABLE = (nn.Conv2d, Conv2dSame)  # linear in their weight as it is
PROBE_SIZE = 64
TOLERANCE, TOLERANCE_ON_GPU = 1e-3, 1e-2
"""Largest difference of an optimised backbone's maps, as a share of their largest value. On a GPU convolutions of float32 take ten
bits of each factor (TF32), and a ResNet with folded norms differs by 2e-3 from itself."""


def optimized_backbone(
    body: nn.Module,
    *,
    fold_batch_norm: bool,
    inplace_activations: bool,
    fuse_convolutions: bool,
    channels_last: bool,
    winograd: bool = False,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """`body` in its fastest form for inference; `body` itself where its calls cannot be recorded.

    The new form is run against the old one on a small random image before it is returned.

    Args:
        body: a timm model with `features_only`, in evaluation mode.
        fold_batch_norm: multiply the scale of a batch norm into the convolution before it.
        inplace_activations: activations overwrite their input where nothing else reads it.
        fuse_convolutions: oneDNN's (cuDNN's) convolutions that add and apply ReLU before they store; float32, or `dtype`.
        channels_last: run in the memory format `[B, H, W, C]`.
        winograd: with `fuse_convolutions` and `channels_last`: 3×3 convolutions by Winograd's algorithm, where that is faster.
        dtype: with `fuse_convolutions` and `channels_last`: compute in this type instead of float32; `body` itself comes back where
            a module with weights is no convolution, or the result is further from float32 than that of autocast.
    """
    graph = trace(body)
    if graph is None:
        return body
    graph_module = fx.GraphModule(body, graph)
    _remove_identities(graph_module)
    if fold_batch_norm:
        fold_batch_norms(graph_module)
    if inplace_activations:
        make_activations_inplace(graph_module)
    if fuse_convolutions and fused_convolutions_work(dtype or torch.float32, next(body.parameters()).device):
        exact = dtype is None and winograd and channels_last and winograd_available()
        fuse_convolutions_of(graph_module, winograd=exact, dtype=dtype or torch.float32)
    if dtype is not None and not _all_fused(graph_module):
        return body
    graph_module.delete_all_unused_submodules()  # folded weights of which there is a packed form now
    graph_module.graph.lint()
    graph_module.recompile()
    graph_module.eval()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    run = _Prepared(graph_module, dtype or next(body.parameters()).dtype, memory_format)
    return run if _agrees(run, body, dtype) else body


class _Prepared(nn.Module):
    """Gives the body its images in one dtype and memory format."""

    def __init__(self, body: nn.Module, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.body, self.dtype, self.memory_format = body, dtype, memory_format

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.body(images.to(self.dtype).contiguous(memory_format=self.memory_format))


def fold_batch_norms(graph_module: fx.GraphModule) -> None:
    """Replace each convolution that feeds nothing but a batch norm by one with the norm's scale and shift."""
    for node in graph_module.graph.nodes:
        norm = _module(graph_module, node)
        if not isinstance(norm, BATCH_NORMS) or norm.running_mean is None:
            continue
        source = node.args[0]
        convolution: Any = _module(graph_module, source)
        if type(convolution) not in FOLDABLE or len(source.users) != 1:
            continue
        _set_module(graph_module, source, _folded(convolution, norm))
        _set_module(graph_module, node, getattr(norm, "act", None) or nn.Identity())
    _remove_identities(graph_module)


def _folded(convolution: nn.Conv2d, norm: Any) -> nn.Conv2d:
    new = copy.copy(convolution)  # keeps subclasses, such as TensorFlow's padding
    new._parameters = dict(convolution._parameters)
    weight, bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    keep = torch.channels_last if weight.shape[2] * weight.shape[3] > 1 else torch.contiguous_format
    new.weight = nn.Parameter(weight.detach().contiguous(memory_format=keep), requires_grad=False)
    new.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return new


def make_activations_inplace(graph_module: fx.GraphModule) -> None:
    """Let activations overwrite the output of a convolution, norm or sum that nothing else reads."""
    for node in graph_module.graph.nodes:
        activation = _module(graph_module, node)
        if activation is None or getattr(activation, "inplace", True) or len(node.args) != 1:
            continue
        source = node.args[0]
        own = isinstance(_module(graph_module, source), (nn.Conv2d, *BATCH_NORMS)) or _is_addition(source)
        if own and len(source.users) == 1:
            new: Any = copy.copy(activation)
            new.inplace = True
            _set_module(graph_module, node, new)


def fuse_convolutions_of(graph_module: fx.GraphModule, *, winograd: bool, dtype: torch.dtype) -> None:
    """Replace convolution + ReLU and convolution + sum + ReLU by a :class:`FusedConvolution`.

    Args:
        graph_module: changed in place.
        winograd: take :class:`WinogradConvolution` where it fits.
        dtype: of the fused convolutions; in another than float32 convolutions without ReLU are replaced, too.
    """

    def fused(convolution: nn.Conv2d, *, relu: bool = True, overwrite: bool = False) -> FusedConvolution:
        form = WinogradConvolution if winograd and fits_winograd(convolution) else CONVOLUTIONS[convolution.weight.device.type]
        return form(convolution, relu=relu, overwrite=overwrite, dtype=dtype)

    place = {node: index for index, node in enumerate(graph_module.graph.nodes)}
    for node in list(graph_module.graph.nodes):
        if not isinstance(_module(graph_module, node), nn.ReLU):
            continue
        source = node.args[0]
        if convolution := _fusible(graph_module, source):
            new, node.args = fused(convolution), source.args
        elif _is_addition(source) and len(source.users) == 1:
            first, second = source.args[:2]
            if not _fusible(graph_module, first):
                first, second = second, first
            convolution = _fusible(graph_module, first)
            if convolution is None or not isinstance(second, fx.Node) or first is second:
                continue
            new = fused(convolution, overwrite=_may_overwrite(graph_module, second, source, place))
            node.args = (first.args[0], second)
            graph_module.graph.erase_node(source)
            source = first
        else:
            continue
        _set_module(graph_module, node, new)
        graph_module.graph.erase_node(source)
    if dtype != torch.float32:
        for node in graph_module.graph.nodes:
            if _is_plain(convolution := _module(graph_module, node)):
                _set_module(graph_module, node, fused(convolution, relu=False))


def _all_fused(graph_module: fx.GraphModule) -> bool:
    """Whether every weight that is read belongs to a fused convolution."""
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            return False
        if node.op == "call_module":
            module = graph_module.get_submodule(str(node.target))
            if not isinstance(module, FusedConvolution) and (list(module.parameters()) or list(module.buffers())):
                return False
    return True


def _may_overwrite(graph_module: fx.GraphModule, other: fx.Node, addition: fx.Node, place: dict[fx.Node, int]) -> bool:
    """Whether `other` is a tensor of its own that is read for the last time by `addition`."""
    own = isinstance(_module(graph_module, other), (nn.Conv2d, FusedConvolution))
    return own and all(user is addition or (user in place and place[user] < place[addition]) for user in other.users)


def _fusible(graph_module: fx.GraphModule, node: Any) -> nn.Conv2d | None:
    """The convolution that is called here, if it can be fused with what reads its output."""
    module = _module(graph_module, node)
    return module if _is_plain(module) and len(node.users) == 1 else None


def _is_plain(module: Any) -> TypeGuard[nn.Conv2d]:
    """Whether it is a convolution that oneDNN and cuDNN know."""
    plain = type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return plain and module.weight.dtype == torch.float32 and module.weight.device.type in CONVOLUTIONS


def _remove_identities(graph_module: fx.GraphModule) -> None:
    for node in list(graph_module.graph.nodes):
        if isinstance(_module(graph_module, node), nn.Identity):
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)


def _is_addition(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in ADDITIONS


def _module(graph_module: fx.GraphModule, node: Any) -> nn.Module | None:
    """The module that is called, if nothing has been hooked into it."""
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    module = graph_module.get_submodule(str(node.target))
    return module if untouched(module) else None


def _set_module(graph_module: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    """Give `node` a module of its own, so that other calls of the old one stay as they are."""
    name = f"optimized_{str(node.target).removeprefix('optimized_').replace('.', '_')}_{node.name}"
    graph_module.add_submodule(name, module)
    node.target = name


def _agrees(run: nn.Module, body: nn.Module, dtype: torch.dtype | None) -> bool:
    """Whether both give the same maps: in the precision of the weights, or as well as autocast does in a lower one."""
    weight = next(body.parameters())
    generator = torch.Generator("cpu").manual_seed(0)
    image = torch.randn(1, 3, PROBE_SIZE, PROBE_SIZE, generator=generator, dtype=torch.float32, device="cpu").to(weight)
    with torch.inference_mode(), torch.autocast(weight.device.type, enabled=False):
        exact: Sequence[Tensor] = body(image)
        differences = _differences(run(image.clone()), exact)
        least = TOLERANCE_ON_GPU if weight.device.type == "cuda" else TOLERANCE
        tolerances = [max(least, 16 * torch.finfo(weight.dtype).eps)] * len(exact)
        if dtype is not None:
            with torch.autocast(weight.device.type, dtype):
                tolerances = [2 * difference + torch.finfo(dtype).eps for difference in _differences(body(image), exact)]
    if all(difference < tolerance for difference, tolerance in zip(differences, tolerances, strict=True)):
        return True
    logger.warning("the backbone is not optimised: its optimised form differs by %.1e", max(differences))
    return False


def _differences(found: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    """Of each map, the largest difference as a share of the largest value."""
    pairs = zip(found, exact, strict=True)
    return [float((new - old).abs().amax() / old.abs().amax().clamp(min=1e-12)) for new, old in pairs]
