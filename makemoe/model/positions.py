"""How the model knows where a token stands, chosen in YAML (`model.positions`).

Positions may be added to the embeddings, or turn the queries and keys of every attention layer, or
both. A cache stores keys that are already turned, so a position must not depend on later tokens.
"""

from collections.abc import Callable

from torch import Tensor, nn

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
