"""A process that has loaded everything, and starts others by fork: loading takes seconds."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
PATHS = TESTS, TESTS.parent


class Nursery:
    """The process, as others see it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def start(self, command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> "Forked":
        """Start `makemoe` with some arguments; its messages are added to folder/stderr.txt."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "soak.nursery"],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PATHS))},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        order = {"command": list(command), "folder": str(folder), "variables": dict(variables)}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return Forked(int(self.process.stdout.readline()), folder)


class Forked:
    """A process that the nursery has started; the leader of a session."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self.folder = pid, folder

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            state = "Z"
        if state != "Z":
            return None
        said = self.folder / f"status.{self.pid}"
        return int(said.read_text()) if said.exists() else -signal.SIGKILL


def main() -> None:
    """Load everything, then start what standard input orders."""
    import makemoe.__main__
    import makemoe.cli.training

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system forgets those that have ended
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            become(json.loads(line), makemoe.__main__)
        print(pid, flush=True)


def become(order: dict[str, Any], program: Any) -> None:
    """Be the process that is ordered, to its end."""
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.chdir(order["folder"])
        os.environ.clear()
        os.environ.update(order["variables"])
        messages = os.open("stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, messages), (2, messages)):
            os.dup2(file, stream)
        sys.argv = ["makemoe", *order["command"]]
        sys.modules["__main__"] = program  # what Lightning starts other processes of
        status = program.main()
        sys.stdout.flush()
        sys.stderr.flush()
        Path(f"status.{os.getpid()}").write_text(str(status))
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
