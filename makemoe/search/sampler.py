"""A sampler of Optuna that proposes the same for a trial, however often a sweep was interrupted."""

from collections.abc import Callable, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

MIXER = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio: spreads consecutive numbers over all bits."""


class ByNumber(BaseSampler):
    """Builds a sampler anew for each trial, with a seed that follows from the trial's number.

    What it proposes depends on the seed, the number and the trials that have ended, all of which
    are in the database. So nothing has to be stored to go on with the same state.

    Args:
        build: the class of the sampler, with its arguments but for the seed.
        seed: of the sweep.
    """

    def __init__(self, build: Callable[..., BaseSampler], seed: int) -> None:
        self.build, self.seed = build, seed
        self.own = build(seed=seed_of(seed, 0))

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.own = self.build(seed=seed_of(self.seed, trial.number))
        self.own.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self.own.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.own.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self.own.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self.own.after_trial(study, trial, state, values)


def seed_of(seed: int, number: int) -> int:
    """The seed of a trial, of 32 bits."""
    return ((seed + 1) * MIXER ^ (number + 1) * MIXER * MIXER) % (1 << 64) >> 32
