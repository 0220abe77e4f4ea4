"""Builds the optimizer and its schedule, which are torch's or the user's own, named in YAML."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from makemoe.errors import UsageError
from makemoe.group import Group
from makemoe.shards import here, is_sharded, total_norm
from makemoe.training.muon import ADAMW
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
            decays = "weight_decay" in optimizer.defaults
            raise UsageError(
                f"--model.param_groups {type(policy).__name__}: the optimizer "
                f"{type(optimizer).__name__} has no {option}: use {policy.made_for}, or "
                f"--model.param_groups {'DecayMatrices' if decays else 'null'}"
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


def rates(optimizer: Optimizer) -> dict[str, float]:
    """The learning rates of the next step, by the names of the options they come from.

    Groups that have other rates than the first of their method are told apart by their numbers.
    """
    found: dict[str, float] = {}
    for number, group in enumerate(optimizer.param_groups):
        name = "adamw_lr" if group.get("method") == ADAMW else "lr"
        rate = float(group["lr"])
        if found.setdefault(name, rate) != rate:
            found[f"{name}/group_{number}"] = rate
    return found


def try_schedule(schedule: LRScheduler | None, steps: int) -> None:
    """Raise UsageError for a schedule that cannot take so many steps; it is used up then.

    Args:
        schedule: a new one.
        steps: of the run; -1: without end.
    """
    if schedule is None or isinstance(schedule, ReduceLROnPlateau):
        return
    if isinstance(schedule, Warmup):
        schedule.check_end(steps)
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


def clipped_by_hand(optimizer: Optimizer, trainer: Trainer, group: Group) -> bool:
    """Clip gradients where Lightning cannot or would not, and return whether this was such a place.

    It cannot add up the norms of weights in parts. It refuses fused optimizers under any mixed
    precision, because they divide gradients by the loss scale themselves, but only 16-mixed has
    one.

    Args:
        optimizer: the optimizer of all weights.
        trainer: knows the limit.
        group: all processes, which must call.
    """
    plugin, limit = trainer.precision_plugin, trainer.gradient_clip_val or 0.0
    algorithm = GradClipAlgorithmType(trainer.gradient_clip_algorithm or "norm")
    weights = [weight for one in optimizer.param_groups for weight in one["params"]]
    if any(map(is_sharded, weights)):
        clip_parts([w.grad for w in weights if w.grad is not None], limit, algorithm, group)
        return True
    if not isinstance(plugin, MixedPrecision) or plugin.scaler is not None:
        return False
    Precision.clip_gradients(plugin, optimizer, limit, algorithm)
    return True


def clip_parts(
    gradients: Sequence[Tensor], limit: float, algorithm: GradClipAlgorithmType, group: Group
) -> None:
    """Clip gradients of weights in parts; a limit of 0 is none."""
    parts = [here(gradient) for gradient in gradients]
    if limit == 0:
        return
    if algorithm == GradClipAlgorithmType.VALUE:
        torch._foreach_clamp_min_(parts, -limit)
        torch._foreach_clamp_max_(parts, limit)
    else:
        norm = total_norm(gradients, group.sum_, group.size)
        # As torch.nn.utils.clip_grads_with_norm_ does.
        torch._foreach_mul_(parts, (limit / (norm + 1e-6)).clamp(max=1.0))


class Warmup(LRScheduler, ABC):
    """Base of schedules that rise linearly to the optimizer's rate, then fall to a share of it.

    The first step has 1 / (warmup_steps + 1) of the rate.

    Each of the optimizer's groups has its own rate, and all are scaled together, after every step.

    Args:
        optimizer: the optimizer; its learning rate is the peak.
        warmup_steps: steps until the peak.
        total_steps: steps until the end; afterwards the rate is constant.
        final_share: fraction of the peak at the end.

    Raises:
        ValueError: for numbers of steps or shares that are not possible.
    """

    def __init__(
        self, optimizer: Optimizer, warmup_steps: int, total_steps: int, final_share: float = 0.1
    ) -> None:
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps {warmup_steps} is negative: use 0 or more")
        if total_steps < 1:
            raise ValueError(f"total_steps {total_steps} must be 1 or more")
        if warmup_steps > total_steps:
            raise ValueError(
                f"warmup_steps {warmup_steps} must be no more than total_steps {total_steps}"
            )
        check_share("final_share", final_share)
        self.warmup_steps, self.total_steps = warmup_steps, total_steps
        self.final_share = final_share
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each parameter group at this step."""
        step = self.last_epoch
        if step < self.warmup_steps:
            share = (step + 1) / (self.warmup_steps + 1)
        else:
            share = self.final_share + (1 - self.final_share) * self.height(step)
        return [base * share for base in self.base_lrs]

    @abstractmethod
    def height(self, step: int) -> float:
        """How far above the final rate a step after the warm-up is: 1 at the peak, 0 at the end."""

    def check_end(self, steps: int) -> None:
        """Raise UsageError if a run of so many steps would learn nothing in the last ones."""
        if self.final_share > 0 or 0 <= steps <= self.total_steps:
            return
        until = f"the run goes on to step {steps:,}" if steps > 0 else "the run has no last step"
        raise UsageError(
            f"--model.lr_scheduler: the learning rate is 0 from step {self.total_steps:,} on, its "
            f"total_steps, and {until}: give --model.lr_scheduler.total_steps "
            f"{steps if steps > 0 else 'N, as many as the run can take'}"
        )

    def progress(self, step: int) -> float:
        """Fraction of the steps between warm-up and end that have been taken."""
        length = max(1, self.total_steps - self.warmup_steps)
        return min(1.0, (step - self.warmup_steps) / length)


def check_share(name: str, value: float) -> None:
    """Raise ValueError for a number that is not between 0 and 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} {value} must be between 0 and 1")


class WarmupCosine(Warmup):
    """Linear warm-up, then half a cosine down to a fraction of the peak (arXiv:1608.03983).

    Args:
        optimizer: the optimizer; its learning rate is the peak.
        warmup_steps: steps until the peak.
        total_steps: steps until the end of the cosine; afterwards the rate is constant.
        final_share: fraction of the peak at the end.
    """

    def height(self, step: int) -> float:
        return (1 + math.cos(math.pi * self.progress(step))) / 2


class WarmupLinear(Warmup):
    """Linear warm-up, then a straight line down to a fraction of the peak.

    Down to 0 it is the best of several schedules in arXiv:2502.15938.

    Args:
        optimizer: the optimizer; its learning rate is the peak.
        warmup_steps: steps until the peak.
        total_steps: steps until the end of the line; afterwards the rate is constant.
        final_share: fraction of the peak at the end.
    """

    def height(self, step: int) -> float:
        return 1 - self.progress(step)


class WarmupStableDecay(Warmup):
    """Linear warm-up, then the peak, then a straight line down (arXiv:2404.06395).

    The line takes the last round(decay_share * total_steps) steps.

    A run can be resumed from any step before the line with a larger `total_steps`, as if it had
    been planned so.

    Args:
        optimizer: the optimizer; its learning rate is the peak.
        warmup_steps: steps until the peak.
        total_steps: steps until the end of the line; afterwards the rate is constant.
        decay_share: fraction of `total_steps` that the line takes.
        final_share: fraction of the peak at the end.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int,
        total_steps: int,
        decay_share: float = 0.2,
        final_share: float = 0.0,
    ) -> None:
        check_share("decay_share", decay_share)
        if warmup_steps + round(decay_share * total_steps) > total_steps >= warmup_steps:
            raise ValueError(
                f"warmup_steps {warmup_steps} and decay_share {decay_share} of total_steps "
                f"{total_steps} are more than all steps: use a smaller one"
            )
        self.decay_share = decay_share
        super().__init__(optimizer, warmup_steps, total_steps, final_share)

    def height(self, step: int) -> float:
        length = max(1, round(self.decay_share * self.total_steps))
        return min(1.0, max(0.0, (self.total_steps - step) / length))
