"""How hard a text's last tenth is, and that of the rest: `python -m benchmarks.ngram TEXT`.

An n-gram model has nothing to choose, so its losses tell how far two texts differ by themselves.
They are stored in docs/results, for docs/results.md.
"""

import json
import math
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.kept import NGRAM
from benchmarks.scripts import Options, run
from makemoe.data.windows import validation_begins
from makemoe.errors import DataError

PROG = "python -m benchmarks.ngram"
ORDER = 6
"""Characters that the model looks back."""

SHORTEST = 1000
"""Shortest text in which each part has more than a few characters."""


def ngram_loss(train: str, test: str, order: int, symbols: int) -> float:
    """Nats per character of an interpolated n-gram model (Witten and Bell 1991, method C).

    A context h that was followed n times, by u different characters, gives the next character c
    the probability (count(h c) + u p(c | shorter context)) / (n + u); below all is 1 / symbols.

    Args:
        train: what the model counts.
        test: what it predicts, from its `order`-th character on.
        order: length of the longest context.
        symbols: number of characters there are.
    """
    counts: Counter[str] = Counter()
    for n in range(order + 1):
        counts.update(train[i - n : i + 1] for i in range(n, len(train)))
    followed: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for gram, count in counts.items():
        followed[gram[:-1]] += count
        kinds[gram[:-1]] += 1
    total = 0.0
    for i in range(order, len(test)):
        p = 1 / symbols
        for n in range(order + 1):
            context = test[i - n : i]
            if context in kinds:
                u = kinds[context]
                p = (counts[context + test[i]] + u * p) / (followed[context] + u)
        total -= math.log(p)
    return total / (len(test) - order)


def losses(text: str, order: int = ORDER) -> dict[str, float]:
    """The losses on the last tenth, and on the last tenth of what comes before it."""
    last = validation_begins(len(text))
    before = validation_begins(last)
    symbols = len(set(text))
    return {
        "last": ngram_loss(text[:last], text[last:], order, symbols),
        "unseen": ngram_loss(text[:before], text[before:last], order, symbols),
    }


def main() -> None:
    """Measure, print and store."""
    parser = Options(PROG, description="Measure how hard two parts of a text are.")
    parser.add_argument("text", type=Path, help="a file, such as tinyshakespeare.txt")
    path = parser.parse_args().text
    text = path.read_text(encoding="utf-8")
    if len(text) < SHORTEST:
        raise DataError(f"{path} has {len(text)} characters: give at least {SHORTEST:,}")
    found = losses(text)
    print(*(f"{name}: {loss:.4f} nats per character" for name, loss in found.items()), sep="\n")
    measured = {"measured": f"{datetime.now(UTC):%Y-%m-%d}", "order": ORDER, "losses": found}
    NGRAM.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(PROG, main)
