"""What the recipes are to reach, and within which budget."""

from typing import NamedTuple

from benchmarks.kept import Variant


class Recipe(NamedTuple):
    """A config, and what it was to reach.

    Attributes:
        name: of the config.
        goal: mean validation loss at the end, nats per token.
        parameters: at most so many, in total.
        tokens: at most so many, in training.
        minutes: of wall clock on two CPU cores, at most.
    """

    name: str
    goal: float
    parameters: float | None = None
    tokens: float | None = None
    minutes: float | None = None

    @property
    def budget(self) -> str:
        """The bounds in words."""
        bounds = []
        if self.parameters is not None:
            bounds.append(f"{self.parameters / 1e6:.1f} M parameters")
        if self.tokens is not None:
            bounds.append(f"{self.tokens / 1e6:.2f} M tokens")
        if self.minutes is not None:
            bounds.append(f"{self.minutes:g} minutes")
        return ", ".join(bounds) or "any"

    def verdict(self, variant: Variant) -> str:
        """Whether a variant reached the goal within the budget."""
        bounds = (
            (self.goal, variant["final_val_loss"]["mean"]),
            (self.parameters, variant["parameters"]),
            (self.tokens, variant["tokens"]),
            (self.minutes, variant["seconds"] / 60),
        )
        reached = all(bound is None or value <= bound for bound, value in bounds)
        return "reached" if reached else "not reached"


RECIPES = (
    Recipe("seed_budget", 1.56, parameters=9.0e6, tokens=2.56e6),
    Recipe("seed_tokens", 1.50, parameters=9.0e6, tokens=2.56e6),
    Recipe("laptop", 1.55, minutes=3),
    Recipe("shakespeare", 1.45),
)
