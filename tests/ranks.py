"""Processes that run commands together, one command after another: they start only once."""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nursery import MAKEMOE, Forked
from ports import free_port
from processes import DDP, ENVIRONMENT

CALL = "call"
"""Instead of a command of makemoe: call a function of a module of the tests."""


def together(folder: Path, size: int, commands: Sequence[Sequence[str]]) -> list[str]:
    """Run `makemoe` with each of some lists of arguments in `folder`, in `size` processes.

    Returns:
        what each process wrote.
    """
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
    place |= {"WORLD_SIZE": str(size), "JSONARGPARSE_DEPRECATION_WARNINGS": "off"}
    files, started = [folder / f"rank{rank}.txt" for rank in range(size)], []
    for rank, file in enumerate(files):
        with file.open("w") as written:
            started.append(
                Forked(
                    [MAKEMOE, json.dumps([list(one) for one in commands])],
                    folder,
                    ENVIRONMENT | place | {"LOCAL_RANK": str(rank), "RANK": str(rank)},
                    stdout=written,
                    stderr=written,
                    module="ranks",
                )
            )
    try:
        statuses = [process.wait(timeout=400) for process in started]
    finally:
        for process in started:
            process.kill()
    told = [file.read_text() for file in files]
    assert statuses == [0] * size, "\n".join(told)
    return told


def fit_in_two(folder: Path, *arguments: str) -> Path:
    """A run to its end, by two processes with DDP; its folder's checkpoints."""
    together(folder, 2, [["fit", *DDP, *arguments]])
    return folder / "checkpoints"


def main() -> int:
    """Run the commands in this process; the status of the first that fails."""
    status = 1
    try:
        status = run()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if not status:
            # Without Python's own end: after gloo's collectives it may abort the process.
            os._exit(0)
    return status


def run() -> int:
    from makemoe.cli import main as makemoe
    from makemoe.run import FOLDER_VARIABLE

    for command in json.loads(sys.argv[1]):
        if command[0] == CALL:
            getattr(importlib.import_module(command[1]), command[2])()
            continue
        os.environ.pop(FOLDER_VARIABLE, None)
        if status := makemoe(command):
            return status
    return 0
