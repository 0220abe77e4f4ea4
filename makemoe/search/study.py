"""The trials of a sweep, in a database of Optuna that several workers share.

A trial waits, runs, or has ended. All are put into the database at the beginning, and a worker
takes one that waits. If a worker dies, its trial waits again, with the values that it has.
"""

import importlib
import json
import time
import uuid
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from makemoe.errors import DataError, UsageError
from makemoe.search.database import database, hidden, library, reaching
from makemoe.search.plan import difference
from makemoe.search.space import Dimension, Part, Sweep, Value

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

SILENT_S = 60.0
"""A worker that has not been heard of for so long is taken for dead."""

SEARCHED, TRIALS, WORKER = "searched", "trials", "worker"
"""Names of what the database holds: two of a study, and one of a running trial."""

ID = "id-"
"""How names begin that the database holds to tell a study from others."""


class Attempted(NamedTuple):
    """A trial as the database has it.

    Attributes:
        number: from 0.
        state: waiting, running, complete, pruned or failed.
        values: what it has of the options.
        loss: mean of the last validation losses of its seeds; of a pruned trial, the last one.
        facts: what its worker has noted: sizes, losses by seed, seconds, why it failed.
    """

    number: int
    state: str
    values: dict[str, Value]
    loss: float | None
    facts: dict[str, Any]

    @property
    def has_ended(self) -> bool:
        return self.state in ("complete", "pruned", "failed")


class Trials(AbstractContextManager["Trials"]):
    """The trials of a sweep.

    Args:
        url: of the database.
        name: of the study in it.
        sweep: what is searched.
        seed: of the sampler.
        lives: whether the worker of a name lives; None if that cannot be known here.
        create: whether the study may be new.

    Attributes:
        worker: the name of this worker.

    Raises:
        UsageError: for an invalid URL, sampler or pruner.
        DataError: for a database that cannot be reached.
        MissingPackageError: without Optuna or the driver of the database.
    """

    def __init__(
        self,
        url: str,
        name: str,
        sweep: Sweep,
        seed: int,
        lives: Callable[[str], bool | None] = lambda _: None,
        create: bool = True,
    ) -> None:
        optuna = library()
        from makemoe.search.sampler import ByNumber

        self.name, self.sweep, self.seed, self.lives = name, sweep, seed, lives
        self.worker = uuid.uuid4().hex
        self.states = optuna.trial.TrialState
        # Of a trial that another worker has ended, between two looks at the database.
        self._ended: type[Exception] = optuna.exceptions.UpdateFinishedTrialError
        self._own: dict[int, list[Any]] = {}  # last beat by number
        self._beats = 0
        self._heard: dict[int, tuple[Any, float]] = {}
        pruner = optuna.pruners.NopPruner if sweep.pruner is None else part(sweep.pruner, "pruner")
        with ExitStack() as opened, reaching(url):
            self._database = opened.enter_context(database(url))
            self._storage = optuna.storages.get_storage(self._database)
            if not create and name not in optuna.get_all_study_names(self._storage):
                raise DataError(f"--storage {hidden(url)} holds no sweep {name}")
            self.study = optuna.create_study(
                storage=self._storage,
                study_name=name,
                sampler=ByNumber(part(sweep.sampler, "sampler"), seed),
                pruner=pruner(),
                load_if_exists=True,
            )
            self._study = self._storage.get_study_id_from_name(name)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Close the connections to the database."""
        self._opened.close()

    def __enter__(self) -> "Trials":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, base: Mapping[str, Any]) -> None:
        """Begin the study or go on with it.

        Args:
            base: the settings of the config, which must not change.

        Raises:
            UsageError: for a study that searches something else, or with other seeds.
        """
        own = {"seed": self.seed, "sweep": self.sweep.searched(), "config": base}
        own = json.loads(json.dumps(own))
        held = self.study.user_attrs.get(SEARCHED)
        if held is None:
            self.study.set_user_attr(SEARCHED, own)
        # Studies of earlier versions do not hold the seed.
        elif (found := difference({"seed": self.seed} | held, own)) is not None:
            raise UsageError(
                f"the study {self.name} searches something else ({found}): give another --run.name"
            )
        for _ in range(self.sweep.trials - len(self.study.get_trials(deepcopy=False))):
            self.study.enqueue_trial({})
        self.study.set_user_attr(TRIALS, self.sweep.trials)

    def ids(self) -> list[str]:
        """What tells this study from others of its name: an id from everyone who begins it."""
        own = [name for name in self.study.user_attrs if name.startswith(ID)]
        if not own:
            self.study.set_user_attr(f"{ID}{uuid.uuid4().hex}", True)
            own = [name for name in self.study.user_attrs if name.startswith(ID)]
        return sorted(own)

    def begun_with(self) -> int:
        """The number of trials that were asked for last."""
        return int(self.study.user_attrs.get(TRIALS, self.sweep.trials))

    # -- what a worker does

    def take(self) -> "Trial | None":
        """Take a trial that waits; None if there is none."""
        for trial in self._in(self.states.RUNNING):
            if self._is_dead(trial):
                self._release(trial.number, trial.user_attrs.get(WORKER))
        while any(one.number < self.sweep.trials for one in self._in(self.states.WAITING)):
            taken: Trial = self.study.ask()
            if taken.number >= self.sweep.trials:
                # Another worker has meanwhile taken the last one. This one waits for a worker
                # that was given more trials.
                self._release(taken.number, None)
                continue
            self._beat(taken)
            for dimension in self.sweep.space:
                suggest(taken, dimension)
            return taken
        return None

    def beat(self, trial: "Trial") -> bool:
        """Tell the others that a trial's worker lives; false if another one has the trial now."""
        held = self._of_database(trial.number)
        worker, _ = held.user_attrs.get(WORKER) or (None, 0)
        if held.state == self.states.RUNNING and worker == self.worker:
            with suppress(self._ended):
                self._beat(trial)
                return True
        self._own.pop(trial.number, None)
        return False

    def give_back(self, number: int) -> None:
        """Let a running trial wait, with the values it has: the next worker goes on with it."""
        if (beat := self._own.pop(number, None)) is not None:
            self._release(number, beat)

    def report(self, trial: "Trial", step: int, loss: float) -> bool:
        """Store a validation loss; whether the trial should go on."""
        if step not in self._of_database(trial.number).intermediate_values:
            with suppress(self._ended):
                trial.report(loss, step)
        return not trial.should_prune()

    def end(self, trial: "Trial", state: str, loss: float | None = None, **facts: Any) -> None:
        """End a trial: complete, with a loss; pruned; or failed. One that has ended stays so."""
        self._own.pop(trial.number, None)
        of_optuna = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}[state]
        with suppress(self._ended):
            for name, fact in facts.items():
                trial.set_user_attr(name, fact)
            self.study.tell(trial, loss, state=self.states[of_optuna], skip_if_finished=True)

    def _beat(self, trial: "Trial") -> None:
        """Store with a trial what changes whenever this worker is heard of."""
        self._beats += 1
        beat = self._own[trial.number] = [self.worker, self._beats]
        trial.set_user_attr(WORKER, beat)

    def _release(self, number: int, beat: list[Any] | None) -> None:
        """Let a running trial wait if nobody has been heard of since this beat.

        It is one transaction: of two workers that take a third one for dead, one releases its
        trial, and the other does not release it again after the first one has taken it.
        """
        from sqlalchemy import text

        this = {"id": self._id(number), "key": WORKER}
        with self._database.engine.begin() as connection:

            def execute(statement: str) -> Any:
                return connection.execute(text(statement), this)

            execute("UPDATE trials SET state = state WHERE trial_id = :id")  # locks it
            state = execute("SELECT state FROM trials WHERE trial_id = :id").scalar()
            where = "WHERE trial_id = :id AND key = :key"
            held = execute(f"SELECT value_json FROM trial_user_attributes {where}").scalar()
            if state == "RUNNING" and (None if held is None else json.loads(held)) == beat:
                execute("UPDATE trials SET state = 'WAITING' WHERE trial_id = :id")
                execute(f"UPDATE trial_user_attributes SET value_json = 'null' {where}")

    def _is_dead(self, trial: "FrozenTrial") -> bool:
        """Whether the worker of a running trial is dead."""
        if trial.number in self._own:
            return False
        beat = trial.user_attrs.get(WORKER)
        lives = None if beat is None else self.lives(beat[0])
        if lives is not None:
            return not lives
        # The clocks of machines differ: what counts is whether the beat changes.
        now = time.monotonic()
        before, since = self._heard.get(trial.number, (None, now))
        if trial.number not in self._heard or beat != before:
            self._heard[trial.number] = (beat, now)
            return False
        return now - since > SILENT_S

    def _in(self, state: Any) -> "list[FrozenTrial]":
        found: list[FrozenTrial] = self.study.get_trials(deepcopy=False, states=(state,))
        return found

    def _id(self, number: int) -> int:
        id: int = self._storage.get_trial_id_from_study_id_trial_number(self._study, number)
        return id

    def _of_database(self, number: int) -> "FrozenTrial":
        trial: FrozenTrial = self._storage.get_trial(self._id(number))
        return trial

    # -- what came of it

    def attempted(self) -> list[Attempted]:
        """All trials, by number."""
        names = {"FAIL": "failed"}
        found = []
        for trial in self.study.get_trials(deepcopy=False)[: self.sweep.trials]:
            losses = trial.intermediate_values
            last = losses[max(losses)] if losses else None
            ended = trial.state == self.states.COMPLETE
            found.append(
                Attempted(
                    trial.number,
                    names.get(trial.state.name, trial.state.name.lower()),
                    dict(trial.params),
                    trial.value if ended else last,
                    {k: v for k, v in trial.user_attrs.items() if k != WORKER},
                )
            )
        return found

    def importances(self) -> dict[str, float]:
        """How much of the losses' variation each option explains; empty if that is not known.

        PED-ANOVA (arXiv:2304.10255); the shares sum to 1.
        """
        optuna = library()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of options that are constant so far
            try:
                found: dict[str, float] = optuna.importance.get_param_importances(
                    self.study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
                )
            except (ValueError, RuntimeError):  # too few trials
                return {}
        return {key: share for key, share in found.items() if share == share}


def suggest(trial: "Trial", dimension: Dimension) -> Value:
    """The value of an option in a trial."""
    key, low, high, log = dimension.key, dimension.low, dimension.high, dimension.log
    value: Value
    if dimension.kind == "choice":
        value = trial.suggest_categorical(key, dimension.choices)
    elif dimension.kind == "int":
        value = trial.suggest_int(key, int(low), int(high), log=log)
    else:
        value = trial.suggest_float(key, low, high, log=log)
    return value


def part(spec: Part, what: str) -> Callable[..., Any]:
    """A class of Optuna with its arguments bound.

    Raises:
        UsageError: for a class that does not exist, or does not take the arguments.
    """
    module, _, name = spec.class_path.rpartition(".")
    kind = getattr(importlib.import_module(module), name, None)
    if not isinstance(kind, type):
        raise UsageError(f"sweep.{what} {spec.class_path} does not exist")
    made = partial(kind, **spec.init_args)
    try:
        made(**({"seed": 0} if what == "sampler" else {}))
    except (TypeError, ValueError) as error:
        raise UsageError(f"sweep.{what} {name}: {' '.join(str(error).split())}") from error
    return made
