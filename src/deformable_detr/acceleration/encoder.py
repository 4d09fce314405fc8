"""The encoder for inference: everything between two attentions is done for a few thousand tokens at a time, in cache."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deformable_detr.acceleration.low_precision import plus
from deformable_detr.model.encoder import EncoderLayer
from deformable_detr.ops import ms_deform_attn_fused
from deformable_detr.structures import FlatFeatures

Compiler = Callable[[Callable], Callable]


Inputs = tuple[Tensor, Tensor, Tensor]
"""What one attention needs: value `[B, S, C]`, offsets `[B, S, M * L * P * 2]` and logits `[B, S, M * L * P]` of all tokens."""


class ChunkedEncoder(nn.Module):
    """Encoder layers that work through the sequence piece by piece and keep one copy of it.

    The output projection, both norms and the feed-forward network of a layer, and the value, offsets and logits of the next
    one, see a piece of the sequence while it lies in cache. The wide activation of the feed-forward network exists for one
    piece only.

    Args:
        layers: the model's own layers; their weights are used as they are, except that offsets and logits are joined.
        chunk_tokens: length of a piece; None takes the whole sequence at once (on a GPU).
        compiler: makes a faster function of one that works on a piece, such as `torch.compile`.
    """

    def __init__(self, layers: Iterable[EncoderLayer], chunk_tokens: int | None, compiler: Compiler | None = None) -> None:
        super().__init__()
        self.layers = [_PieceLayer(layer) for layer in layers]
        self.chunk_tokens = chunk_tokens
        compiler = compiler or (lambda function: function)
        self._heads = [compiler(layer.attention_inputs) for layer in self.layers]
        self._tails = [compiler(layer.rest) for layer in self.layers]

    def forward(self, flat: FlatFeatures) -> Tensor:
        """The sequence → `memory`, `[B, S, C]`; `flat.features` may be overwritten."""
        memory = flat.features.float() if torch.is_autocast_enabled(flat.features.device.type) else flat.features
        if not self.layers:
            return memory
        if self.chunk_tokens is None:
            return self._whole(memory, flat)
        batch, tokens, _ = memory.shape
        starts = range(0, tokens, self.chunk_tokens)
        pieces = [(row, slice(start, start + self.chunk_tokens)) for row in range(batch) for start in starts]
        inputs = _empty_inputs(self.layers[0], memory)
        for row, piece in pieces:
            self._fill(0, inputs, row, piece, memory, flat.positions)
        for index, layer in enumerate(self.layers):
            attended = layer.attend(inputs, flat)
            for row, piece in pieces:
                memory[row, piece] = self._tails[index](memory[row, piece], attended[row, piece])
                self._fill(index + 1, inputs, row, piece, memory, flat.positions)
        return memory

    def _whole(self, memory: Tensor, flat: FlatFeatures) -> Tensor:
        """Nothing is written twice where there is one piece."""
        for layer, head, tail in zip(self.layers, self._heads, self._tails, strict=True):
            memory = tail(memory, layer.attend(head(memory, flat.positions), flat))
        return memory

    def _fill(self, index: int, inputs: Inputs, row: int, piece: slice, memory: Tensor, positions: Tensor) -> None:
        """Compute the inputs of layer `index`, if there is one, for one piece."""
        if index == len(self.layers):
            return
        for whole, part in zip(inputs, self._heads[index](memory[row, piece], positions[row, piece]), strict=True):
            whole[row, piece] = part


class _PieceLayer:
    """One encoder layer, cut where the attention needs the whole sequence."""

    def __init__(self, layer: EncoderLayer) -> None:
        attention: Any = layer.self_attn
        self.layer: Any = layer
        self.attention = attention
        self.geometry: tuple[int, int, int] = (attention.num_heads, attention.num_levels, attention.num_points)
        parts = [attention.sampling_offsets, attention.attention_weights]
        self.joined = _joined(parts) if all(type(part) is nn.Linear for part in parts) else None

    def attention_inputs(self, features: Tensor, positions: Tensor) -> Inputs:
        """`[..., C]` and its positions → value, offsets, logits."""
        query, attention = features + positions, self.attention
        if self.joined is None:
            offsets, logits = attention.sampling_offsets(query), attention.attention_weights(query)
        else:
            offsets, logits = F.linear(query, *self.joined).tensor_split([attention.sampling_offsets.out_features], -1)
        return attention.value_proj(features), offsets, logits

    def attend(self, inputs: Inputs, flat: FlatFeatures) -> Tensor:
        """The attention itself, over the whole sequence: `[B, S, C]`."""
        (value, offsets, logits), mask = inputs, flat.padding_mask
        value = value if mask is None else value.masked_fill_(mask[..., None], 0.0)
        heads, levels, points = self.geometry
        return ms_deform_attn_fused(
            value.unflatten(-1, (heads, -1)),
            flat.spatial_shapes,
            flat.reference_points,
            offsets.unflatten(-1, (heads, levels, points, 2)),
            logits.unflatten(-1, (heads, levels, points)),
        )

    def rest(self, features: Tensor, attended: Tensor) -> Tensor:
        """Output projection, residual and norm, feed-forward network, residual and norm."""
        layer = self.layer
        features = layer.self_attn_norm(plus(self.attention.output_proj, attended, features))
        return layer.ffn_norm(plus(layer.ffn, features, features))


@torch.no_grad()
def _joined(parts: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
    """Weight and bias of linear maps of the same input, as one product."""
    return torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])


def _empty_inputs(layer: _PieceLayer, memory: Tensor) -> Inputs:
    device = memory.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else memory.dtype
    heads, levels, points = layer.geometry
    size = heads * levels * points
    shape = memory.shape[:2]
    geometry = dtype if dtype == torch.bfloat16 else torch.float32
    offsets, logits = (memory.new_empty(*shape, width, dtype=geometry) for width in (2 * size, size))
    return memory.new_empty(memory.shape, dtype=dtype), offsets, logits
