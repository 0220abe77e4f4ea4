"""What came of a sweep: its table, its data, and its best trial as a config."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

import yaml

from makemoe.search.space import Sweep, shown
from makemoe.search.study import Attempted
from makemoe.search.table import in_columns, rounded

ORDER = ("complete", "pruned", "running", "waiting", "failed")
"""States in the order of the table."""


def ranked(attempted: Sequence[Attempted]) -> list[Attempted]:
    """Trials by state, and by loss within a state."""

    def place(one: Attempted) -> tuple[int, float, int]:
        return ORDER.index(one.state), one.loss if one.loss is not None else 0.0, one.number

    return sorted(attempted, key=place)


def best_of(attempted: Sequence[Attempted]) -> Attempted | None:
    """The complete trial with the lowest loss; None if none is complete."""
    first = next(iter(ranked(attempted)), None)
    return first if first is not None and first.state == "complete" else None


def sweep_table(sweep: Sweep, attempted: Sequence[Attempted], room: int | None = None) -> list[str]:
    """The trials that have begun, the best first, in lines of at most `room`."""
    keys = [*sweep.short().values()]
    narrows = ["width"] if sweep.equal == "flops" else []
    heads = ("trial", *keys, *narrows, "parameters", "active", "val_loss", "seconds", "")
    rows = [heads]
    begun = [one for one in ranked(attempted) if one.state != "waiting" or one.values]
    for one in begun:
        values = shown(sweep, one.values)
        facts = one.facts
        sizes = [
            rounded(facts[name]) if name in facts else "-" for name in ("parameters", "active")
        ]
        width = [str(facts.get("width", "-")) for _ in narrows]
        seconds = f"{facts['seconds']:,.0f}" if "seconds" in facts else "-"
        state = "" if one.state == "complete" else one.state
        own = [values.get(key, "-") for key in keys]
        rows.append((str(one.number), *own, *width, *sizes, told_loss(one), seconds, state))
    failures: dict[str, list[int]] = {}
    for one in begun:
        if one.state == "failed":
            failures.setdefault(str(one.facts.get("why", "")), []).append(one.number)
    told = [
        f"failed: trial {', '.join(map(str, numbers))}: {why}" for why, numbers in failures.items()
    ]
    return [*in_columns(rows, room), *told]


def told_loss(one: Attempted) -> str:
    """The loss of a trial, with the spread over its seeds."""
    if one.loss is None or one.state not in ("complete", "pruned", "running"):
        return "-"
    losses = list(one.facts.get("losses", {}).values())
    if one.state == "complete" and len(losses) > 1:
        return f"{one.loss:.4f} ± {stdev(losses):.4f}"
    return f"{one.loss:.4f}"


def sweep_as_plain(
    sweep: Sweep, attempted: Sequence[Attempted], importances: Mapping[str, float]
) -> dict[str, Any]:
    """The trials as JSON has them: losses in nats per token, times in seconds."""
    return {
        "searched": sweep.searched(),
        "importances": dict(importances),
        "trials": [
            {"number": one.number, "state": one.state, "values": one.values, "loss": one.loss}
            | {key: fact for key, fact in one.facts.items() if key != "settings"}
            for one in attempted
        ],
    }


def best_config(best: Attempted, seed: int, path: Path, command: str) -> str:
    """The text of a config that trains the best trial again."""
    settings = {"seed": seed} | best.facts["settings"]
    lines = "\n#   ".join(command.splitlines())
    body = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100)
    return (
        f"# makemoe fit --config {shlex.quote(str(path))}\n"
        f"#\n"
        f"# Trial {best.number} of a sweep: val_loss {told_loss(best)} nats per token. It was:\n"
        f"#   {lines}\n{body}"
    )
