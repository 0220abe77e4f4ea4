"""Causal multi-head self-attention, with or without a cache of what came before."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from makemoe.errors import UsageError


class LayerCache(NamedTuple):
    """Keys and values of one layer, by position: (B, H, S, D/H) each."""

    keys: Tensor
    values: Tensor


class CausalSelfAttention(nn.Module):
    """softmax(Q K^T / sqrt(D/H) + causal mask) V over H heads (arXiv:1706.03762, equation 1).

    The scale is the head's size, not n_embd. Queries, keys and values have no bias; the output
    projection has one.

    Args:
        n_embd: width D of the residual stream.
        n_head: number of heads H, a divisor of n_embd.
        dropout: share of the output dropped in training.
        attn_dropout: share of the attention weights dropped in training. Above zero it keeps a CPU
            from its fused attention.
    """

    def __init__(self, n_embd: int, n_head: int, dropout: float, attn_dropout: float) -> None:
        super().__init__()
        if n_embd % n_head:
            raise UsageError(
                f"n_embd {n_embd} is not divisible by n_head {n_head}: "
                f"take n_embd {-(-n_embd // n_head) * n_head}, or another n_head"
            )
        self.n_head = n_head
        self.attn_dropout = attn_dropout
        self.qkv = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.proj = nn.Linear(n_embd, n_embd)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x_BTD: Tensor, cache: LayerCache | None = None, positions_BT: Tensor | None = None
    ) -> Tensor:
        """Mix each position with those before it: (B, T, D) to (B, T, D).

        With a cache, the new keys and values are written at `positions_BT` and each query sees the
        cache up to its own position; rows may stand at different positions.
        """
        B, T, D = x_BTD.shape
        q, k, v = self.qkv(x_BTD).view(B, T, 3, self.n_head, D // self.n_head).unbind(2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if cache is None:
            dropout_p = self.attn_dropout if self.training else 0.0
            y_BHTd = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout_p)
        else:
            assert positions_BT is not None
            rows_B1 = torch.arange(B, device=x_BTD.device)[:, None]
            # Index tensors around the head axis put it last: (B, T, H, D/H).
            cache.keys[rows_B1, :, positions_BT] = k.transpose(1, 2).to(cache.keys.dtype)
            cache.values[rows_B1, :, positions_BT] = v.transpose(1, 2).to(cache.values.dtype)
            slots_S = torch.arange(cache.keys.shape[2], device=x_BTD.device)
            visible_B1TS = slots_S <= positions_BT[:, None, :, None]
            y_BHTd = F.scaled_dot_product_attention(
                q, cache.keys.to(q.dtype), cache.values.to(q.dtype), attn_mask=visible_B1TS
            )
        y_BTD = y_BHTd.transpose(1, 2).reshape(B, T, D)
        out: Tensor = self.dropout(self.proj(y_BTD))
        return out
