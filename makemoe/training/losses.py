"""Losses as functions of logits and targets, in nats per token."""

from torch import Tensor
from torch.nn import functional as F

from makemoe.data.windows import IGNORE


def cross_entropy(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean of -ln p(target), nats per token, in float32; positions marked IGNORE do not count."""
    return F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=IGNORE
    )


def summed_cross_entropy(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Sum of -ln p(target), nats, in float64; positions marked IGNORE do not count."""
    losses_N = F.cross_entropy(
        logits_BTV.flatten(0, 1).float(),
        targets_BT.flatten(),
        ignore_index=IGNORE,
        reduction="none",
    )
    return losses_N.double().sum()
