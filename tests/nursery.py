"""Processes forked from one that has loaded everything, `python tests/nursery.py`: that saves each
the seconds that loading takes. What a process imports, or does while it does, needs a real start.
"""

import atexit
import importlib
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO

from makemoe.cli.interrupts import PARENT_VARIABLE

MAKEMOE = str(Path(sys.executable).parent / "makemoe")
TESTS = Path(__file__).parent
LONGEST = 1 << 18
"""Bytes of an order, which holds an environment."""

_connection: socket.socket | None = None


class Order(NamedTuple):
    """What a process is to be.

    Attributes:
        words: its sys.argv.
        folder: its working folder.
        variables: its environment.
        leads: whether it leads a session of its own.
        first: what it calls first.
        module: whose function `main` it calls then.
    """

    words: list[str]
    folder: str
    variables: dict[str, str]
    leads: bool
    first: Callable[[], object] | None
    module: str


class Forked:
    """A process, with the methods of `subprocess.Popen`; by default, the console script `makemoe`.

    Args:
        words: the script and its arguments.
        cwd: its working folder.
        env: its environment.
        stdout: a file, or PIPE.
        stderr: a file, or PIPE.
        start_new_session: whether it leads a session of its own.
        preexec_fn: what it calls first; it can be pickled.
        module: whose function `main` it calls then.
    """

    def __init__(
        self,
        words: Sequence[str | Path],
        cwd: str | Path = ".",
        env: Mapping[str, str] = os.environ,
        stdout: int | IO[Any] = subprocess.DEVNULL,
        stderr: int | IO[Any] = subprocess.DEVNULL,
        start_new_session: bool = False,
        preexec_fn: Callable[[], object] | None = None,
        module: str = "makemoe.__main__",
    ) -> None:
        global _connection
        if _connection is None:
            _connection = begin()
        order = Order(
            [str(word) for word in words],
            os.path.abspath(cwd),
            dict(env),
            start_new_session,
            preexec_fn,
            module,
        )
        self._pipes: list[TextIO] = []
        self._line, its = socket.socketpair(type=socket.SOCK_SEQPACKET)
        with its, ExitStack() as stack:
            null = stack.enter_context(open(os.devnull, "r+"))
            files = [null]
            for file in (stdout, stderr):
                if file == subprocess.PIPE:
                    ours, theirs = os.pipe()
                    self._pipes.append(os.fdopen(ours))
                    file = stack.enter_context(open(theirs, "w"))
                files.append(null if file == subprocess.DEVNULL else file)
            passed = [file if isinstance(file, int) else file.fileno() for file in (*files, its)]
            socket.send_fds(_connection, [pickle.dumps(order)], passed)
        self.stdout = self._pipes[0] if stdout == subprocess.PIPE else None
        self.stderr = self._pipes[-1] if stderr == subprocess.PIPE else None
        self.returncode: int | None = None
        self.pid = self._told()

    def __del__(self) -> None:
        for one in (self._line, *self._pipes):  # nobody may have waited
            one.close()

    def _told(self) -> int:
        told = self._line.recv(20)
        assert told, "the nursery has ended"
        return int(told)

    def poll(self) -> int | None:
        """Its exit status, as subprocess has it; None: it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends, and return its exit status."""
        if self.returncode is None:
            if not select.select([self._line], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(MAKEMOE, timeout or 0)
            self.returncode = self._told()
            self._line.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, if it runs."""
        self.send_signal(signal.SIGKILL)


def run_of(command: Sequence[str], env: Mapping[str, str], **options: Any) -> Forked:
    """A run of a comparison or a sweep: `python -m makemoe`, which its starter would have ended."""
    own = {name: value for name, value in env.items() if name != PARENT_VARIABLE}
    options.pop("stdin")  # there is none
    return Forked([MAKEMOE, *command[3:]], env=own, **options)


def begin() -> socket.socket:
    """Start the process that forks; it ends when the connection to it is closed."""
    ours, its = socket.socketpair(type=socket.SOCK_SEQPACKET)
    for end in (ours, its):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * LONGEST)
    paths = [str(TESTS), str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    with its:
        process = subprocess.Popen(
            [sys.executable, __file__],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            stdin=its,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C is not for it
        )

    def end() -> None:
        ours.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        process.kill()

    atexit.register(end)
    return ours


def main() -> None:
    """Load everything, then fork what is ordered."""
    for module in ("training", "predict", "inspect"):
        importlib.import_module(f"makemoe.cli.{module}")
    orders = socket.socket(fileno=0)
    while True:
        told, files, _, _ = socket.recv_fds(orders, LONGEST, 4)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass  # it has ended, and is forgotten
        if not told:
            return
        if os.fork() == 0:
            orders.detach()  # it is standard input, which will be another one
            return watch(pickle.loads(told), *files)
        for file in files:
            os.close(file)


def watch(order: Order, *files: int) -> None:
    """Fork the process, and tell the one that ordered it its number, and how it ends."""
    *streams, line = files
    pid = os.fork()
    if pid == 0:
        os.close(line)
        for number, file in enumerate(streams):
            os.dup2(file, number)
            os.close(file)
        become(order)
    with socket.socket(fileno=line) as telling:
        telling.send(b"%d" % pid)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with suppress(OSError):
            telling.send(b"%d" % status)
    os._exit(0)


def become(order: Order) -> None:
    """Be the process that is ordered, to its end."""
    if order.leads:
        os.setsid()
    if order.first is not None:
        order.first()
    os.chdir(order.folder)
    os.environ.clear()
    os.environ.update(order.variables)
    sys.argv = order.words
    # Python has looked at the former ones, which were no terminals and no pipes.
    encoding = sys.stdout.encoding
    sys.stdin = os.fdopen(0, encoding=encoding, closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding=encoding, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding=encoding, errors="backslashreplace", closefd=False)
    sys.exit(importlib.import_module(order.module).main())


if __name__ == "__main__":
    main()
