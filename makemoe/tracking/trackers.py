"""Experiment trackers whose failures do not stop training."""

import sys
from collections.abc import Callable
from typing import Any

from lightning.pytorch.loggers.logger import Logger


class Forgiving(Logger):
    """Mixed into a logger's class: at its first failure, prints one line and disables it.

    See `forgiving`.
    """

    broken = False

    def attempt(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the result of the call, or None if it or an earlier call failed."""
        if self.broken:
            return None
        try:
            return call(*args, **kwargs)
        except Exception as error:  # third-party code may raise anything
            self.broken = True
            reason = " ".join(str(error).split()) or type(error).__name__
            if len(reason) > 200:
                reason = f"{reason[:200]}..."
            tracker = type(self).__name__
            print(
                f"\nmakemoe: {tracker} failed, training continues without it: {reason}",
                file=sys.stderr,
            )
            return None

    @property
    def experiment(self) -> Any:
        """The tracker's own object, wrapped so that failures of its methods are caught too."""
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
    """Wraps a tracker's own object, or a part of it, so that calls go through `attempt`."""

    def __init__(self, logger: Forgiving, experiment: Any) -> None:
        self._logger, self._experiment = logger, experiment

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._experiment, name)
        if callable(found):
            return lambda *args, **kwargs: self._logger.attempt(found, *args, **kwargs)
        is_plain = type(found).__module__ == "builtins"
        return found if is_plain else ForgivingExperiment(self._logger, found)


class Silence:
    """Stands for a failed tracker's object and its parts: all calls do nothing."""

    def __getattr__(self, name: str) -> "Silence":
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        pass


def forgiving(logger: Logger) -> Logger:
    """Make a logger forgiving in place; it stays an instance of its class."""
    kind = type(logger)
    logger.__class__ = type(kind.__name__, (Forgiving, kind), {})
    return logger
