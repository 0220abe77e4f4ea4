"""Which cases a run tries: a sequence that follows from its seed."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from fuzz.case import Case
from fuzz.checkpoints import damaged_bytes, hostile_fields
from fuzz.commands import commands
from fuzz.configs import configs
from fuzz.surface import Surface
from fuzz.texts import texts

BATCH = 25
ORDER = (
    *("commands", "fields", "configs", "bytes", "commands", "texts"),
    *("fields", "commands", "bytes", "configs", "commands", "fields"),
)
"""Kinds of one batch after another, again and again."""


Strategy = SearchStrategy[Case]


def strategies(surface: Surface, prepared: Path) -> dict[str, Callable[[int], Strategy]]:
    """How the inputs of each kind are made, by the number of the batch of that kind."""
    constant = {
        "configs": configs(surface),
        "texts": texts(),
        "fields": hostile_fields(prepared),
        "bytes": damaged_bytes(),
    }
    return {
        "commands": partial(commands, surface),
        **{kind: partial(_constant, made) for kind, made in constant.items()},
    }


def _constant(made: Strategy, number: int) -> Strategy:
    return made


def cases(surface: Surface, prepared: Path, base: int) -> Iterator[Case]:
    """Cases without end, none twice."""
    made = strategies(surface, prepared)
    seen = set()
    turns = Counter[str]()
    for number in count():
        kind = ORDER[number % len(ORDER)]
        turns[kind] += 1
        for case in batch(made[kind](turns[kind]), base * 1_000_003 + number):
            if case.id not in seen:
                seen.add(case.id)
                yield case


def batch(strategy: Strategy, number: int) -> list[Case]:
    """Some cases of one kind, the same for the same number."""
    drawn: list[Case] = []

    @seed(number)
    @settings(
        max_examples=BATCH,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(case: Case) -> None:
        drawn.append(case)

    collect()
    return drawn
