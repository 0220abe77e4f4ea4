"""Which of Lightning's strategies are supported, and how many processes they have."""

from typing import Any

from jsonargparse import Namespace

from makemoe import process
from makemoe.errors import UsageError

OWN = "makemoe.parallel."
"""Prefix of the strategies of this package."""

USE = {
    "spawn": "its processes cannot take over the model: use ddp",
    "fork": "its processes are for notebooks: use ddp",
    "notebook": "its processes are for notebooks: use ddp",
    "fsdp": "it has no CPU and no expert parallelism: use --config fsdp",
    "deepspeed": "its checkpoints are not ours: use --config fsdp",
    "modelparallel": "it forgets changed settings when it resumes: use --config fsdp",
}
"""What is wrong with the strategies whose name contains this word, and what to use."""


def check_strategy(strategy: Any) -> None:
    """Refuse strategies that would fail later, or save what cannot be resumed.

    Args:
        strategy: its name, or the settings of its class.

    Raises:
        UsageError: naming another one.
    """
    name = name_of(strategy)
    if isinstance(strategy, str) and "." in strategy:
        raise UsageError(
            f"--trainer.strategy {strategy} is not a name: for a class, give "
            f"--trainer.strategy.class_path {strategy}"
        )
    words = [word for word in USE if word in plain(name)]
    if isinstance(strategy, Namespace):
        start = (strategy.get("init_args") or {}).get("start_method") or "popen"
        words += [word for word in USE if word in start]
    if words and not name.startswith(OWN):
        raise UsageError(f"--trainer.strategy {name} is not supported: {USE[words[0]]}")


def starts_processes(strategy: Any) -> bool:
    """Whether a strategy, given by name or settings, is for several processes."""
    name = name_of(strategy)
    return plain(name).startswith("ddp") or name.startswith(OWN)


def name_of(strategy: Any) -> str:
    """The name of a strategy, or of its class."""
    if isinstance(strategy, Namespace):
        return str(strategy.get("class_path"))
    if isinstance(strategy, str):
        return strategy
    return f"{type(strategy).__module__}.{type(strategy).__qualname__}"


def plain(name: str) -> str:
    """The last part of a name in lower case, without underscores."""
    return name.rpartition(".")[2].lower().replace("_", "")


def check_processes(trainer: Namespace, devices: int) -> None:
    """Refuse to run when a launcher has started other processes than the trainer expects.

    Args:
        trainer: the settings of the trainer.
        devices: the processes on each machine.
    """
    nodes = trainer.num_nodes
    here, all_of_them = process.started_here(), process.started()
    expected = f"--trainer.devices {devices} x --trainer.num_nodes {nodes} is {devices * nodes}"
    if all_of_them is not None and all_of_them != devices * nodes:
        raise UsageError(f"{expected}, but {all_of_them} processes were started: make them equal")
    if here is not None and here != devices:
        raise UsageError(
            f"{expected}, but {here} processes were started on this machine: give "
            f"--trainer.devices {here}, and --trainer.num_nodes the number of machines"
        )
