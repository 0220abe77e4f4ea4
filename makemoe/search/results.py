"""What came of a comparison: losses of all runs, means and spreads, as data."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean, stdev
from typing import Any, NamedTuple

from makemoe.run import logged_losses
from makemoe.search.plan import Plan, Variant
from makemoe.search.runs import Run

OF_TEXT = ("corpus", "text_key", "split_seed")
"""Settings of the data that say what is validated."""


class Spread(NamedTuple):
    """Losses of several seeds, in nats per token.

    Attributes:
        mean: their mean.
        spread: their sample standard deviation; None for one seed.
        n: number of seeds.
    """

    mean: float
    spread: float | None
    n: int


Curve = list[tuple[int, float]]
"""Steps and validation losses."""


class Result(NamedTuple):
    """What came of a variant.

    Attributes:
        variant: the variant.
        runs: its runs, in the order of the seeds.
        curves: of each finished run, steps and validation losses.
        bits: the same in bits per byte; empty if that was not logged.
    """

    variant: Variant
    runs: list[Run]
    curves: dict[int, Curve]
    bits: dict[int, Curve]

    @property
    def best(self) -> Spread | None:
        """The lowest validation losses; None if no run has finished."""
        return spread([min(loss for _, loss in curve) for curve in self.curves.values()])

    @property
    def final(self) -> Spread | None:
        """The last validation losses; None if no run has finished."""
        return spread([curve[-1][1] for curve in self.curves.values()])

    @property
    def final_bits(self) -> Spread | None:
        """The last validation losses in bits per byte; None if they are not known."""
        return spread([curve[-1][1] for curve in self.bits.values()])

    @property
    def seconds(self) -> float | None:
        """Mean duration of a finished run; None if none has finished."""
        done = [run.seconds for run in self.runs if run.is_finished]
        return fmean(done) if done else None

    @property
    def failures(self) -> list[Run]:
        """The runs that failed."""
        return [run for run in self.runs if run.status == "failed"]


def spread(losses: Sequence[float]) -> Spread | None:
    """Mean and sample standard deviation; None if there are no losses."""
    if not losses:
        return None
    return Spread(fmean(losses), stdev(losses) if len(losses) > 1 else None, len(losses))


def result_of(variant: Variant, runs: Sequence[Run]) -> Result:
    """The result of a variant, from the files of its runs."""
    own = [run for run in runs if run.variant is variant]
    return Result(variant, own, curves_of(own, "val_loss"), curves_of(own, "val_bits_per_byte"))


def curves_of(runs: Sequence[Run], name: str) -> dict[int, Curve]:
    """Steps and losses of each finished run that has any, by seed."""
    curves = {
        run.seed: [pair for pair in logged_losses(run.folder, name) if math.isfinite(pair[1])]
        for run in runs
        if run.is_finished
    }
    return {seed: curve for seed, curve in curves.items() if curve}


def are_comparable(variants: Sequence[Variant]) -> bool:
    """Whether losses per token mean the same in all variants: they have the same tokenizer."""
    kinds = [variant.settings.get("data", {}).get("tokenizer") for variant in variants]
    return all(kind == kinds[0] for kind in kinds)


def differ_in_text(variants: Sequence[Variant]) -> bool:
    """Whether variants are validated on different texts: no losses compare then."""
    return not all(is_of_same_text(variants[0], variant) for variant in variants)


def is_of_same_text(one: Variant, other: Variant) -> bool:
    """Whether two variants have the same text: the same tokens, if the tokenizers are the same.

    Otherwise it is a question of where the text comes from, and how it is split.
    """
    if are_comparable([one, other]):
        return bool(one.settings.get("text") == other.settings.get("text"))
    own, others = (variant.settings.get("data", {}) for variant in (one, other))
    return all(own.get(key) == others.get(key) for key in OF_TEXT)


def as_plain(plan: Plan, results: Sequence[Result]) -> dict[str, Any]:
    """The results as JSON has them: losses in nats per token, times in seconds."""
    return {
        "equal": plan.equal,
        "seeds": list(plan.seeds),
        "variants": [variant_as_plain(result) for result in results],
    }


def variant_as_plain(result: Result) -> dict[str, Any]:
    """The result of a variant as JSON has it."""
    variant = result.variant
    return {
        "name": variant.name,
        "folder": variant.folder,
        "options": list(variant.words),
        "parameters": variant.parameters,
        "active_parameters": variant.active,
        "flops_per_token": variant.flops,
        "steps": variant.steps,
        "tokens": variant.tokens,
        "flops": variant.tokens * variant.flops,
        "twin": None if variant.twin is None else asdict(variant.twin),
        "best_val_loss": result.best and result.best._asdict(),
        "final_val_loss": result.final and result.final._asdict(),
        "final_val_bits_per_byte": result.final_bits and result.final_bits._asdict(),
        "seconds": result.seconds,
        "runs": [
            run_as_plain(run, result.curves.get(run.seed, []), result.bits.get(run.seed, []))
            for run in result.runs
        ],
    }


def run_as_plain(run: Run, curve: Curve, bits: Curve) -> dict[str, Any]:
    """A run as JSON has it."""
    tokens, in_bits = run.variant.step_tokens, dict(bits)
    best = min(curve, key=lambda point: point[1], default=(None, None))
    return {
        "seed": run.seed,
        "folder": str(run.folder),
        "status": run.status,
        "why": run.why or None,
        "seconds": round(run.seconds, 1),
        "best_val_loss": best[1],
        "best_step": best[0],
        "final_val_loss": curve[-1][1] if curve else None,
        "final_val_bits_per_byte": bits[-1][1] if bits else None,
        "curve": {
            "step": [step for step, _ in curve],
            "tokens": [step * tokens for step, _ in curve],
            "flops": [step * tokens * run.variant.flops for step, _ in curve],
            "val_loss": [loss for _, loss in curve],
            "val_bits_per_byte": [in_bits.get(step) for step, _ in curve] if bits else None,
        },
    }
