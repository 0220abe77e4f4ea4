"""Starts the processes of a run on this machine, and leaves it to others to watch them."""

from collections.abc import Callable
from typing import Any

from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher


class Launcher(_SubprocessScriptLauncher):
    """Lightning's launcher without its observer.

    When a process ends, the observer kills all others within five seconds, without a word.

    Attributes:
        procs: the processes that were started.
    """

    @staticmethod
    def in_place_of(trainer: Trainer) -> "Launcher | None":
        """Replace a trainer's launcher; None if it has another kind of launcher, or none."""
        own = trainer.strategy.launcher
        if not isinstance(own, _SubprocessScriptLauncher):
            return None
        launcher = Launcher(own.cluster_environment, own.num_processes, own.num_nodes)
        trainer.strategy._launcher = launcher
        return launcher

    def launch(
        self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any
    ) -> Any:
        """Start the processes, then call a function."""
        self.cluster_environment.validate_settings(
            num_devices=self.num_processes, num_nodes=self.num_nodes
        )
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)
