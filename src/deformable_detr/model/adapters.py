"""Low-rank adapters through peft (Hu et al. 2021, LoRA): beside a fixed weight W, the product of two thin matrices is trained."""

import copy
import sys
from typing import Any, TypeVar

from torch import nn

from deformable_detr.model.rebuild import rebuilt

Model = TypeVar("Model", bound=nn.Module)

TARGETS = (
    r"(encoder|decoder)\.layers\.\d+\."
    r"((self|cross)_attn\.(sampling_offsets|attention_weights|value_proj|output_proj)|ffn\.linear[12])"
)
"""Names of the linear maps that get an adapter, in encoder and decoder. The decoder's self-attention is none of them: for
`nn.MultiheadAttention` peft writes into the fixed weights and takes it back in each forward pass, which rounds them a little."""

HEADS = ("class_heads", "decoder.box_heads", "query_source.class_head", "query_source.box_head", "suppressor", "denoising")
"""What is trained as a whole beside the adapters, where the model has it: the classes are others, mostly."""


def add_adapters(model: nn.Module, rank: int) -> None:
    """Put an adapter on the maps of encoder and decoder, and fix everything but adapters and heads; the output stays the same.

    Args:
        model: a detector; changed in place.
        rank: of the product; it counts twice (`lora_alpha` is twice the rank).

    Raises:
        ImportError: peft is not installed.
        ValueError: a rank below 1.
    """
    if rank < 1:
        raise ValueError(f"optimizer.lora is the rank of the adapters and must be at least 1 (0: none), not {rank}")
    try:
        import peft
    except ImportError as error:
        raise ImportError('adapters need peft: pip install "deformable-detr[adapters]"') from error
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS), model)
    for head in heads_of(model):
        model.get_submodule(head).requires_grad_(True)


def heads_of(model: nn.Module) -> list[str]:
    """The modules of :data:`HEADS` that a model has weights of; of a list, its members."""
    modules = dict(model.named_modules())
    lists = [head for head in HEADS if isinstance(modules.get(head), nn.ModuleList)]
    heads = [name for name in modules if (name in HEADS and name not in lists) or name.rpartition(".")[0] in lists]
    return [head for head in heads if next(modules[head].parameters(), None) is not None]


def merged(model: Model) -> Model:
    """The same model without adapters: they are added to the weights beside them. A model without adapters as it is.

    Args:
        model: any kind of peft's adapters, on any of its modules. It stays as it is; the other weights are shared with it.
    """
    return rebuilt(model, _without_adapter) if "peft" in sys.modules else model  # what was not imported has put in nothing


def _without_adapter(name: str, module: nn.Module) -> nn.Module | None:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    del name
    if isinstance(module, ModulesToSaveWrapper):
        return module.original_module if module.disable_adapters else module.modules_to_save[module.active_adapters[0]]
    if not isinstance(module, BaseTunerLayer):
        return None
    own: Any = copy.deepcopy(module)
    if hasattr(own, "unload_and_optionally_merge_module"):  # nn.MultiheadAttention
        return own.unload_and_optionally_merge_module(merge=not own.disable_adapters, safe_merge=False, adapter_names=None)
    if not (own.merged or own.disable_adapters):
        own.merge()
    return own.get_base_layer()
