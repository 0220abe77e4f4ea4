"""The plan of a comparison: what is trained, and for how long."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Equal = Literal["tokens", "flops"]


@dataclass(frozen=True)
class Timing:
    """What a run takes, in seconds, as measured on a few steps.

    Attributes:
        start: until the first step.
        step: per step.
        validation: per validation.
    """

    start: float
    step: float
    validation: float


@dataclass(frozen=True)
class TwinOf:
    """What a dense twin was made for.

    Attributes:
        size: which size agrees: active or total.
        names: the variants it is the twin of.
        difference: its parameters over those of the first of them, minus 1.
    """

    size: str
    names: tuple[str, ...]
    difference: float


@dataclass(frozen=True)
class Variant:
    """One variant of a comparison.

    Attributes:
        name: as the table shows it.
        folder: name of the folder of its runs.
        words: the options of its `makemoe fit`, but for the seed and the folder.
        settings: all its settings but those of a run, with the text's size and hash.
        parameters: number of parameters.
        active: number of parameters that are active for a token.
        flops: floating-point operations of training, per token.
        step_tokens: tokens per step.
        steps: optimizer steps.
        val_every: steps between validations.
        timing: None if it could not be measured.
        twin: None if it is not a dense twin.
        configs: the config files among the words, and the SHA-256 of each.
    """

    name: str
    folder: str
    words: tuple[str, ...]
    settings: dict[str, Any]
    parameters: int
    active: int
    flops: int
    step_tokens: int
    steps: int
    val_every: int
    timing: Timing | None = None
    twin: TwinOf | None = None
    configs: dict[str, str] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens that a run sees."""
        return self.steps * self.step_tokens

    @property
    def seconds(self) -> float | None:
        """About how long a run takes, in seconds."""
        if self.timing is None:
            return None
        validations = self.steps // self.val_every
        return (
            self.timing.start
            + self.steps * self.timing.step
            + validations * (self.timing.validation)
        )


@dataclass(frozen=True)
class Plan:
    """Every variant, for every seed.

    Attributes:
        variants: in the order of the table.
        seeds: the seeds, the same for every variant.
        equal: what is equal in all runs.
    """

    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    equal: Equal

    def as_plain(self) -> dict[str, Any]:
        """The plan as JSON has it."""
        return asdict(self)

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> "Plan":
        """The plan that `as_plain` wrote."""
        variants = tuple(variant_of(one) for one in plain["variants"])
        return cls(variants, tuple(plain["seeds"]), plain["equal"])


def variant_of(plain: Mapping[str, Any]) -> Variant:
    """The variant that JSON has."""
    timing, twin = plain["timing"], plain["twin"]
    return Variant(
        **{
            **plain,
            "words": tuple(plain["words"]),
            "timing": timing and Timing(**timing),
            "twin": twin and TwinOf(**{**twin, "names": tuple(twin["names"])}),
        }
    )


def difference(one: Mapping[str, Any], other: Mapping[str, Any], within: str = "") -> str | None:
    """The first setting in which two settings differ, and both values; None if they agree."""
    for key in dict.fromkeys((*one, *other)):
        name, a, b = f"{within}{key}", one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if found := difference(a, b, f"{name}."):
                return found
        elif a != b:
            return f"{name} was {shown(a)}, and is now {shown(b)}"
    return None


def shown(value: Any) -> str:
    """A setting in a few characters."""
    text = str(value["class_path"] if isinstance(value, dict) and "class_path" in value else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def makespan(seconds: Sequence[float], jobs: int) -> float:
    """How long runs take together, in this order, `jobs` at a time."""
    free = [0.0] * jobs
    for one in seconds:
        at = free.index(min(free))
        free[at] += one
    return max(free, default=0.0)


def about(seconds: float) -> str:
    """A time in the words of an estimate."""
    if seconds < 90:
        return f"about {max(1, math.ceil(seconds))} s"
    minutes = math.ceil(seconds / 60)
    if minutes < 90:
        return f"about {minutes} min"
    return f"about {minutes // 60} h {minutes % 60:02d} min"
