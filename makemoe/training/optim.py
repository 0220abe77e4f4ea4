"""Builds the optimizer and its schedule, which are torch's or the user's own, named in YAML."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from makemoe.errors import UsageError
from makemoe.training.param_groups import ParamGroups, Weight, divided

NEVER = 1 << 62
"""A number of steps that no run takes."""


@contextmanager
def blaming(option: str) -> Iterator[None]:
    """Report what torch says about a wrong value as a UsageError that names the option."""
    try:
        yield
    except (TypeError, ValueError, ArithmeticError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{option}: {error}") from error


def build_optimizer(
    make: OptimizerCallable, policy: ParamGroups, weights: Sequence[Weight]
) -> Optimizer:
    """Build the optimizer for these weights, in the groups of a policy.

    Raises:
        UsageError: for settings that the optimizer refuses, or groups that it cannot use.
    """
    groups = divided(policy, weights)
    options = {option: None for group in groups for option in group if option != "params"}
    # Without options, an optimizer gets the parameters themselves: a function that builds it may
    # want to choose among them.
    whole = len(groups) == 1 and not options
    with blaming("--model.optimizer"):
        optimizer = make(groups[0]["params"] if whole else groups)
    for option in options:
        if option not in optimizer.defaults:
            raise UsageError(
                f"--model.param_groups {type(policy).__name__}: the optimizer "
                f"{type(optimizer).__name__} has no {option}: use another optimizer or policy"
            )
    return optimizer


def build_schedule(make: LRSchedulerCallable | None, optimizer: Optimizer) -> LRScheduler | None:
    """Build the schedule if there is one; raise UsageError for settings that it refuses."""
    if make is None:
        return None
    with blaming("--model.lr_scheduler"):
        schedule: LRScheduler = make(optimizer)
    return schedule


def with_schedule(optimizer: Optimizer, schedule: LRScheduler | None) -> OptimizerLRScheduler:
    """An optimizer and its schedule as Lightning takes them, with an update after every step.

    Lightning never updates a ReduceLROnPlateau: it would do so after the callbacks have saved, and
    with an old loss after every step. The model does it at the end of a validation.
    """
    if schedule is None:
        return optimizer
    return {
        "optimizer": optimizer,
        "lr_scheduler": {
            "scheduler": schedule,
            "interval": "step",
            "frequency": NEVER if isinstance(schedule, ReduceLROnPlateau) else 1,
            "reduce_on_plateau": False,
        },
    }


def try_schedule(schedule: LRScheduler | None) -> None:
    """Raise UsageError for a schedule that cannot take its first steps; it is used up then."""
    if schedule is None or isinstance(schedule, ReduceLROnPlateau):
        return
    with warnings.catch_warnings(), blaming("--model.lr_scheduler"):
        warnings.simplefilter("ignore")  # the optimizer does not step
        schedule.step()
        schedule.step()


def check_clipping(optimizer: Optimizer, trainer: Trainer) -> None:
    """Refuse to clip gradients that a fused optimizer itself divides by the loss scale.

    Raises:
        UsageError: naming the options.
    """
    scales = getattr(trainer.precision_plugin, "scaler", None) is not None
    unscales = getattr(optimizer, "_step_supports_amp_scaling", False)
    if scales and unscales and trainer.gradient_clip_val:
        raise UsageError(
            f"--trainer.gradient_clip_val {trainer.gradient_clip_val}: under --trainer.precision "
            f"16-mixed, the gradients of a fused {type(optimizer).__name__} cannot be clipped: "
            "give --model.optimizer.fused false, or --trainer.precision bf16-mixed"
        )


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
