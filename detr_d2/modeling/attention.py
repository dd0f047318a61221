"""Multi-head attention through the fused kernel."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detr_d2.modeling.layers import dropout
from detr_d2.utils.precision import without_autocast


class MultiheadAttention(nn.Module):
    """Scaled dot-product attention with several heads (arXiv 1706.03762, section 3.2).

    The parameters have the names and shapes of :class:`torch.nn.MultiheadAttention`; the first
    dimension of every input is the batch. ``hidden_dim`` is the size of queries, keys and values, a multiple of
    ``num_heads``; ``dropout`` the probability with which an attention weight is dropped in training.
    """

    def __init__(self, hidden_dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden_dim, hidden_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden_dim))
        self.out_proj = nn.Linear(hidden_dim, hidden_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Return (B, N, C), the values averaged with the attention weights of each query.

        Args:
            query: (B, N, C) queries.
            key, value: (B, S, C) keys and values.
            padding_mask: (B, S) bool, True where a key is padding; None if nothing is padded.
        """
        return self.attend(*self.operands(query, key, value, padding_mask))

    def weights(self, *inputs) -> Tensor:
        """Return the attention weights of ``forward(*inputs)``, without dropout: (B, heads, N, S) float32.

        The fused kernel never stores them.
        """
        q, k, _, mask, scale = self.operands(*inputs)
        return attention_weights(q.float(), k.float(), mask, scale)

    def operands(
        self, query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, float | None]:
        """Return the arguments of :meth:`attend` for those of ``forward``."""
        q, k, v = self.project(query, key, value)
        visible = None if padding_mask is None else ~padding_mask[:, None, None, :]
        return q, k, v, visible, None

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Project (B, N or S, C) queries, keys and values to (B, heads, N or S, C / heads)."""
        projections = zip((query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        return [
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in projections
        ]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
        """Attend with projected inputs, and mix the heads: (B, N, C).

        Args:
            q: (B, heads, N, D) queries.
            k: (B, heads, S, D) keys.
            v: (B, heads, S, C / heads) values; D may be larger than C / heads.
            mask: bool, True where attention is allowed, or a bias added to the logits; broadcast to (B, heads, N, S).
            scale: factor on the products of queries and keys; None: one over the root of D.
        """
        return self.mix(self.average(q, k, v, mask, scale))

    def average(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
        """Return (B, heads, N, C / heads), the average of the values in every head; arguments as for :meth:`attend`."""
        p = self.dropout if self.training else 0.0
        if q.device.type == "cpu" and q.dtype.itemsize < 4 and q.requires_grad:
            # The backward pass of attention in bfloat16 takes 1.2 to 4 times as long as in float32 there.
            q, k, v = q.float(), k.float(), v.float()
        # In the precision of the inputs.
        with without_autocast(q.device):
            if p and q.device.type == "cpu":
                # No fused kernel on CPUs supports dropout.
                return dropout(attention_weights(q, k, mask, scale), p) @ v
            # Fused kernels need values as long as keys.
            padded = F.pad(v, (0, k.shape[-1] - v.shape[-1])) if k.shape[-1] > v.shape[-1] else v
            attended = F.scaled_dot_product_attention(q, k, padded, attn_mask=mask, dropout_p=p, scale=scale)
            return attended[..., : v.shape[-1]]

    def mix(self, attended: Tensor) -> Tensor:
        """Mix the (B, heads, N, C / heads) averages of the heads: (B, N, C)."""
        return self.out_proj(attended.transpose(1, 2).flatten(2).to(self.out_proj.weight.dtype))


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Return (B, heads, N, S); arguments as for :meth:`MultiheadAttention.attend`."""
    logits = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-1, -2)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(dim=-1)
