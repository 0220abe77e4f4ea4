"""`make soak`: kill and stop runs at random moments, and compare them with undisturbed ones."""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from scripts import Options

from soak import report
from soak.kinds import Kind
from soak.trial import killed

REPOSITORY = Path(__file__).resolve().parents[2]
BLOWS = 5
"""How often one run is killed."""


def main() -> int:
    """Kill and stop until there were enough; 0 if nothing differs."""
    options = parse()
    log = options.folder / "log.jsonl"
    if options.afresh and log.exists():
        shutil.rmtree(options.folder)
    options.folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for what, wanted in (("kills", options.kills), ("stops", options.stops)):
        if not wanted:
            continue
        kinds = [kind for kind in report.OF[what] if options.kind in (None, kind.name)]
        found = tried(kinds, wanted, options.seed, log)
        figures = report.summary(found, options.seed, what)
        print(report.table(figures, what))
        if options.keep:
            report.keep(options.keep, figures, what)
        lines += report.wrong(found)
        for line in lines:
            print(line, file=sys.stderr)
        print(report.told(figures, what))
    return 1 if lines else 0


def tried(kinds: Sequence[Kind], wanted: int, first: int, log: Path) -> list[report.Record]:
    """The runs of these kinds that were killed or stopped so often in all; those in the log count.

    Args:
        kinds: which runs.
        wanted: how many kills or stops.
        first: the first seed.
        log: where each run is written down.
    """
    known = {(record["kind"], record["seed"]): record for record in report.records(log)}
    found: list[report.Record] = []
    for seed in count(first):
        before = report.kills(found)
        for kind in kinds:
            if (left := wanted - report.kills(found)) <= 0:
                break
            record = known.get((kind.name, seed))
            if record is None:
                record = killed(kind, log.parent, seed, min(BLOWS, left))
                with log.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                told = ", ".join(record["differences"]) or "no difference"
                blows = f"{len(record['blows'])} kills or stops"
                print(f"{kind.name}: {blows}, {told}", file=sys.stderr, flush=True)
            found.append(record)
        if report.kills(found) >= wanted or report.wrong(found):
            break
        if report.kills(found) == before:
            break  # the runs end before they are killed
    return found


def parse() -> argparse.Namespace:
    """The options."""
    parser = Options("python -m soak", __doc__)
    add = parser.add_argument
    add("--kills", type=int, default=50, help="how many kills (%(default)s)")
    add("--stops", type=int, default=30, help="how many requests to stop (%(default)s)")
    add("--seed", type=int, default=1, help="another seed kills at other moments (%(default)s)")
    names = [kind.name for kinds in report.OF.values() for kind in kinds]
    add("--kind", choices=names, help="runs of one kind only")
    add("--folder", type=Path, default=REPOSITORY / ".soak", help="of the runs and the log")
    add("--afresh", action="store_true", help="begin again; otherwise go on where it stopped")
    add("--keep", type=Path, help="write the figures there, and the table beside it")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
