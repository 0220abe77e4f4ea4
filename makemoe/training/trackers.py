"""Trackers of experiments that may break without breaking the training."""

import sys
from collections.abc import Callable
from typing import Any

from lightning.pytorch.loggers.logger import Logger


class Forgiving(Logger):
    """Mixed into a logger's class: its first failure is told in one line, and it is left alone.

    See `forgiving`.
    """

    broken = False

    def attempt(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the call returns, unless it or an earlier one has failed."""
        if self.broken:
            return None
        try:
            return call(*args, **kwargs)
        except Exception as error:  # a stranger's code: what it raises cannot be known
            self.broken = True
            reason = " ".join(str(error).split()) or type(error).__name__
            if len(reason) > 200:
                reason = f"{reason[:200]}..."
            tracker = type(self).__name__
            print(
                f"\nmakemoe: {tracker} failed, training goes on without it: {reason}",
                file=sys.stderr,
            )
            return None

    @property
    def experiment(self) -> Any:
        """The tracker's own object, whose methods and parts' methods are attempted too."""
        found = self.attempt(lambda: super(Forgiving, self).experiment)  # type: ignore[misc]
        return Silence() if found is None else ForgivingExperiment(self, found)

    @property
    def name(self) -> str | None:
        """See `Logger`."""
        name: str | None = self.attempt(lambda: super(Forgiving, self).name)  # type: ignore[safe-super]
        return name

    @property
    def version(self) -> int | str | None:
        """See `Logger`."""
        version: int | str | None = self.attempt(
            lambda: super(Forgiving, self).version  # type: ignore[safe-super]
        )
        return version

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        self.attempt(super().log_metrics, *args, **kwargs)  # type: ignore[safe-super]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        self.attempt(super().log_hyperparams, *args, **kwargs)  # type: ignore[safe-super]

    def log_graph(self, *args: Any, **kwargs: Any) -> None:
        self.attempt(super().log_graph, *args, **kwargs)

    def save(self) -> None:
        self.attempt(super().save)

    def after_save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.attempt(super().after_save_checkpoint, *args, **kwargs)

    def finalize(self, status: str) -> None:
        self.attempt(super().finalize, status)


class ForgivingExperiment:
    """A tracker's own object, or a part of it, seen through its logger's `attempt`."""

    def __init__(self, logger: Forgiving, experiment: Any) -> None:
        self._logger, self._experiment = logger, experiment

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._experiment, name)
        if callable(found):
            return lambda *args, **kwargs: self._logger.attempt(found, *args, **kwargs)
        is_plain = type(found).__module__ == "builtins"
        return found if is_plain else ForgivingExperiment(self._logger, found)


class Silence:
    """A broken tracker's own object and all its parts: whatever is called does nothing."""

    def __getattr__(self, name: str) -> "Silence":
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        pass


def forgiving(logger: Logger) -> Logger:
    """The same logger, forgiving from now on; of the same class still for whoever asks."""
    kind = type(logger)
    logger.__class__ = type(kind.__name__, (Forgiving, kind), {})
    return logger
