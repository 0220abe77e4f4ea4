"""Trains the runs of a comparison, some at a time, and says how it goes."""

import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from types import FrameType
from typing import Any

from makemoe.run import logged_losses
from makemoe.search.plan import about, makespan
from makemoe.search.runs import Run

POLL_S = 0.1
CLEAR = "\r\x1b[K"
"""Erases the line of a terminal."""

NOTE_S = 5.0
"""How often it is kept how long the runs have been trained, in seconds."""


class SideBySide:
    """Trains runs, `jobs` at a time, until all have ended or a signal stops them.

    Args:
        runs: the runs, in the order in which they are trained.
        jobs: how many are trained at once.
        environment: environment variables of their processes.

    Attributes:
        stopped_by: the signal that stopped them; None: none.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        jobs: int,
        environment: Mapping[str, str],
    ) -> None:
        self.runs, self.jobs, self.environment = runs, jobs, environment
        self.stopped_by: signal.Signals | None = None
        self._waiting = [run for run in runs if not run.is_finished]
        self._active: list[Run] = []
        self._told: set[Run] = set()
        self._ended = len(runs) - len(self._waiting)

    def train(self, after_each: Callable[[], object]) -> None:
        """Train them.

        Args:
            after_each: called after each run that has ended.
        """
        before: dict[signal.Signals, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, self._handle)
        try:
            self._train(after_each)
        finally:
            for run in self._active:
                run.stop()
            for number, handler in before.items():
                signal.signal(number, handler)

    def left(self) -> float | None:
        """About how long the rest takes, in seconds; None if it is not known yet.

        What is estimated is multiplied by how wrong the estimates of the finished runs were, of
        those that were started once: an estimate knows of no other start, and of no step repeated.
        """
        done = [run for run in self.runs if run.is_finished]
        once = [run for run in done if run.starts < 2]
        pairs = [(run.seconds, run.variant.seconds) for run in once]
        known = sum(estimate for _, estimate in pairs if estimate is not None)
        taken = sum(seconds for seconds, estimate in pairs if estimate is not None)
        ratio = taken / known if known else 1.0
        others = [one for run in self.runs if (one := run.variant.seconds) is not None]
        rest = []
        for run in (*self._active, *self._waiting):
            estimate = run.variant.seconds
            if estimate is not None:
                whole = estimate * ratio
            elif done:
                whole = fmean(run.seconds for run in once or done)
            elif others:
                whole = fmean(others)
            else:
                return None
            is_timed = run in self._active and run.starts < 2
            begun = run.seconds if is_timed else self._share(run) * whole
            rest.append(max(0.0, whole - begun))
        return makespan(rest, self.jobs)

    def _share(self, run: Run) -> float:
        """Which part of a run is done."""
        steps = [step for step, _ in logged_losses(run.folder)] if run.status != "new" else []
        return max(steps, default=0) / run.variant.steps

    def _train(self, after_each: Callable[[], object]) -> None:
        noted, told = time.monotonic(), False
        while self._active or (self._waiting and self.stopped_by is None):
            while len(self._active) < self.jobs and self.stopped_by is None:
                if not self._start_next():
                    break
            time.sleep(POLL_S)
            asked = self.stopped_by is not None
            if asked and not told:
                told = True
                say_stopping(self.stopped_by)
            for run in self._active if asked else ():
                run.stop()
            ended = [run for run in self._active if run.poll(asked)]
            for run in ended:
                self._active.remove(run)
            for run in ended:
                self._tell(run)
                after_each()
            if time.monotonic() - noted > NOTE_S:
                noted = time.monotonic()
                self._note()

    def _note(self) -> None:
        """Keep how long the active runs took; show on a terminal how far they are."""
        for run in self._active:
            run.note()
        steps = [f"{run.variant.name} {100 * self._share(run):.0f} %" for run in self._active]
        left = self.left()
        rest = [] if left is None else [f"{about(left)} left"]
        say_in_passing("; ".join([*steps, *rest]))

    def _start_next(self) -> bool:
        """Start the next run that no other process trains; False if there is none."""
        for run in self._waiting:
            if not run.is_taken:
                self._waiting.remove(run)
                run.start(self.environment)
                self._active.append(run)
                return True
            if run not in self._told:
                self._told.add(run)
                say(f"waiting for {run.folder}: another process still trains it")
        return False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.stopped_by = signal.Signals(number)  # the loop stops the runs

    def _tell(self, run: Run) -> None:
        """Say how a run ended, and how long the rest takes."""
        if run.status == "stopped":
            return
        # Not by their states: others have ended meanwhile, and those that failed are tried again.
        self._ended += 1
        how = f"failed: {run.why}"
        if run.is_finished:
            losses = [loss for _, loss in logged_losses(run.folder) if loss == loss]
            final = f"val_loss {losses[-1]:.4f} " if losses else ""
            how = f"{final}in {run.seconds:.0f} s"
        left = self.left()
        rest = f"; {about(left)} left" if left else ""
        count = f"{self._ended} of {len(self.runs)}"
        say(f"{count}: {run.variant.name}, seed {run.seed}: {how}{rest}")


def say_stopping(number: signal.Signals | None) -> None:
    """Acknowledge a signal, because it takes a while until all runs have saved."""
    assert number is not None
    say(f"{number.name}: the active runs save and stop")


def say(line: str) -> None:
    """Print a line on standard error, in place of a passing one."""
    begin = CLEAR if sys.stderr.isatty() else ""
    print(f"{begin}{line}", file=sys.stderr, flush=True)


def say_in_passing(line: str) -> None:
    """Show a line on a terminal until the next one."""
    if sys.stderr.isatty():
        shown = line[: shutil.get_terminal_size().columns - 1]
        print(f"{CLEAR}{shown}", end="", file=sys.stderr, flush=True)
