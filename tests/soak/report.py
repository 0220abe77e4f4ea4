"""What was killed or stopped and what differed: a log, counts, tables in docs/reliability.md."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soak.kill import ALL, LAUNCHER, ONE, STOPS
from soak.kinds import KINDS, STOPPED_KINDS, Kind

KILLS = "kills"
WHO = {KILLS: (ONE, ALL, LAUNCHER), "stops": tuple(number.name for number in STOPS)}
"""What happens to the runs, and to whom or by what."""

OF = {KILLS: KINDS, "stops": STOPPED_KINDS}
"""The kinds of runs to which it happens."""

Record = dict[str, Any]


def records(log: Path) -> list[Record]:
    """The runs that have ended, in order."""
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]


def kills(found: list[Record]) -> int:
    """How often something was killed."""
    return sum(len(record["blows"]) for record in found)


def wrong(found: list[Record]) -> list[str]:
    """Everything that should not have happened."""
    lines = []
    for record in found:
        about = f"{record['kind']}, seed {record['seed']}"
        lines += [f"{about}: differs in {what}" for what in record["differences"]]
        lines += [f"{about}: {blow['who']}: {w}" for blow in record["blows"] for w in blow["wrong"]]
    return lines


def summary(found: list[Record], seed: int, what: str = KILLS) -> Record:
    """The figures of all runs that were killed, or stopped."""
    kinds = {}
    found = of(OF[what], found)
    for kind in OF[what]:
        own = of([kind], found)
        blows = [blow for record in own for blow in record["blows"]]
        kinds[kind.name] = {
            **{who: sum(blow["who"] == who for blow in blows) for who in WHO[what]},
            "while writing": sum(blow["writing"] for blow in blows),
            "longest_s": max((round(blow["ended_s"], 1) for blow in blows), default=0.0),
            "differences": sum(len(record["differences"]) for record in own),
            "wrong": sum(len(blow["wrong"]) for blow in blows),
        }
    return {
        "seed": seed,
        what: kills(found),
        "differences": sum(len(record["differences"]) for record in found),
        "seconds": round(sum(record["seconds"] for record in found)),
        "kinds": kinds,
    }


def of(kinds: Sequence[Kind], found: list[Record]) -> list[Record]:
    """The runs of some kinds."""
    names = {kind.name for kind in kinds}
    return [record for record in found if record["kind"] in names]


def told(figures: Record, what: str = KILLS) -> str:
    """How many there were, and how many differences."""
    return f"{figures[what]} {what}, {figures['differences']} differences"


def table(figures: Record, what: str = KILLS) -> str:
    """The figures in Markdown."""
    heads = [*WHO[what], "while a checkpoint was written", "all ended within", "differences"]
    lines = [f"| runs | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for name, own in figures["kinds"].items():
        cells = [*(own[who] for who in WHO[what]), own["while writing"], f"{own['longest_s']} s"]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} | {own['differences']} |")
    lines += [
        "",
        f"{told(figures, what)}. Seed {figures['seed']}; these runs took {figures['seconds']:,} s.",
    ]
    return "\n".join(lines) + "\n"


def keep(path: Path, figures: Record, what: str = KILLS) -> None:
    """Write the figures beside those of others, and the table into the document of that name."""
    held = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(held | {f"soak {what}": figures}, indent=2) + "\n")
    document = path.with_suffix(".md")
    begin, end = (f"<!-- make soak, {what}: {edge} -->" for edge in ("begin", "end"))
    before, _, rest = document.read_text().partition(f"{begin}\n")
    _, _, after = rest.partition(end)
    document.write_text(f"{before}{begin}\n{table(figures, what)}{end}{after}")
