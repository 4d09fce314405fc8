"""The decoder's self-attention: torch's module, computed on the queries as they lie."""

import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.MultiheadAttention):
    """The weights, names and results of `nn.MultiheadAttention`, without its transposed copies and its forty small operations.

    Args:
        hidden_dim: C.
        num_heads: M.
        dropout: probability of an attention weight.
    """

    def __init__(self, hidden_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__(hidden_dim, num_heads, dropout=dropout, batch_first=True)

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Attend.

        Args:
            query: `[B, Q, C]`.
            key: `[B, V, C]`.
            value: `[B, V, C]`.
            attn_mask: added to the logits, minus infinity where row i may not see column j: `[Q, V]` or `[B, M, Q, V]`.

        Returns:
            `[B, Q, C]`, and None in place of the weights, as torch's module gives them.
        """
        projections = zip((query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        heads = [F.linear(*inputs).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for inputs in projections]
        mask = None if attn_mask is None else attn_mask.to(heads[0].dtype)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None
