"""How the model knows where a token stands, chosen in YAML (`model.positions`).

Positions may be added to the embeddings, or turn the queries and keys of every attention layer, or
both. A cache stores keys that are already turned, so a position must not depend on later tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from makemoe.errors import UsageError

Turn = Callable[[Tensor], Tensor]
"""Turns queries or keys, (B, H, T, D/H), for the positions of their T tokens."""


class Positions(nn.Module):
    """Base of all kinds of positions; alone, it marks no positions.

    A subclass is called with (block_size, n_embd, n_head). There is one for the whole model.
    Positions are given as a tensor (B, T), or (1, T) where all rows have the same: they lie between
    0 and block_size - 1, and with a cache they need not start at 0.
    """

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
    """Turns pairs of a head's numbers by position * base^(-2i/d) (arXiv:2104.09864, equation 15).

    A query and a key then meet at an angle that depends on their distance only. The pairs are
    (i, i + d/2), as in LLaMA, not the paper's (2i, 2i + 1).

    Args:
        block_size: longest context, in tokens.
        n_embd: width D of the residual stream.
        n_head: number of heads, of size d = D / n_head.
        base: the slowest pair turns by one radian in about this many tokens.

    Raises:
        UsageError: if the heads' size is odd.
    """

    cos_Td: Tensor
    sin_Td: Tensor

    def __init__(
        self, block_size: int, n_embd: int, n_head: int, base: float = 10_000.0
    ) -> None:
        super().__init__()
        size = n_embd // n_head
        if size % 2:
            raise UsageError(
                f"RotaryPositions: heads of n_embd {n_embd} / n_head {n_head} = {size} numbers "
                "cannot be turned in pairs: use another n_head"
            )
        slowing_d = base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        angle_Td = torch.arange(block_size, dtype=torch.float64)[:, None] * slowing_d
        self.register_buffer("cos_Td", angle_Td.cos().float(), persistent=False)
        self.register_buffer("sin_Td", angle_Td.sin().float(), persistent=False)

    def turn(self, positions_BT: Tensor) -> Turn:
        cos_B1Td, sin_B1Td = self.cos_Td[positions_BT][:, None], self.sin_Td[positions_BT][:, None]

        def turned(x_BHTd: Tensor) -> Tensor:
            cos, sin = cos_B1Td.to(x_BHTd.dtype), sin_B1Td.to(x_BHTd.dtype)
            a, b = x_BHTd.chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

        return turned
