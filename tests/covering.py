"""Few combinations of options, in which every two values of two options occur together."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

Combination = dict[str, str]
Pair = frozenset[tuple[str, str]]


def pairs_of(combination: Mapping[str, str]) -> set[Pair]:
    """The pairs of values in a combination."""
    return {frozenset(pair) for pair in combinations(combination.items(), 2)}


def covering(options: Mapping[str, Sequence[str] | Mapping[str, Any]]) -> list[Combination]:
    """Combinations that together have every pair of values of two options.

    Each begins with a pair that is missing, and takes for every other option the value with which
    most pairs that are missing are covered.
    """
    missing = {
        frozenset(((one, a), (other, b)))
        for one, other in combinations(options, 2)
        for a in options[one]
        for b in options[other]
    }
    found: list[Combination] = []
    while missing:
        new = dict(min(sorted(pair) for pair in missing))
        for name, values in options.items():
            if name not in new:
                new[name] = max(values, key=lambda v: len(missing & pairs_of(new | {name: v})))
        missing -= pairs_of(new)
        found.append(new)
    return found
