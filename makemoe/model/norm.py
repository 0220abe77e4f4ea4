"""Norms of the residual stream, chosen in YAML (`model.norm`).

`makemoe.model.attention.CausalSelfAttention` takes the same classes as norms of queries and keys.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from makemoe.errors import UsageError


class Norm(nn.Module, ABC):
    """Base of all norms; a subclass is called with the width D of the vectors."""

    @abstractmethod
    def forward(self, input: Tensor) -> Tensor:
        """Normalise each vector, (..., D) to (..., D)."""


NormFactory = Callable[[int], Norm]


class LayerNorm(nn.LayerNorm, Norm):
    """Mean 0 and variance 1, then a learned scale and shift (arXiv:1607.06450, equation 4).

    Args:
        n_embd: width D.
        eps: added to the variance.

    Raises:
        UsageError: if eps is not above 0 and finite.
    """

    def __init__(self, n_embd: int, eps: float = 1e-5) -> None:
        check_eps(self, eps)
        super().__init__(n_embd, eps)


class RMSNorm(nn.RMSNorm, Norm):
    """Mean square 1, then a learned scale; no mean is subtracted (arXiv:1910.07467, equation 4).

    Args:
        n_embd: width D.
        eps: added to the mean square.

    Raises:
        UsageError: if eps is not above 0 and finite.
    """

    def __init__(self, n_embd: int, eps: float = 1e-6) -> None:
        check_eps(self, eps)
        super().__init__(n_embd, eps)

    def forward(self, input: Tensor) -> Tensor:
        # Under autocast, queries and keys are narrower than the weights; torch would warn about it.
        return super().forward(input.type_as(self.weight)).type_as(input)


def check_eps(norm: Norm, eps: float) -> None:
    """Raise UsageError unless eps keeps the norm of a vector of zeros finite."""
    if not 0 < eps < math.inf:
        raise UsageError(
            f"{type(norm).__name__}: eps {eps} is out of range: use a small number above 0, such "
            "as 1e-6"
        )
