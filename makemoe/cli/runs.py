"""`makemoe runs`: lists all runs. Does not import torch or Lightning."""

import json
import math
import re
import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from makemoe.cli.parser import OneLineErrors
from makemoe.files import open_regular
from makemoe.locks import is_held
from makemoe.run import LOCK, Run, RunSettings, logged_losses, runs_in

LARGEST_CONFIG = 1 << 20
"""Maximum size of a config.yaml, in bytes; makemoe writes smaller ones."""

UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


class Summary(NamedTuple):
    """The state of a run; None for what its files do not say.

    Attributes:
        name: name of its folder.
        folder: path of its folder.
        step: the last logged step.
        max_steps: total number of steps it was started for.
        best_val_loss: lowest validation loss, in nats per token.
        best_step: step of the lowest validation loss.
        written: time of its last write, ISO 8601 in UTC.
        age_s: seconds since then.
        running: whether a process is training it now.
    """

    name: str
    folder: str
    step: int | None
    max_steps: int | None
    best_val_loss: float | None
    best_step: int | None
    written: str
    age_s: int
    running: bool


def runs(arguments: Sequence[str]) -> int:
    """List the runs, newest first, and return the exit status."""
    options = parser().parse_args(arguments)
    now = time.time()
    found = [summary(run, now) for run in runs_in(options.root)]
    if options.json:
        print(json.dumps([one._asdict() for one in found], indent=2))
    elif found:
        print("\n".join(table(found, shutil.get_terminal_size((80, 24)).columns)))
    else:
        print(f"no runs in {options.root}/ yet; start one: makemoe fit --config quickstart")
    return 0


def parser() -> OneLineErrors:
    """The parser of `runs`."""
    own = OneLineErrors(
        prog="makemoe runs",
        allow_abbrev=False,
        description="List all runs, newest first: logged and total steps, lowest validation loss "
        "in nats per token, time since the last write, and whether the run is running. Other "
        "commands accept the name of a run as --ckpt_path.",
    )
    own.add_argument(
        "--run.root",
        metavar="DIR",
        dest="root",
        default=RunSettings.root,
        help="folder of all runs (%(default)s)",
    )
    own.add_argument("--json", action="store_true", help="print JSON, with more details")
    return own


def summary(run: Run, now: float) -> Summary:
    """Summarize the files of a run."""
    step, best = None, None
    for row_step, val_loss in logged_losses(run.folder):
        step = row_step
        if math.isfinite(val_loss) and (best is None or val_loss < best[0]):
            best = (val_loss, row_step)
    return Summary(
        name=run.name,
        folder=str(run.folder),
        step=step,
        max_steps=max_steps(run.folder / "config.yaml"),
        best_val_loss=best and best[0],
        best_step=best and best[1],
        written=datetime.fromtimestamp(run.written, UTC).isoformat(timespec="seconds"),
        age_s=max(0, round(now - run.written)),
        running=is_held(run.folder / LOCK),
    )


def max_steps(path: Path) -> int | None:
    """The `max_steps` in a config.yaml. Found without a YAML parser: the file may not be valid."""
    try:
        with open_regular(path) as file:
            text = file.read(LARGEST_CONFIG).decode(errors="replace")
    except OSError:
        return None
    trainer = re.search(r"^trainer:(.*?)(?=^[^\s#]|\Z)", text, re.MULTILINE | re.DOTALL)
    steps = trainer and re.search(r"\bmax_steps: *([0-9]{1,18})\b", trainer.group(1))
    return int(steps.group(1)) if steps else None


def table(found: Sequence[Summary], width: int) -> list[str]:
    """The runs in columns; names are shortened if a line would be too long."""
    rows = [
        (
            one.name,
            f"{dash(one.step)} of {dash(one.max_steps)}",
            "-" if one.best_val_loss is None else f"{one.best_val_loss:.4f}",
            age(one.age_s),
            "running" if one.running else "",
        )
        for one in found
    ]
    heads = ("run", "steps", "best val_loss", "age", "")
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    widths[0] = max(len(heads[0]), min(widths[0], width - sum(widths[1:]) - 2 * (len(heads) - 1)))
    return [
        "  ".join(
            (
                shortened(row[0], widths[0]).ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:4], widths[1:4], strict=True)),
                row[4],
            )
        ).rstrip()
        for row in (heads, *rows)
    ]


def shortened(name: str, width: int) -> str:
    """A name without its middle if it is too long. Its end is kept: that is the run's number."""
    printable = "".join(c if c.isprintable() else "?" for c in name)
    if len(printable) <= width:
        return printable
    end = min(6, (width - 1) // 2)
    return f"{printable[: width - end - 1]}…{printable[-end:]}"


def dash(count: int | None) -> str:
    """A count, or a dash."""
    return "-" if count is None else f"{count}"


def age(seconds: int) -> str:
    """A time span in its largest unit."""
    name, size = next((unit for unit in UNITS if seconds >= unit[1]), UNITS[-1])
    return f"{seconds // size} {name}"
