"""Learning-rate schedules; optimizers are torch's own, named in YAML."""

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupCosine(LRScheduler):
    """Linear warm-up from 0, then half a cosine down to a fraction of the peak, updated every step.

    Args:
        optimizer: the optimizer; its learning rate is the peak.
        warmup_steps: steps until the peak.
        total_steps: steps until the end of the cosine; afterwards the rate is constant.
        final_share: fraction of the peak at the end.
    """

    def __init__(
        self, optimizer: Optimizer, warmup_steps: int, total_steps: int, final_share: float = 0.1
    ) -> None:
        self.warmup_steps, self.total_steps = warmup_steps, total_steps
        self.final_share = final_share
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each parameter group at this step."""
        step = self.last_epoch
        if step < self.warmup_steps:
            share = (step + 1) / (self.warmup_steps + 1)
        else:
            length = max(1, self.total_steps - self.warmup_steps)
            progress = min(1.0, (step - self.warmup_steps) / length)
            cosine = (1 + math.cos(math.pi * progress)) / 2
            share = self.final_share + (1 - self.final_share) * cosine
        return [base * share for base in self.base_lrs]
