"""Trials in a database that workers share, and what happens to those of dead workers."""

import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest
from sqlalchemy import make_url

from makemoe.errors import DataError, MissingPackageError, UsageError
from makemoe.search import study as study_module
from makemoe.search.database import hidden, reaching, without_passwords
from makemoe.search.space import Part, Sweep, read_sweep
from makemoe.search.study import Trials

SWEEP = replace(
    read_sweep({"space": {"x": {"float": [0, 1]}, "n": {"int": [1, 9]}}}), trials=4, pruner=None
)
BASE = {"model": {"n_embd": 8}}


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[..., Trials]]:
    """A worker of the same study."""
    with ExitStack() as opened:

        def begun(sweep: Sweep = SWEEP, base: dict[str, Any] = BASE, **more: Any) -> Trials:
            more = {"seed": 1} | more
            trials = Trials(f"sqlite:///{tmp_path}/study.db", "s", sweep, **more)
            opened.enter_context(trials).begin(base)
            return trials

        yield begun


def test_workers_share_all_trials_and_none_is_taken_twice(worker: Callable[..., Trials]) -> None:
    one, other = worker(), worker()
    taken = []
    for number in range(4):
        trial = (one, other)[number % 2].take()
        assert trial is not None
        taken.append(trial)
    assert [trial.number for trial in taken] == [0, 1, 2, 3]
    assert one.take() is None
    for trial in taken:
        (one, other)[trial.number % 2].end(trial, "complete", trial.params["x"], seconds=2.0)
    found = worker().attempted()
    assert [one.state for one in found] == ["complete"] * 4
    assert [one.loss for one in found] == [trial.params["x"] for trial in taken]
    assert found[0].facts == {"seconds": 2.0}


def test_a_trial_that_was_given_back_has_its_number_and_values(
    worker: Callable[..., Trials],
) -> None:
    one = worker()
    trial = one.take()
    assert trial is not None
    values = dict(trial.params)
    one.give_back(trial.number)
    again = worker().take()
    assert again is not None
    assert (again.number, again.params) == (trial.number, values)


def test_workers_of_a_study_know_it_from_others(
    worker: Callable[..., Trials], tmp_path: Path
) -> None:
    one, other = worker(), worker()
    assert one.ids() == other.ids() == one.ids()
    with Trials(f"sqlite:///{tmp_path}/other.db", "s", SWEEP, seed=1) as stranger:
        assert not set(stranger.ids()) & set(one.ids())


def test_a_dead_workers_trial_is_taken_up_at_once(worker: Callable[..., Trials]) -> None:
    dead = worker()
    trial = dead.take()
    assert trial is not None
    again = worker(lives=lambda name: name != dead.worker).take()
    assert again is not None
    assert (again.number, again.params) == (trial.number, trial.params)


def test_of_workers_that_look_at_once_one_takes_each_trial(
    worker: Callable[..., Trials],
) -> None:
    sweep, dead = replace(SWEEP, trials=24), worker(replace(SWEEP, trials=24))
    of_dead = [dead.take() for _ in range(8)]
    workers = [worker(sweep, lives=lambda name: name != dead.worker) for _ in range(4)]
    together = threading.Barrier(len(workers))

    def take_all(trials: Trials) -> list[int]:
        together.wait()
        taken = iter(trials.take, None)
        return [trial.number for trial in taken if trials.beat(trial)]

    with ThreadPoolExecutor(len(workers)) as threads:
        taken = [number for numbers in threads.map(take_all, workers) for number in numbers]
    assert sorted(taken) == list(range(24))
    assert not any(dead.beat(trial) for trial in of_dead if trial is not None)


def test_a_silent_worker_of_another_machine_loses_its_trial_and_sees_it(
    worker: Callable[..., Trials], monkeypatch: pytest.MonkeyPatch
) -> None:
    silent, other = worker(replace(SWEEP, trials=1)), worker(replace(SWEEP, trials=1))
    trial = silent.take()
    assert trial is not None
    assert other.take() is None
    assert silent.beat(trial)
    monkeypatch.setattr(study_module, "SILENT_S", 0.0)
    assert other.take() is None  # it has been heard of since
    taken = other.take()
    assert taken is not None
    assert taken.number == trial.number
    assert not silent.beat(trial)
    assert other.beat(taken)


def test_a_trial_that_another_worker_ends_meanwhile_stays_as_it_ended(
    worker: Callable[..., Trials], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, other = worker(replace(SWEEP, trials=1)), worker(replace(SWEEP, trials=1))
    trial = slow.take()
    assert trial is not None
    before = slow._of_database(trial.number)
    monkeypatch.setattr(study_module, "SILENT_S", 0.0)
    assert other.take() is None
    taken = other.take()
    assert taken is not None
    other.end(taken, "complete", 7.0)
    monkeypatch.setattr(slow, "_of_database", lambda number: before)
    assert not slow.beat(trial)
    slow.report(trial, 5, 1.0)
    slow.end(trial, "complete", 9.0, why="none")
    assert [one.loss for one in other.attempted()] == [7.0]


def test_more_trials_can_be_asked_for_later(worker: Callable[..., Trials]) -> None:
    worker(replace(SWEEP, trials=2))
    assert len(worker(replace(SWEEP, trials=5)).attempted()) == 5
    assert len(worker(replace(SWEEP, trials=3)).attempted()) == 3


def test_a_worker_that_was_given_fewer_trials_leaves_the_rest_to_the_others(
    worker: Callable[..., Trials], monkeypatch: pytest.MonkeyPatch
) -> None:
    many, few = worker(replace(SWEEP, trials=4)), worker(replace(SWEEP, trials=2))
    assert few.begun_with() == 2
    assert [trial.number for trial in iter(few.take, None)] == [0, 1]
    # Between its look and its request, a third worker has taken the last one below 2.
    looks = iter([[], [SimpleNamespace(number=1)], []])
    monkeypatch.setattr(few, "_in", lambda state: next(looks))
    assert few.take() is None
    assert [one.state for one in many.attempted()] == ["running"] * 2 + ["waiting"] * 2
    assert [trial.number for trial in iter(many.take, None)] == [2, 3]


def test_a_study_of_other_seeds_is_refused(worker: Callable[..., Trials]) -> None:
    worker()
    with pytest.raises(UsageError, match=r"seed was 1, and is now 2\): give another --run.name"):
        worker(seed=2)


@pytest.mark.parametrize(
    ("sweep", "base", "words"),
    [
        (replace(SWEEP, seeds=2), BASE, "sweep.seeds was 1, and is now 2"),
        (replace(SWEEP, space=SWEEP.space[:1]), BASE, "sweep.space.n was"),
        (SWEEP, {"model": {"n_embd": 16}}, "config.model.n_embd was 8, and is now 16"),
    ],
)
def test_a_study_that_searches_something_else_is_refused(
    worker: Callable[..., Trials], sweep: Sweep, base: dict[str, Any], words: str
) -> None:
    worker()
    with pytest.raises(UsageError, match=re.escape(words)):
        worker(sweep, base)


def test_a_pruner_stops_a_trial_that_is_worse_than_the_others(
    worker: Callable[..., Trials],
) -> None:
    pruner = Part("optuna.pruners.MedianPruner", {"n_startup_trials": 2})
    trials = worker(replace(SWEEP, pruner=pruner))
    for loss in (1.0, 2.0):
        trial = trials.take()
        assert trial is not None
        assert trials.report(trial, 10, loss)
        assert trials.report(trial, 10, 9.0)  # known already, as after a resume
        trials.end(trial, "complete", loss)
    for loss, goes_on in ((1.4, True), (1.6, False)):
        trial = trials.take()
        assert trial is not None
        assert trials.report(trial, 10, loss) is goes_on
        trials.end(trial, "pruned")
    assert [one.loss for one in trials.attempted()] == [1.0, 2.0, 1.4, 1.6]


def test_the_option_that_makes_the_loss_is_the_important_one(
    worker: Callable[..., Trials],
) -> None:
    trials = worker(replace(SWEEP, trials=40, sampler=Part("optuna.samplers.RandomSampler", {})))
    assert trials.importances() == {}
    while (trial := trials.take()) is not None:
        trials.end(trial, "complete", (trial.params["x"] - 0.5) ** 2)
    found = trials.importances()
    assert found["x"] > 0.8
    assert sum(found.values()) == pytest.approx(1)


# -- what is wrong


def test_a_database_that_cannot_be_reached_is_named_without_its_password() -> None:
    url = "postgresql+psycopg://me:secret@127.0.0.1:9/none"
    with pytest.raises(DataError) as raised:
        Trials(url, "s", SWEEP, seed=1)
    assert "--storage postgresql+psycopg://me:***@127.0.0.1:9/none cannot be used" in str(
        raised.value
    )
    assert "refused" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        ("nonsense", UsageError, "is not the URL of a database"),
        ("none://a", UsageError, "is not the URL of a database"),
        ("sqlite:////none/such/folder/s.db", DataError, "unable to open database file"),
        ("postgresql+asyncpg://a@127.0.0.1/b", MissingPackageError, "asyncpg"),
    ],
)
def test_an_unusable_url_is_named(url: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        Trials(url, "s", SWEEP, seed=1)


def test_a_url_without_a_password_is_shown_as_it_is() -> None:
    assert hidden("sqlite:///a/b.db") == "sqlite:///a/b.db"
    assert hidden("sqlite:///a:b@c.db") == "sqlite:///a:b@c.db"
    assert hidden("postgresql://u@h/n") == "postgresql://u@h/n"


@pytest.mark.parametrize("password", ["p", "p#w", "p/w", "p?w", "p:w", "%40"])
def test_a_password_is_hidden_where_sqlalchemy_finds_it(password: str) -> None:
    url = f"postgresql://u:{password}@h:5432/n?sslpassword={password}&PASSWD={password}&x=1"
    assert make_url(url).password == unquote(password)
    assert hidden(url) == "postgresql://u:***@h:5432/n?sslpassword=***&PASSWD=***&x=1"


def test_a_password_is_hidden_behind_a_name_with_an_at_sign() -> None:
    url = "postgresql+psycopg://me@tenant:secret@host/db"
    assert make_url(url).password == "secret"
    assert hidden(url) == "postgresql+psycopg://me@tenant:***@host/db"


def test_a_package_that_a_sampler_needs_is_named(
    worker: Callable[..., Trials], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    cma = Part("optuna.samplers.CmaEsSampler", {"n_startup_trials": 0})
    trials = worker(replace(SWEEP, sampler=cma))

    def search() -> None:
        with reaching("sqlite://"):
            while (trial := trials.take()) is not None:
                trials.end(trial, "complete", 1.0)

    with pytest.raises(MissingPackageError, match=r"sampler or pruner needs a package .*cmaes"):
        search()


@pytest.mark.parametrize(
    ("words", "without"),
    [
        (["--storage", "a://u:p@h/n", "--trials=3"], ["--storage", "a://u:***@h/n", "--trials=3"]),
        (["--storage=a:///n?host=h&password=p&x=1"], ["--storage=a:///n?host=h&password=***&x=1"]),
        (["--data.corpus", "a://u:p@h/n"], ["--data.corpus", "a://u:p@h/n"]),
    ],
)
def test_a_command_is_stored_without_its_password(words: list[str], without: list[str]) -> None:
    assert without_passwords(words) == without


def test_other_errors_pass_through() -> None:
    with pytest.raises(KeyError), reaching("sqlite://"):
        raise KeyError("other")


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (Part("optuna.samplers.NoSampler", {}), "NoSampler does not exist"),
        (Part("optuna.samplers.TPESampler", {"none": 1}), "TPESampler: .*unexpected"),
        (Part("optuna.samplers.GridSampler", {}), "GridSampler: .*search_space"),
    ],
)
def test_an_unusable_sampler_is_named(
    worker: Callable[..., Trials], part: Part, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        worker(replace(SWEEP, sampler=part))


def test_without_optuna_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(MissingPackageError, match=re.escape("pip install 'makemoe[sweep]'")):
        Trials("sqlite://", "s", SWEEP, seed=1)
