"""Causal multi-head self-attention, with or without a cache of earlier keys and values."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from makemoe.errors import UsageError
from makemoe.model.dropout import Dropout
from makemoe.model.norm import NormFactory
from makemoe.model.positions import Turn
from makemoe.sizes import head_size

QUERY_BLOCK = 64
"""Number of queries per block if attention is not fused."""


class LayerCache(NamedTuple):
    """Keys and values of one layer, by position: (B, H, S, D/H) each."""

    keys: Tensor
    values: Tensor

    def extend(self, k_BHTd: Tensor, v_BHTd: Tensor, place: "Place") -> tuple[Tensor, Tensor]:
        """Write new keys and values at their positions; return those that queries may attend to."""
        if place.start is None:
            assert place.rows_B1 is not None
            # Index tensors around the head axis put it last: (B, T, H, D/H).
            self.keys[place.rows_B1, :, place.positions_BT] = k_BHTd.transpose(1, 2)
            self.values[place.rows_B1, :, place.positions_BT] = v_BHTd.transpose(1, 2)
            assert place.visible is not None
            seen = place.visible.shape[-1]
            return self.keys[:, :, :seen], self.values[:, :, :seen]
        end = place.start + k_BHTd.shape[2]
        self.keys[:, :, place.start : end] = k_BHTd
        self.values[:, :, place.start : end] = v_BHTd
        return self.keys[:, :, :end], self.values[:, :, :end]


class Place(NamedTuple):
    """Positions of new tokens, and what they may attend to; the same for all layers.

    Attributes:
        start: the first position if it is the same for all rows (the cheaper case), else None.
        rows_B1: row numbers, used if the positions differ; None: no cache.
        positions_BT: position of each token, (B, T), or (1, T) if they are the same for all rows.
        visible: which cache positions a query sees, (B or 1, 1, T, S); None: all positions up to
            its own (requires start 0, or a common start and a single query per row).
        turn: turns queries and keys for their positions; None: they are not turned.
    """

    start: int | None
    rows_B1: Tensor | None
    positions_BT: Tensor
    visible: Tensor | None
    turn: Turn | None = None

    @staticmethod
    def whole(length: int, device: torch.device) -> "Place":
        """For rows of `length` tokens without a cache."""
        return Place(0, None, torch.arange(length, device=device)[None], None)

    @staticmethod
    def after(starts: list[int], length: int, block_size: int, device: torch.device) -> "Place":
        """For `length` tokens per row, where row b starts at position `starts[b]`."""
        rows_B1 = torch.arange(len(starts), device=device)[:, None]
        offsets_T = torch.arange(length, device=device)
        positions_BT = torch.tensor(starts, device=device)[:, None] + offsets_T
        together = starts[0] if starts.count(starts[0]) == len(starts) else None
        if together == 0 or (together is not None and length == 1):
            return Place(together, rows_B1, positions_BT, None)
        seen = min(max(starts) + length, block_size)
        visible = torch.arange(seen, device=device) <= positions_BT[:, None, :, None]
        return Place(together, rows_B1, positions_BT, visible)


class Attention(nn.Module, ABC):
    """Base of all kinds of attention, chosen in YAML (`model.attention`).

    A subclass is called with (n_embd, n_head, dropout, attn_dropout). It must be causal: the output
    at a position must not depend on later tokens.
    """

    @abstractmethod
    def forward(
        self, x_BTD: Tensor, cache: LayerCache | None = None, place: Place | None = None
    ) -> Tensor:
        """Mix each position with those before it: (B, T, D) to (B, T, D).

        Args:
            x_BTD: normalised vectors of T tokens per row.
            cache: keys and values of earlier positions, from `new_cache`, extended in place.
            place: the tokens' positions. The model always gives it; without it, rows start at
                position 0 and nothing is turned. Needed with a cache.
        """

    @abstractmethod
    def new_cache(self, batch_size: int, block_size: int) -> LayerCache:
        """An empty cache of `block_size` positions for `batch_size` rows."""

    @abstractmethod
    def residual_outputs(self) -> list[nn.Linear]:
        """The layers whose output is added to the residual stream (for scaled initialisation)."""


AttentionFactory = Callable[[int, int, float, float], Attention]


class CausalSelfAttention(Attention):
    """softmax(Q K^T / sqrt(D/H) + causal mask) V over H heads (arXiv:1706.03762, equation 1).

    Scores are scaled by the head's size, not n_embd. Queries, keys and values have no bias.

    Args:
        n_embd: width D of the residual stream.
        n_head: number of heads H, a divisor of n_embd.
        dropout: fraction of the output dropped in training.
        attn_dropout: fraction of the attention weights dropped in training. Above zero, a CPU
            cannot use fused attention.
        qk_norm: norm of the queries and of the keys, the same for all heads, before positions turn
            them: a class called with the head's size (arXiv:2302.05442, section 2); null: none.
        bias: whether the output projection has a bias.

    Raises:
        UsageError: if the heads do not divide n_embd, or a norm would be over a single number.
    """

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        dropout: float,
        attn_dropout: float,
        qk_norm: NormFactory | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        size = head_size(n_embd, n_head)
        if qk_norm is not None and size == 1:
            raise UsageError(
                f"qk_norm: with n_embd {n_embd} and n_head {n_head} a head is one number, of which "
                "a norm leaves at most the sign: use fewer heads, or no qk_norm"
            )
        self.n_head = n_head
        self.attn_dropout = Dropout(attn_dropout)
        self.qkv = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.proj = nn.Linear(n_embd, n_embd, bias)
        self.norm_q, self.norm_k = (
            nn.Identity() if qk_norm is None else qk_norm(size) for _ in range(2)
        )
        self.dropout = Dropout(dropout)

    def forward(
        self, x_BTD: Tensor, cache: LayerCache | None = None, place: Place | None = None
    ) -> Tensor:
        """See `Attention.forward`.

        With a cache, new keys and values are written at their positions, and each query sees the
        cache up to its own position; rows may be at different positions.
        """
        B, T, D = x_BTD.shape
        # Split before viewing as heads: the backward pass then copies the gradients once.
        parts = self.qkv(x_BTD).split(D, dim=-1)
        q, k, v = (part.view(B, T, self.n_head, -1).transpose(1, 2) for part in parts)
        q, k = self.norm_q(q), self.norm_k(k)
        if place is not None and place.turn is not None:
            q, k = place.turn(q), place.turn(k)
        if cache is None:
            y_BHTd = self.attend(q, k, v)
        else:
            assert place is not None
            k, v = cache.extend(k, v, place)
            causal = place.visible is None and T > 1
            y_BHTd = F.scaled_dot_product_attention(
                q, k, v, attn_mask=place.visible, is_causal=causal
            )
        y_BTD = y_BHTd.transpose(1, 2).reshape(B, T, D)
        out: Tensor = self.dropout(self.proj(y_BTD))
        return out

    def new_cache(self, batch_size: int, block_size: int) -> LayerCache:
        like, D = self.qkv.weight, self.qkv.in_features
        shape = (batch_size, self.n_head, block_size, D // self.n_head)
        # Not `like.new_zeros`: of a weight that is in parts, it would be too.
        keys, values = (torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in "kv")
        return LayerCache(keys, values)

    def residual_outputs(self) -> list[nn.Linear]:
        return [self.proj]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention over all heads, (B, H, T, D/H) each."""
        drops = self.training and self.attn_dropout.p > 0
        if q.device.type == "cpu" and (drops or (self.training and q.dtype == torch.bfloat16)):
            return self.attend_in_blocks(q, k, v)
        p = self.attn_dropout.p if drops else 0.0
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p)

    def attend_in_blocks(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same in blocks of queries, for training on a CPU.

        With dropout there is no fused attention on a CPU, and torch's unfused one draws random
        numbers slowly. In bfloat16 the backward pass of the fused one is slow. In blocks of
        queries, most masked scores are not computed, and intermediate results stay in the
        processor's cache. Unlike fused attention, scores are rounded to the dtype of q, and all
        attention weights are kept for the backward pass.
        """
        T, size = q.shape[-2:]
        k_T, v_T = k.flatten(0, 1), v.flatten(0, 1)
        q_T = (q * size**-0.5).flatten(0, 1)
        blocks = []
        for begin in range(0, T, QUERY_BLOCK):
            end = min(begin + QUERY_BLOCK, T)
            mask = q.new_full((end - begin, end), -torch.inf).triu(begin + 1)
            scores = torch.baddbmm(mask, q_T[:, begin:end], k_T[:, :end].transpose(1, 2))
            blocks.append(self.attn_dropout(scores.softmax(-1)) @ v_T[:, :end])
        return torch.cat(blocks, 1).view_as(q)
