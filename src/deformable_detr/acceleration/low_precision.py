"""A detector in bfloat16 on a CPU that multiplies it or a GPU: weights converted once, activations in bfloat16 up to the memory.

float32 stays where bfloat16 would show: the queries, their norms and self-attention, boxes and class logits. Sampling locations,
softmax and the sums of the operator, of products and of norms are float32, too; what is read and written is bfloat16.
"""

import copy
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from deformable_detr.acceleration.fused_convolutions import (
    CONVOLUTIONS,
    FusedConvolution,
    fused_convolutions_work,
    random_numbers,
)
from deformable_detr.acceleration.tracing import consists_of, is_plain_linear, untouched
from deformable_detr.model.backbone import Backbone
from deformable_detr.model.decoder import DecoderLayer, DeformableDecoder, SelfAttention
from deformable_detr.model.deformable_attention import MultiScaleDeformableAttention
from deformable_detr.model.deformable_detr import DeformableDETR
from deformable_detr.model.encoder import DeformableEncoder, EncoderLayer, FeedForward
from deformable_detr.model.heads import MLP, BoxHead
from deformable_detr.model.neck import ChannelMapper
from deformable_detr.model.position_mlp import PositionMLP
from deformable_detr.model.queries import AnchoredProposals, EncoderProposals, LearnedQueries, MixedProposals
from deformable_detr.model.rebuild import Form, rebuilt
from deformable_detr.model.relation import PositionRelation
from deformable_detr.precision import cpu_multiplies_bfloat16
from deformable_detr.structures import map_tensors

logger = logging.getLogger(__name__)

LOW = torch.bfloat16


class PackedLinear(nn.Module):
    """A linear map whose weight lies in oneDNN's own layout, in bfloat16; the bias is added in float32.

    Args:
        linear: with constant weights, on the CPU.
        dtype: of the output.
        relu: apply ReLU at the end.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype = LOW, *, relu: bool = False) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(LOW).contiguous())
        self.bias = None if linear.bias is None else linear.bias.detach().float()
        self.dtype, self.activation = dtype, "relu" if relu else "none"

    def forward(self, x: Tensor) -> Tensor:
        """`[..., C]` of any float type → `[..., C']`."""
        return torch.ops.mkldnn._linear_pointwise(x.to(LOW), self.packed, self.bias, self.activation, [], "").to(self.dtype)

    def plus(self, x: Tensor, added: Tensor) -> Tensor:
        """The output and `added`, `[..., C']`, summed before they are rounded; without ReLU."""
        bias = None if self.bias is None else self.bias.to(LOW)
        return torch.ops.mkldnn._linear_pointwise.binary(x.to(LOW), added.to(LOW), self.packed, bias, "add").to(self.dtype)


def plus(part: Any, x: Tensor, added: Tensor) -> Tensor:
    """A part's output and `added`, summed by the part where it can do that before it rounds."""
    return part.plus(x, added) if hasattr(part, "plus") else part(x) + added


class LowLinear(nn.Module):
    """A linear map by a weight in bfloat16, on any device.

    Args:
        linear: with constant weights.
        dtype: of the output.
        relu: apply ReLU at the end.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype = LOW, *, relu: bool = False) -> None:
        super().__init__()
        self.weight = linear.weight.detach().to(LOW)
        self.bias = None if linear.bias is None else linear.bias.detach().to(LOW)
        self.dtype, self.relu = dtype, relu

    def forward(self, x: Tensor) -> Tensor:
        """`[..., C]` of any float type → `[..., C']`."""
        found = F.linear(x.to(LOW), self.weight, self.bias)
        return (found.relu_() if self.relu else found).to(self.dtype)


class LowFeedForward(nn.Module):
    """A :class:`FeedForward` without dropout, of linear maps whose first one has the ReLU; `dtype` is that of the output."""

    def __init__(self, ffn: FeedForward, linear: type[PackedLinear | LowLinear], dtype: torch.dtype = LOW) -> None:
        super().__init__()
        self.linear1, self.linear2 = linear(ffn.linear1, relu=True), linear(ffn.linear2, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., C]` → `[..., C]`."""
        return self.linear2(self.linear1(x))

    def plus(self, x: Tensor, added: Tensor) -> Tensor:
        """The output and `added`, `[..., C]`."""
        return plus(self.linear2, self.linear1(x), added)


def low_norm(norm: nn.Module) -> nn.Module:
    """A norm with weights in bfloat16, as a GPU needs them for input in bfloat16; its sums stay float32."""
    return copy.deepcopy(norm).to(LOW)


@dataclass(frozen=True)
class Kit:
    """What is put in the place of plain modules on one kind of device."""

    linear: type[PackedLinear | LowLinear]
    convolution: type[FusedConvolution]
    norm: Callable[[nn.Module], nn.Module | None]


KITS = {
    "cpu": Kit(PackedLinear, CONVOLUTIONS["cpu"], lambda norm: None),  # whose norms take any two types
    "cuda": Kit(LowLinear, CONVOLUTIONS["cuda"], low_norm),
}


class Autocast(nn.Module):
    """A part that runs under autocast because nothing is known of it; the parts around it are given float32."""

    def __init__(self, part: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.part, self.device_type = part, device.type

    def forward(self, *inputs: Any) -> Any:
        """What the part gives."""
        with torch.autocast(self.device_type, LOW):
            return map_tensors(lambda found: found.float() if found.dtype == LOW else found, self.part(*inputs))


class WithoutAutocast(nn.Module):
    """A network that says itself what is computed in which type; `build` makes it."""

    def __init__(self, build: Callable[[], nn.Module], device: torch.device) -> None:
        super().__init__()
        self.device_type = device.type
        with torch.autocast(device.type, enabled=False):
            self.network = build()

    def forward(self, *inputs: Any) -> Any:
        """What the network gives."""
        with torch.autocast(self.device_type, enabled=False):
            return self.network(*inputs)


ENCODER_PARTS = (
    *(nn.ModuleList, EncoderLayer, MultiScaleDeformableAttention, FeedForward, LowFeedForward),
    *(nn.Linear, PackedLinear, LowLinear, nn.LayerNorm, nn.ReLU, nn.Dropout),
)
DECODER_PARTS = (
    *ENCODER_PARTS,
    DecoderLayer,
    SelfAttention,
    NonDynamicallyQuantizableLinear,
    nn.Identity,
    MLP,
    BoxHead,
    PositionMLP,
    PositionRelation,
)
PROPOSAL_SOURCES = (EncoderProposals, MixedProposals, AnchoredProposals)
UNCHANGED = ("canvas", "flatten", "class_heads", "suppressor", "denoising")
"""What reads no memory, or only trains."""


def lowered(model: DeformableDETR) -> DeformableDETR:
    """The same model of parts in low precision, but for the backbone, which is lowered when its batch norms have been folded.

    A part of a type of its own, or with something hooked into it, runs under autocast.

    Args:
        model: float32, on a device that :data:`KITS` has something for, in evaluation mode; its weights must not change afterwards.
    """
    device = next(model.parameters()).device
    parts: dict[str, Any] = dict(model.named_children())
    for name in parts.keys() - set(UNCHANGED):
        form = _form_of(parts[name], KITS[device.type])
        parts[name] = Autocast(parts[name], device) if form is None else rebuilt(parts[name], form)
    return DeformableDETR(**parts, metadata=model.metadata).eval()


def _form_of(part: nn.Module, kit: Kit) -> Form | None:
    """How this part is lowered; None where it is not known well enough."""
    if consists_of(part, Backbone, parts_below=False) or consists_of(part, LearnedQueries, nn.Embedding, nn.Linear):
        return lambda name, module: None
    neck = consists_of(part, ChannelMapper, nn.Identity, nn.ModuleList, nn.Sequential, nn.Conv2d, nn.GroupNorm)
    if neck or consists_of(part, DeformableEncoder, *ENCODER_PARTS):
        return functools.partial(_all, kit)
    if consists_of(part, DeformableDecoder, *DECODER_PARTS):
        return functools.partial(_cross_attention, kit)
    if type(part) in PROPOSAL_SOURCES and untouched(part) and is_plain_linear(part.get_submodule("memory_proj")):
        return functools.partial(_memory_projection, kit)
    return None


def _all(kit: Kit, name: str, module: nn.Module) -> nn.Module | None:
    del name
    if type(module) is nn.Conv2d:
        return kit.convolution(module, relu=False, dtype=LOW)
    if type(module) in (nn.GroupNorm, nn.LayerNorm):
        return kit.norm(module)
    if type(module) is FeedForward:
        return LowFeedForward(module, kit.linear)
    return kit.linear(module) if is_plain_linear(module) else None


def _cross_attention(kit: Kit, name: str, module: nn.Module) -> nn.Module | None:
    """What is computed for every position of the memory, and what is wide; queries come and go in float32."""
    if type(module) is FeedForward:
        return LowFeedForward(module, kit.linear, torch.float32)
    if is_plain_linear(module) and name.endswith(("cross_attn.value_proj", "cross_attn.output_proj")):
        return kit.linear(module, LOW if name.endswith("value_proj") else torch.float32)
    return None


def _memory_projection(kit: Kit, name: str, module: nn.Module) -> nn.Module | None:
    return kit.linear(module, torch.float32) if is_plain_linear(module) and name == ".memory_proj" else None


@functools.cache
@torch.autocast("cpu", enabled=False)
def packed_weights_work() -> bool:
    """Whether this processor multiplies bfloat16, and this build of PyTorch has packed products and convolutions that are right."""
    if not cpu_multiplies_bfloat16() or not fused_convolutions_work(LOW):
        return False
    linear = nn.Linear(32, 48, device="meta").requires_grad_(False)
    linear.load_state_dict({"weight": random_numbers(48, 32), "bias": random_numbers(48)}, assign=True)
    x, added = random_numbers(2, 5, 32), random_numbers(2, 5, 48)
    try:
        packed = PackedLinear(linear, torch.float32)
        found, sums = packed(x), packed.plus(x, added)
    except (AttributeError, RuntimeError, TypeError) as error:
        logger.info("no packed products of bfloat16 in this build of PyTorch: %s", error)
        return False
    # every factor and summand is rounded once, and so is the result
    exact = x.double() @ linear.weight.double().T + linear.bias.double()
    bound = (
        2 * torch.finfo(LOW).eps * (x.double().abs() @ linear.weight.double().abs().T + linear.bias.double().abs() + added.abs())
    )
    return bool(((found - exact).abs() <= bound).all()) and bool(((sums - exact - added).abs() <= bound).all())


def low_precision_works(device: torch.device) -> bool:
    """Whether a model on this device can be lowered: a CPU or GPU that computes in bfloat16 itself."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and packed_weights_work()
