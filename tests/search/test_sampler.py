"""A sampler whose proposals follow from seed, number and the trials that have ended."""

import random
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from makemoe.search.sampler import ByNumber, seed_of


def loss(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", -1, 1)
    return (x - 0.3) ** 2 + trial.suggest_int("n", 1, 8) / 100


opened: list[optuna.storages.RDBStorage] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Close the databases of a test."""
    yield
    while opened:
        database = opened.pop()
        database.remove_session()
        database.engine.dispose()


def study(path: Path, seed: int = 3) -> optuna.Study:
    """A study in a file, by a new process's sampler."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    opened.append(optuna.storages.RDBStorage(f"sqlite:///{path}"))
    return optuna.create_study(
        storage=opened[-1],
        study_name="s",
        sampler=ByNumber(optuna.samplers.TPESampler, seed),
        load_if_exists=True,
    )


def test_an_interrupted_search_proposes_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = study(tmp_path / "whole.db")
    whole.optimize(loss, 16)
    for _ in range(4):
        random.seed()
        study(tmp_path / "parts.db").optimize(loss, 4)
    parts = study(tmp_path / "parts.db")
    assert [t.params for t in parts.trials] == [t.params for t in whole.trials]
    assert len({t.params["x"] for t in whole.trials}) == 16


def test_it_is_the_sampler_that_it_builds(tmp_path: Path) -> None:
    """After its random start, TPE stays near the best values."""
    found = study(tmp_path / "s.db")
    found.optimize(loss, 40)
    late = [abs(t.params["x"] - 0.3) for t in found.trials[25:]]
    early = [abs(t.params["x"] - 0.3) for t in found.trials[:10]]
    assert sum(late) / len(late) < sum(early) / len(early)


def test_seeds_of_trials_and_of_sweeps_differ() -> None:
    seeds = {seed_of(seed, number) for seed in range(20) for number in range(200)}
    assert len(seeds) == 4000
    assert all(0 <= seed < 1 << 32 for seed in seeds)
