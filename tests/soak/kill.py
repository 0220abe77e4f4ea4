"""Kills or stops processes of a run at a random moment, and looks at what is left."""

import os
import random
import re
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from makemoe.checkpoint.format import read
from soak.kinds import LIGHTNING, RESTARTS, SIDE
from soak.running import PATIENCE_S, Running

ONE, ALL, LAUNCHER = "one process", "all processes", "the launcher"
STOPS = (signal.SIGTERM, signal.SIGUSR1)
"""What SLURM and torchrun send to all processes before they end a job."""

END_S = 30.0
"""Within this time after a kill, all processes must have ended."""

LONGEST_S = 1.5
"""The moment of a kill lies at most so long after the run has begun to write."""

WRITING = 0.4
"""Share of the kills that wait until a checkpoint is being written."""

LINES = 30
"""So many lines are kept of what should not have been printed."""


class Blow(NamedTuple):
    """A kill or a request to stop, and what came of it.

    Attributes:
        who: which processes were killed, or the signal that asked all of them.
        writing: whether a checkpoint was being written.
        ended_s: how long it took until all processes had ended, in seconds.
        wrong: what should not be: processes that are left, an error that is not one line.
    """

    who: str
    writing: bool
    ended_s: float
    wrong: list[str]


def strike(run: Running, rng: random.Random) -> Blow | None:
    """Kill some processes of a run that has just been started; None if it ended before."""
    said_before = len(run.said())
    who, draw = chosen(run, rng), rng.random()
    trained = caught(run, rng)
    if trained is None:
        return None
    if who == ALL:
        killed = run.alive()
    else:
        killed = [run.launcher if who == LAUNCHER else trained[int(draw * len(trained))]]
    for pid in killed:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    struck = time.monotonic()
    writing = is_writing(run.root / "run")
    if run.kind.launcher == RESTARTS:
        return Blow(who, writing, 0.0, [])
    ended_s, wrong, left = how_it_ends(run, struck)
    said = run.said()[said_before:]
    # What torchrun says of itself has a traceback.
    own = said if run.kind.launcher in (SIDE, LIGHTNING) else said.partition("torch/distributed")[0]
    if "Traceback" in own:
        after = own.partition("Traceback")[2].splitlines()
        wrong.append(f"a traceback: {' / '.join(after[:LINES])}")
    errors = [line for line in said.splitlines() if "makemoe: error" in line]
    # Those that the killed process itself has started end with it, and are not heard.
    is_survived = who == ONE and len(trained) > 1 and killed != [run.launcher]
    is_survived = is_survived or (who == ONE and run.kind.launcher == SIDE and len(trained) > 1)
    if len(errors) != is_survived and not left:
        wrong.append(f"{len(errors)} error lines: {errors}")
    return Blow(who, writing, ended_s, wrong)


def stop(run: Running, rng: random.Random) -> Blow | None:
    """Ask all processes of a run to stop, as SLURM does; None if it ended before."""
    said_before, number = len(run.said()), rng.choice(STOPS)
    trained = caught(run, rng)
    if trained is None:
        return None
    struck, writing = time.monotonic(), is_writing(run.root / "run")
    for pid in trained:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    ended_s, wrong, left = how_it_ends(run, struck)
    status = run.finish()  # the others end with 0: the first process speaks for all
    if status != 128 + number and not left:
        wrong.append(f"exit status {status}")
    said = run.said()[said_before:]
    wrong += [line for line in said.splitlines() if "Traceback" in line or "error" in line]
    told = re.search(rf"{number.name}: stopped at step (\d+)", said)
    saved = read(run.root / "run" / "last.ckpt")["global_step"]
    if told is None or int(told[1]) != saved:
        wrong.append(f"saved at step {saved}, and said {told and told[0]}")
    return Blow(number.name, writing, ended_s, wrong)


def caught(run: Running, rng: random.Random) -> list[int] | None:
    """The processes that train, at a random moment; None if the run ended before."""
    at_writing, delay_s = rng.random() < WRITING, LONGEST_S * rng.random()
    if not wait_for_progress(run):
        return None
    time.sleep(delay_s)
    if at_writing and not wait_for_writing(run):
        return None
    trained = run.ranks()
    return None if run.has_ended() or len(trained) < run.kind.processes else trained


def how_it_ends(run: Running, since: float) -> tuple[float, list[str], list[int]]:
    """How many seconds it took until all have ended, what was wrong, and who was left."""
    while (left := run.alive()) and time.monotonic() - since < END_S:
        time.sleep(0.1)
    ended_s, wrong = time.monotonic() - since, []
    if left:
        wrong.append(f"{len(left)} processes were left after {END_S:.0f} s")
        run.end()
    return ended_s, wrong, left


def chosen(run: Running, rng: random.Random) -> str:
    """Which processes to kill."""
    who = rng.choice([ONE, ALL, LAUNCHER])
    if run.kind.launcher == RESTARTS:
        return ONE
    return ONE if who == LAUNCHER and run.kind.launcher == SIDE else who


def wait_for_progress(run: Running) -> bool:
    """Whether the run has written a row or a checkpoint since now; False if it ends before."""
    files = [run.root / "run" / name for name in ("metrics.csv", "last.ckpt")]

    def state() -> list[tuple[int, int]]:
        return [(s.st_mtime_ns, s.st_ino) for file in files if (s := status(file))]

    before, deadline = state(), time.monotonic() + PATIENCE_S
    while state() == before:
        if run.has_ended() or time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def wait_for_writing(run: Running) -> bool:
    """Whether a checkpoint is being written; False if the run ends before."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_writing(run.root / "run"):
        if run.has_ended() or time.monotonic() > deadline:
            return False
        time.sleep(0.0005)
    return True


def is_writing(folder: Path) -> bool:
    """Whether a checkpoint in a run's folder is half-written."""
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    return any(name.endswith(".partial") and "ckpt" in name for name in names)


def status(file: Path) -> os.stat_result | None:
    """What is known of a file; None if it does not exist."""
    try:
        return file.stat()
    except OSError:
        return None
