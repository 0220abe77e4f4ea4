"""A run of several processes: how it is started, which of its processes are alive, how it ended."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nursery import MAKEMOE, Forked
from ports import free_port

from soak.kinds import LIGHTNING, MACHINES, MARK, SIDE, Kind, environment

PATIENCE_S = 600.0


class Running:
    """A run that has been started or resumed in `root`; its messages are in root/stderr.txt.

    Args:
        kind: what it is.
        root: its folder, with a folder `run` in it.
        mark: by which its processes are found.
        resumed: whether it goes on from last.ckpt.
    """

    def __init__(self, kind: Kind, root: Path, mark: str, resumed: bool = False) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.kind, self.root, self.mark = kind, root, mark
        command, variables = kind.command(root, resumed), environment(mark)
        self.leaders: list[Any]
        if kind.launcher in (SIDE, MACHINES):
            places = (side_by_side if kind.launcher == SIDE else on_machines)(kind.processes)
            self.leaders = [start(command, root, variables | own) for own in places]
        elif kind.launcher == LIGHTNING:
            self.leaders = [start(command, root, variables)]
        else:
            with (root / "stderr.txt").open("ab") as messages:
                self.leaders = [
                    subprocess.Popen(
                        command,
                        cwd=root,
                        env=variables,
                        stdout=messages,
                        stderr=messages,
                        start_new_session=True,
                    )
                ]

    @property
    def launcher(self) -> int:
        """The process that started the others, or else the first one."""
        return int(self.leaders[0].pid)

    def ranks(self) -> list[int]:
        """The processes that train."""
        if self.kind.launcher in (SIDE, MACHINES):
            return [leader.pid for leader in self.leaders]
        started = [
            pid
            for pid, variables in alive(self.mark, {self.launcher}).items()
            if variables["parent"] == str(self.launcher) and "LOCAL_RANK" in variables
        ]
        return [self.launcher, *started] if self.kind.launcher == LIGHTNING else started

    def alive(self) -> list[int]:
        """All processes that are left."""
        for leader in self.leaders:
            leader.poll()
        return list(alive(self.mark, {leader.pid for leader in self.leaders}))

    def has_ended(self) -> bool:
        """Whether one of the processes that were started has."""
        return any(leader.poll() is not None for leader in self.leaders)

    def status(self) -> int:
        """The first exit status that is not 0, once all have ended; -1: they have not."""
        statuses = [leader.poll() for leader in self.leaders]
        return -1 if None in statuses else next(filter(None, statuses), 0)

    def finish(self) -> int:
        """Wait until it ends; its status."""
        deadline = time.monotonic() + PATIENCE_S
        while (self.alive() or self.status() == -1) and time.monotonic() < deadline:
            time.sleep(0.2)
        return self.status()

    def end(self) -> None:
        """Kill what is left of it."""
        while left := self.alive():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def said(self) -> str:
        """All messages so far, also of the run before it was resumed."""
        file = self.root / "stderr.txt"
        return file.read_text(errors="replace") if file.exists() else ""


def start(command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> Forked:
    """`makemoe` with some arguments; its messages are added to folder/stderr.txt."""
    with (folder / "stderr.txt").open("ab") as messages:
        files = {"stdout": messages, "stderr": messages}
        return Forked([MAKEMOE, *command], folder, variables, **files, start_new_session=True)


def side_by_side(size: int) -> list[dict[str, str]]:
    """What the environment says of the place of each process."""
    if size == 1:
        return [{}]
    group = {**address(), "NODE_RANK": "0", "WORLD_SIZE": str(size)}
    return [group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def on_machines(size: int) -> list[dict[str, str]]:
    """What SLURM says of the place of each process, if each has a machine of its own."""
    group = {
        **address(),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "soak",
        "SLURM_NNODES": str(size),
        "SLURM_NTASKS": str(size),
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NODELIST": "localhost",
        "SLURM_LOCALID": "0",
    }
    return [
        group | {"SLURM_PROCID": str(machine), "SLURM_NODEID": str(machine)}
        for machine in range(size)
    ]


def address() -> dict[str, str]:
    """Where processes meet, as the environment says it."""
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}


def alive(mark: str, sessions: set[int]) -> dict[int, dict[str, str]]:
    """Processes of some sessions or with a mark, and the environment each began with."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state = (entry / "stat").read_text().rpartition(")")[2].split()
            words = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        variables = dict(word.decode(errors="replace").partition("=")[::2] for word in words)
        if state[0] != "Z" and (int(state[3]) in sessions or variables.get(MARK) == mark):
            found[int(entry.name)] = variables | {"parent": state[1]}
    return found
