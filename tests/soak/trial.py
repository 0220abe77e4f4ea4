"""One run that is killed or stopped several times and resumed until it ends."""

import random
import shutil
import time
from pathlib import Path
from typing import Any

from soak.differences import differences
from soak.kill import stop, strike
from soak.kinds import RESTARTS, STOPPED_KINDS, Kind
from soak.running import Running


class Stuck(Exception):
    """A run that did not end as it should."""


def undisturbed(kind: Kind, folder: Path) -> Path:
    """The folder of a run that nothing disturbs; trained only once."""
    whole = folder / "whole" / kind.name.replace(" ", "_").replace(",", "")
    done = whole / "done"
    if not done.exists() or done.read_text() != repr(kind):
        shutil.rmtree(whole, ignore_errors=True)
        finish(Running(kind, whole, f"whole-{kind.name}"))
        done.write_text(repr(kind))
    return whole / "run"


def killed(kind: Kind, folder: Path, seed: int, blows: int) -> dict[str, Any]:
    """Train a run that is killed or stopped `blows` times, if it lasts so long, and compare it.

    Returns:
        What happened, as plain values: a line of the log.
    """
    whole = undisturbed(kind, folder)
    root, mark = folder / "killed", f"killed-{seed}-{kind.name}"
    shutil.rmtree(root, ignore_errors=True)
    rng, began, struck = random.Random(f"{seed} {kind.name}"), time.monotonic(), []
    hit = stop if kind in STOPPED_KINDS else strike
    run = Running(kind, root, mark)
    try:
        while len(struck) < blows and (blow := hit(run, rng)) is not None:
            struck.append(blow._asdict())
            if kind.launcher != RESTARTS:
                resumed = (root / "run" / "last.ckpt").exists()
                if not resumed:
                    shutil.rmtree(root / "run", ignore_errors=True)
                run = Running(kind, root, mark, resumed)
        finish(run)
        found = differences(whole, root / "run")
    except Stuck as error:
        found = [str(error)]
    finally:
        run.end()
    return {
        "kind": kind.name,
        "seed": seed,
        "blows": struck,
        "differences": found,
        "seconds": round(time.monotonic() - began, 1),
    }


def finish(run: Running) -> None:
    """Wait until a run has ended; Stuck if it fails."""
    if status := run.finish():
        run.end()
        raise Stuck(f"status {status}: {' / '.join(run.said().splitlines()[-5:])}")
