"""Norms of the residual stream, chosen in YAML (`model.norm`)."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn


class Norm(nn.Module, ABC):
    """Base of all norms; a subclass is called with n_embd, the width D of the residual stream."""

    @abstractmethod
    def forward(self, input: Tensor) -> Tensor:
        """Normalise each token's vector, (..., D) to (..., D)."""


NormFactory = Callable[[int], Norm]


class LayerNorm(nn.LayerNorm, Norm):
    """Mean 0 and variance 1, then a learned scale and shift (arXiv:1607.06450, equation 4).

    Args:
        n_embd: width D.
        eps: added to the variance.
    """

    def __init__(self, n_embd: int, eps: float = 1e-5) -> None:
        super().__init__(n_embd, eps)


class RMSNorm(nn.RMSNorm, Norm):
    """Mean square 1, then a learned scale; no mean is taken away (arXiv:1910.07467, equation 4).

    Args:
        n_embd: width D.
        eps: added to the mean square.
    """

    def __init__(self, n_embd: int, eps: float = 1e-6) -> None:
        super().__init__(n_embd, eps)
