"""How long each variant trains, so that all see equal tokens, or spend equal FLOPs."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from makemoe.errors import UsageError
from makemoe.search.plan import Equal
from makemoe.training.work import Work, steps_to_spend

STEP_COUNTS = (
    *("warmup_steps", "total_steps", "decay_steps", "stable_steps"),
    *("T_max", "T_0", "total_iters", "step_size", "milestones"),
    *("step_size_up", "step_size_down", "start_step"),
)
"""Arguments that are numbers of steps: of makemoe's own schedules and averages, of torch's."""

SPARE = 0.5
"""By what share the number of validations may differ, so that the last one is at the last step."""

CLOSE = 1e-3
"""Lengths that differ by a smaller share of the steps count as equally near."""


class Length(NamedTuple):
    """Optimizer steps of a run, and between two validations; the last step is validated."""

    steps: int
    val_every: int


class Asked(NamedTuple):
    """What a variant's settings ask for.

    Attributes:
        steps: trainer.max_steps.
        val_every: trainer.val_check_interval.
        tokens: tokens per step.
        work: of its model.
    """

    steps: int
    val_every: int
    tokens: int
    work: Work


def length(asked: Asked, first: Asked, equal: Equal) -> Length:
    """How long a variant trains.

    Args:
        asked: what the variant asks for.
        first: what the first variant asks for, with the steps that it trains.
        equal: what all spend as much of as the first.
    """
    tokens = first.steps * first.tokens
    if equal == "flops":
        steps = steps_to_spend(tokens * first.work.flops, asked.work, asked.tokens)
    else:
        steps = max(1, round(tokens / asked.tokens))
    validations = max(1, round(asked.steps / asked.val_every))
    near = divided(steps, validations)
    if steps in (asked.steps, first.steps):
        # Of the nearest length, too: whoever gets it later has the same interval.
        for whole in (steps, near.steps):
            wanted = whole * asked.val_every / asked.steps
            if every := divisor_near(whole, wanted, validations):
                return Length(whole, every)
    return near


def divisor_near(number: int, wanted: float, validations: int) -> int | None:
    """The divisor whose ratio to `wanted` is nearest to 1.

    Of those that lead to about so many validations; None if there are none.
    """
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    counts = counts_near(validations, number)
    divisors = [d for d in {*small, *(number // d for d in small)} if number // d in counts]
    return min(divisors, key=lambda d: (abs(math.log(d / wanted)), d), default=None)


def counts_near(validations: int, steps: int) -> range:
    """Numbers of validations that differ by at most SPARE, as far as there are steps for them."""
    validations = min(validations, steps)
    spare = int(validations * SPARE)
    return range(validations - spare, validations + spare + 1)


def divided(steps: int, validations: int) -> Length:
    """The length nearest to `steps` that is a number of equal intervals near `validations`."""
    wanted = min(validations, steps)

    def of(count: int) -> Length:
        every = max(1, round(steps / count))
        return Length(count * every, every)

    def off(count: int) -> tuple[int, int]:
        return int(abs(of(count).steps - steps) / (CLOSE * steps)), abs(count - wanted)

    return of(min(counts_near(validations, steps), key=off))


def length_words(settings: Mapping[str, Any], wanted: Length) -> list[str]:
    """The options that make settings train so long; schedules and averages follow in proportion."""
    trainer, words = settings["trainer"], []
    if wanted.steps != trainer["max_steps"]:
        words.append(f"--trainer.max_steps={wanted.steps}")
        ratio = wanted.steps / trainer["max_steps"]
        for part in ("lr_scheduler", "averaging"):
            words += scaled_words(part, settings["model"].get(part) or {}, ratio)
    if wanted.val_every != trainer["val_check_interval"]:
        words.append(f"--trainer.val_check_interval={wanted.val_every}")
    return words


def scaled_words(part: str, settings: Mapping[str, Any], ratio: float) -> list[str]:
    """The options that multiply the step counts of a part of the model by a ratio."""
    words = []
    for name, count in (settings.get("init_args") or {}).items():
        if name not in STEP_COUNTS:
            continue
        if isinstance(count, list):
            scaled: Any = [round(one * ratio) for one in count]
        elif isinstance(count, int) and count > 0:
            scaled = max(1, round(count * ratio))
        else:
            continue
        words.append(f"--model.{part}.{name}={scaled}")
    return words


def asked_of(settings: Mapping[str, Any], tokens: int, work: Work) -> Asked:
    """What settings ask for.

    Args:
        settings: of a fit.
        tokens: tokens per step.
        work: of its model.

    Raises:
        UsageError: for a length that is not a number of steps, or without validations.
    """
    trainer = settings["trainer"]
    steps, every = trainer["max_steps"], trainer["val_check_interval"]
    if not isinstance(steps, int) or steps < 1:
        raise UsageError(f"--trainer.max_steps {steps}: compare needs a number of steps")
    if trainer.get("max_time") is not None:
        raise UsageError("--trainer.max_time: variants are compared at equal work: omit it")
    if trainer.get("fast_dev_run"):
        raise UsageError("--trainer.fast_dev_run saves nothing to compare: omit it")
    if type(every) is not int:
        raise UsageError(f"--trainer.val_check_interval {every}: compare needs a number of steps")
    if trainer.get("limit_val_batches") == 0:
        raise UsageError("--trainer.limit_val_batches 0: compare needs validations")
    if trainer.get("enable_checkpointing") is False:
        raise UsageError(
            "--trainer.enable_checkpointing cannot be false: a stopped run resumes from last.ckpt"
        )
    return Asked(steps, every, tokens, work)
