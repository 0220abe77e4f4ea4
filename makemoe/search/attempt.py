"""One trial of a sweep: its values, trained with one seed after another."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from makemoe.run import logged_losses
from makemoe.search.plan import Variant
from makemoe.search.runs import Run
from makemoe.search.study import Trials

if TYPE_CHECKING:
    from optuna.trial import Trial

BEAT_S = 10.0
"""How often a worker tells the others that it lives, in seconds."""


JUDGE_S = 1.0
"""How often metrics.csv is read for new validations, in seconds."""


class Attempt:
    """A trial that is being trained.

    The pruner judges the first seed by its validations. The others train to their ends.

    Args:
        trial: the trial.
        trials: where it is from.
        variant: what is trained.
        seeds: its seeds.
        folder: of the sweep.
        environment: environment variables of its processes.

    Attributes:
        state: how it ended: complete, pruned, failed, stopped, or lost to another worker; empty
            before.
        loss: mean of the last validation losses, if it is complete.
        why: why it failed.
    """

    def __init__(
        self,
        trial: "Trial",
        trials: Trials,
        variant: Variant,
        seeds: Sequence[int],
        folder: Path,
        environment: Mapping[str, str],
    ) -> None:
        self.trial, self.trials, self.variant = trial, trials, variant
        self.environment = environment
        self.runs = [Run(folder, variant, seed) for seed in seeds]
        self.state, self.why, self.loss = "", "", math.nan
        self._run: Run | None = None
        self._reported = 0
        self._ends_as = ""
        self._beaten = time.monotonic()
        self._judged = 0.0
        for name, fact in facts_of(variant).items():
            trial.set_user_attr(name, fact)

    @property
    def seconds(self) -> float:
        """How long it has been trained."""
        seconds: float = sum(run.seconds for run in self.runs)
        return seconds

    @property
    def share(self) -> float:
        """Which part of it is done."""
        steps = sum(
            max((step for step, _ in logged_losses(run.folder)), default=0) for run in self.runs
        )
        return steps / (len(self.runs) * self.variant.steps)

    def poll(self, asked: bool) -> bool:
        """Go on with it; whether it has ended.

        A run fails if a process of another worker, taken for dead too soon, trains it still: then
        it is started again after that process.

        Args:
            asked: whether to stop: its runs save, and the trial waits for the next worker.
        """
        if self._run is None and not self._start_next(asked):
            return bool(self.state)
        assert self._run is not None
        if time.monotonic() - self._beaten > BEAT_S:
            self._beaten = time.monotonic()
            self._run.note()
            if not self.trials.beat(self.trial):
                self._ends_as = "lost"
        if self._run is self.runs[0] and not self._ends_as and self._is_to_be_pruned():
            self._ends_as = "pruned"
        if asked or self._ends_as:
            self._run.stop()
        if not self._run.poll(asked or bool(self._ends_as)):
            return False
        run, self._run = self._run, None
        if self._ends_as == "lost":
            self.state = "lost"
        elif self._ends_as == "pruned":
            self._end("pruned")
        elif run.status == "failed" and not run.is_taken:
            self._end("failed", why=run.why)
        elif run.status == "stopped":
            self._give_back()
        return bool(self.state)

    def abandon(self) -> None:
        """Stop its process, after an error: the trial stays as it is."""
        if self._run is not None:
            self._run.stop()

    def _start_next(self, asked: bool) -> bool:
        """Start the next run; false if there is none, or another process still trains it."""
        if asked:
            self._give_back()
            return False
        run = next((run for run in self.runs if not run.is_finished), None)
        if run is None:
            self._conclude()
            return False
        if run.is_taken:
            return False
        run.start(self.environment)
        self._run = run
        return True

    def _is_to_be_pruned(self) -> bool:
        """Whether the pruner ends the trial; it is asked again after a while only."""
        if time.monotonic() - self._judged < JUDGE_S:
            return False
        self._judged = time.monotonic()
        return not self._is_promising()

    def _is_promising(self) -> bool:
        """Store new validation losses; whether the pruner lets the trial go on."""
        found = [pair for pair in logged_losses(self.runs[0].folder) if math.isfinite(pair[1])]
        new, self._reported = found[self._reported :], len(found)
        goes_on = [self.trials.report(self.trial, *pair) for pair in new]
        return all(goes_on) or found[-1][0] >= self.variant.steps

    def _conclude(self) -> None:
        """End it with the mean of its seeds."""
        self._is_promising()  # stores what came since it was last asked
        losses = {}
        for run in self.runs:
            found = [loss for _, loss in logged_losses(run.folder) if math.isfinite(loss)]
            if not found:
                self._end("failed", why=f"{run.folder} has no validation loss")
                return
            losses[str(run.seed)] = found[-1]
        self.loss = fmean(losses.values())
        self._end("complete", losses=losses)

    def _give_back(self) -> None:
        self.trials.give_back(self.trial.number)
        self.state = "stopped"

    def _end(self, state: str, why: str = "", **facts: Any) -> None:
        if not self.trials.beat(self.trial):
            self.state = "lost"
            return
        self.state, self.why = state, why
        loss = self.loss if state == "complete" else None
        facts = {"seconds": round(self.seconds, 1)} | facts | ({"why": why} if why else {})
        self.trials.end(self.trial, state, loss, **facts)


def facts_of(variant: Variant) -> dict[str, Any]:
    """What the database keeps of a variant, so that every worker can show it."""
    experts = variant.settings["model"].get("experts") or {}
    return {
        "width": (experts.get("init_args") or {}).get("hidden"),
        "parameters": variant.parameters,
        "active": variant.active,
        "flops": variant.flops,
        "tokens": variant.tokens,
        "settings": {key: value for key, value in variant.settings.items() if key != "text"},
    }
