"""How the model knows where a token stands, chosen in YAML (`model.positions`).

Positions may be added to the embeddings, or turn the queries and keys of every attention layer, or
both. A cache stores keys that are already turned, so a position must not depend on later tokens.
"""

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from makemoe.errors import UsageError
from makemoe.sizes import head_size

Turn = Callable[[Tensor], Tensor]
"""Turns queries or keys, (B, H, T, D/H), for the positions of their T tokens."""


class Positions(nn.Module):
    """Base of all kinds of positions; alone, it marks no positions (NoPE, arXiv:2305.19466).

    A subclass is called with (block_size, n_embd, n_head). There is one for the whole model.
    Positions are given as a tensor (B, T), or (1, T) where all rows have the same: they lie between
    0 and block_size - 1, and with a cache they need not start at 0.

    Args:
        block_size: longest context T; unused here.
        n_embd: width D; unused here.
        n_head: number of heads H; unused here.
    """

    def __init__(self, block_size: int = 0, n_embd: int = 0, n_head: int = 0) -> None:
        super().__init__()

    def add(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        """The embeddings with their positions added, (B, T, D)."""
        return x_BTD

    def turn(self, positions_BT: Tensor) -> Turn | None:
        """What turns the queries and keys of all layers, called once per pass; None: nothing."""
        return None


PositionsFactory = Callable[[int, int, int], Positions]


class LearnedPositions(nn.Embedding, Positions):
    """A learned vector per position, added to the token's embedding (GPT-2).

    Args:
        block_size: longest context, in tokens.
        n_embd: width D of the residual stream.
        n_head: not used.
    """

    def __init__(self, block_size: int, n_embd: int, n_head: int) -> None:
        super().__init__(block_size, n_embd)

    def add(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        learned_BTD: Tensor = self(positions_BT)
        return x_BTD + learned_BTD


class RotaryPositions(Positions):
    """Turns pairs of numbers of queries and keys by angles that grow with the position.

    Pair i of a head of size d turns by position * base^(-2i/d) (arXiv:2104.09864, equation 15), so
    of the positions, only the distance matters to the product of a query and a key. The pairs are
    (i, i + d/2), as in LLaMA; in the paper they are (2i, 2i + 1).

    Args:
        block_size: longest context, in tokens.
        n_embd: width D of the residual stream.
        n_head: number of heads, each of size d = D / n_head.
        base: how slow the slowest pairs are: one radian in up to this many tokens.
        share: share of a head that is turned, from its beginning; the rest of it is left as it is,
            and d is the size of what is turned (GPT-NeoX, arXiv:2204.06745, section 2.1.1).

    Raises:
        UsageError: if there are no pairs to turn, or base is not above 1.
    """

    cos_TP: Tensor
    sin_TP: Tensor

    def __init__(
        self,
        block_size: int,
        n_embd: int,
        n_head: int,
        base: float = 10_000.0,
        share: float = 1.0,
    ) -> None:
        super().__init__()
        self.base, self.share = base, share
        whole = head_size(n_embd, n_head)
        if not 0 < share <= 1:
            raise UsageError(
                f"RotaryPositions: share {share} is out of range: use more than 0, at most 1"
            )
        size = int(whole * share)
        if share < 1 and (size % 2 or not size):
            raise UsageError(
                f"RotaryPositions: share {share} of a head of {whole} numbers is {size}, which "
                "cannot be turned in pairs: use another share, or wider heads"
            )
        if size % 2:
            wider = n_embd + n_head
            raise UsageError(
                f"RotaryPositions: n_embd {n_embd} / n_head {n_head} = {size} numbers per head, "
                f"which cannot be turned in pairs: use n_embd {wider}, or another n_head"
            )
        if not 1 < base < math.inf:
            raise UsageError(
                f"RotaryPositions: base {base} is out of range: use more than 1; 10000 is usual"
            )
        # Not in checkpoints, which give block_size and base.
        for name in ("cos_TP", "sin_TP"):
            self.register_buffer(name, torch.empty(block_size, size // 2), persistent=False)
        # A model that is only measured has no memory. To compute without it, torch imports a
        # compiler, which takes a second.
        if not self.cos_TP.is_meta:
            self.fill(base)

    def fill(self, base: float) -> None:
        """Compute the cosines and sines, in float64, of all positions."""
        block_size, pairs = self.cos_TP.shape
        speed_P = base ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        angle_TP = torch.arange(block_size, dtype=torch.float64)[:, None] * speed_P
        self.cos_TP.copy_(angle_TP.cos())
        self.sin_TP.copy_(angle_TP.sin())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Compute them again for another dtype, which may be wider than the one before."""
        before = self.cos_TP.dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.cos_TP.dtype != before and not self.cos_TP.is_meta:
            self.fill(self.base)
        return self

    def turn(self, positions_BT: Tensor) -> Turn:
        cos_B1TP, sin_B1TP = self.cos_TP[positions_BT][:, None], self.sin_TP[positions_BT][:, None]
        P = cos_B1TP.shape[-1]

        def turned(x_BHTd: Tensor) -> Tensor:
            a_BHTP, b_BHTP, *rest = torch.split(x_BHTd, P, -1)
            pairs = (a_BHTP * cos_B1TP - b_BHTP * sin_B1TP, b_BHTP * cos_B1TP + a_BHTP * sin_B1TP)
            # Under autocast, queries and keys are narrower than the angles.
            return torch.cat([*pairs, *rest], -1).type_as(x_BHTd)

        return turned
