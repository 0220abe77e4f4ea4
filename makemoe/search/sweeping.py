"""A worker of a sweep: takes one trial after another until all have ended."""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import FrameType
from typing import Any

from makemoe.errors import DataError, MakeMoEError
from makemoe.search.attempt import Attempt
from makemoe.search.plan import Variant, about, makespan
from makemoe.search.runs import ConfigChanged
from makemoe.search.side_by_side import POLL_S, say, say_in_passing, say_stopping
from makemoe.search.space import Value, shown
from makemoe.search.study import Attempted, Trials

LOOK_S = 2.0
"""How often it is looked whether a trial has become free, in seconds."""

FAILURES = 3
"""If the first trials fail, so many of them end the sweep."""

Look = Callable[[int, Mapping[str, Value]], Variant]
"""Checks and counts what a trial is to train; MakeMoEError if that cannot be."""


class Sweeping:
    """Trains trials, `jobs` at a time, until all have ended or a signal stops it.

    Args:
        trials: the trials.
        look: checks and counts a trial.
        seeds: the seeds of each.
        folder: of the sweep.
        jobs: how many are trained at once.
        environment: environment variables of their processes.
        estimate: about how many seconds one run takes; None if it is not known.

    Attributes:
        stopped_by: the signal that stopped it; None: none.
    """

    def __init__(
        self,
        trials: Trials,
        look: Look,
        seeds: Sequence[int],
        folder: Path,
        jobs: int,
        environment: Mapping[str, str],
        estimate: float | None,
    ) -> None:
        self.trials, self.look, self.seeds, self.folder = trials, look, seeds, folder
        self.jobs, self.environment, self.estimate = jobs, environment, estimate
        self.stopped_by: signal.Signals | None = None
        self._active: list[Attempt] = []
        self._looked = self._told = 0.0
        self._waits = False

    def work(self, after_each: Callable[[], object]) -> None:
        """Train.

        Args:
            after_each: called after each trial that has ended.

        Raises:
            DataError: if the first trials all fail.
        """
        before: dict[signal.Signals, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, self._handle)
        try:
            told = False
            while self._goes_on():
                time.sleep(POLL_S)
                asked = self.stopped_by is not None
                if asked and not told:
                    told = True
                    say_stopping(self.stopped_by)
                ended = [one for one in self._active if one.poll(asked)]
                self._active = [one for one in self._active if one not in ended]
                for one in ended:
                    self._tell(one)
                    after_each()
                self._show()
        finally:
            for one in self._active:
                one.abandon()
            for number, handler in before.items():
                signal.signal(number, handler)

    def left(self, attempted: Sequence[Attempted]) -> float | None:
        """About how long the rest takes this worker alone, in seconds; None if it is not known."""
        return time_left(
            attempted,
            self.jobs,
            None if self.estimate is None else self.estimate * len(self.seeds),
            {one.trial.number: one.share for one in self._active},
        )

    def _goes_on(self) -> bool:
        """Take new trials; whether there is anything to wait for."""
        if self.stopped_by is not None:
            return bool(self._active)
        looks = time.monotonic() - self._looked > LOOK_S
        if looks:
            while len(self._active) < self.jobs and self.stopped_by is None:
                if (trial := self.trials.take()) is None:
                    self._looked = time.monotonic()
                    break
                values = dict(trial.params)
                try:
                    variant = self.look(trial.number, values)
                except ConfigChanged:
                    self.trials.give_back(trial.number)
                    raise
                except MakeMoEError as error:
                    if self.stopped_by is not None:
                        self.trials.give_back(trial.number)
                        break
                    self.trials.end(trial, "failed", why=str(error))
                    self._say(trial.number, values, f"failed: {error}")
                    self._check_failures()
                    continue
                self._active.append(
                    Attempt(trial, self.trials, variant, self.seeds, self.folder, self.environment)
                )
        if self._active or not looks:
            return True
        others = sum(not one.has_ended for one in self.trials.attempted())
        if others and not self._waits:
            self._waits = True
            say(f"waiting for {others} trial{'s' if others > 1 else ''} of other workers")
        return others > 0

    def _check_failures(self) -> None:
        """Raise DataError if nothing but failures has come of the sweep."""
        attempted = self.trials.attempted()
        failed = [one for one in attempted if one.state == "failed"]
        good = [one for one in attempted if one.state in ("complete", "pruned")]
        if len(failed) >= min(FAILURES, len(attempted)) and not good and not self._active:
            why = failed[-1].facts.get("why", "")
            raise DataError(f"the first {len(failed)} trials failed; the last one: {why}")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.stopped_by = signal.Signals(number)  # the loop stops the runs

    def _tell(self, one: Attempt) -> None:
        """Say how a trial ended."""
        if one.state in ("stopped", "lost"):
            if one.state == "lost":
                say(f"trial {one.trial.number}: another worker has taken it")
            return
        how = {
            "complete": f"val_loss {one.loss:.4f} in {one.seconds:.0f} s",
            "pruned": f"pruned after {one.seconds:.0f} s",
            "failed": f"failed: {one.why}",
        }[one.state]
        self._say(one.trial.number, dict(one.trial.params), how)
        if one.state == "failed":
            self._check_failures()

    def _say(self, number: int, values: Mapping[str, Value], how: str) -> None:
        attempted = self.trials.attempted()
        done = [trial for trial in attempted if trial.has_ended]
        told = ", ".join(f"{k}={v}" for k, v in shown(self.trials.sweep, values).items())
        complete = [trial for trial in done if trial.state == "complete"]
        best = ""
        if complete:
            found = min(complete, key=lambda trial: trial.loss or 0.0)
            best = f"; best {found.loss:.4f} (trial {found.number})"
        left = self.left(attempted)
        rest = f"; {about(left)} left" if left else ""
        say(f"{len(done)} of {len(attempted)}: trial {number}: {told}: {how}{best}{rest}")

    def _show(self) -> None:
        """Show on a terminal how far the trials are."""
        if time.monotonic() - self._told > 5.0:
            self._told = time.monotonic()
            shares = [f"trial {one.trial.number} {100 * one.share:.0f} %" for one in self._active]
            left = self.left(self.trials.attempted()) if shares else None
            say_in_passing("; ".join([*shares, *([] if left is None else [f"{about(left)} left"])]))


def time_left(
    attempted: Sequence[Attempted],
    jobs: int,
    estimate: float | None,
    shares: Mapping[int, float],
) -> float | None:
    """About how long the trials that have not ended take, in seconds; None if it is not known.

    Args:
        attempted: all trials.
        jobs: how many are trained at once.
        estimate: seconds of one, before any has ended.
        shares: which part of a running trial is done, by number.
    """
    done = [one.facts["seconds"] for one in attempted if one.has_ended and "seconds" in one.facts]
    each = fmean(done) if done else estimate
    if each is None:
        return None
    rest = [each * (1 - shares.get(one.number, 0.0)) for one in attempted if not one.has_ended]
    return makespan(rest, jobs)
