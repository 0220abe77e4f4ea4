"""Puts a sweep into docs/sweep.md: `python -m benchmarks.searched [--keep FOLDER]`.

`--keep` first stores its data in docs/results/sweep.json and its picture in docs/pictures.
"""

import json
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.figures import markdown, replaced
from benchmarks.kept import RESULTS, when_and_where, without_folders
from benchmarks.page import filled, joined
from benchmarks.scripts import Options, run
from makemoe.errors import DataError

MAKER = "benchmarks.searched"
PROG = f"python -m {MAKER}"
DOCS = Path(__file__).parents[1] / "docs"
DOC, PICTURE = DOCS / "sweep.md", DOCS / "pictures" / "sweep.png"
KEPT = RESULTS / "sweep.json"

BEST = 8
"""Trials of the table."""

FEW = 3
"""A mean over so many of the best trials of a value is less a matter of luck than the best one."""


def keep(folder: Path, kept: Path = KEPT, picture: Path = PICTURE) -> None:
    """Store a sweep with its date and machine.

    Raises:
        DataError: if the folder holds no sweep, or one that has not ended.
    """
    source = folder / "sweep.json"
    if not source.is_file() or not (folder / "sweep.png").is_file():
        raise DataError(f"{folder} is not the folder of a sweep that has ended")
    plain = json.loads(source.read_text(encoding="utf-8"))
    if any(trial["state"] in ("waiting", "running") for trial in plain["trials"]):
        raise DataError(f"{folder} has trials that have not ended: give its command again")
    plain["command"] = without_folders(plain["command"])
    about = when_and_where(source)
    kept.write_text(json.dumps(about | plain, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(folder / "sweep.png", picture)


def searched(kept: Path = KEPT) -> str:
    """The sweep as docs/sweep.md shows it; nothing if there is none."""
    if not kept.is_file():
        return ""
    plain = json.loads(kept.read_text(encoding="utf-8"))
    trials = plain["trials"]
    ended = [t for t in trials if t["state"] == "complete"]
    complete = sorted(distinct(ended), key=lambda t: t["loss"])
    pruned = sum(t["state"] == "pruned" for t in trials)
    keys = list(plain["searched"]["space"])
    names = [key.rpartition(".")[2] for key in keys]
    rows = [
        [
            str(t["number"]),
            *(told(t["values"][key]) for key in keys),
            str(t["width"]),
            f"{t['parameters'] / 1e6:.2f} M",
            f"{t['loss']:.4f}",
        ]
        for t in complete[:BEST]
    ]
    head = ["trial", *names, "width", "parameters", "val loss"]
    shares = ", ".join(
        f"{key.rpartition('.')[2]} {share:.0%}" for key, share in plain["importances"].items()
    )
    return joined(
        f"    {plain['command']}",
        filled(
            f"{len(ended)} trials were trained to their ends, {pruned} were pruned; "
            f"{trials[0]['tokens']:,} tokens each. The best of {len(complete)} settings:"
        ),
        markdown(head, rows),
        filled(f"Importance: {shares}."),
        *(by_value(complete, key) for key in keys if is_small(complete, key)),
        filled(
            f"Measured {plain['measured']} on {plain['machine']}, torch {plain['torch']}. All "
            f"trials: [sweep.json](results/sweep.json)."
        ),
        "![History, importance, all trials, and experts against the loss](pictures/sweep.png)",
    )


def distinct(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first trial of each setting: a sampler may propose one twice."""
    return list({json.dumps(t["values"], sort_keys=True): t for t in reversed(trials)}.values())


def is_small(complete: list[dict[str, Any]], key: str) -> bool:
    """Whether an option has so few values that each is worth a line."""
    return len({t["values"][key] for t in complete}) <= 5


def by_value(complete: list[dict[str, Any]], key: str) -> str:
    """The best losses for each value of an option."""
    rows = []
    for value in sorted(
        {t["values"][key] for t in complete}, key=lambda v: (isinstance(v, str), v)
    ):
        losses = sorted(t["loss"] for t in complete if t["values"][key] == value)
        best = fmean(losses[:FEW])
        rows.append([told(value), str(len(losses)), f"{losses[0]:.4f}", f"{best:.4f}"])
    name = key.rpartition(".")[2]
    return markdown([name, "settings", "lowest val loss", f"mean of the {FEW} lowest"], rows)


def told(value: Any) -> str:
    """A value in few characters."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def page(kept: Path = KEPT) -> str:
    """docs/sweep.md as it is to be."""
    return replaced(DOC.read_text(encoding="utf-8"), {"sweep": searched(kept)}, MAKER)


def main() -> None:
    """Store what is to be kept, then renew the page."""
    parser = Options(PROG, description=__doc__)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a folder of makemoe sweep")
    options = parser.parse_args()
    if options.keep:
        keep(options.keep)
    DOC.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    run(PROG, main)
