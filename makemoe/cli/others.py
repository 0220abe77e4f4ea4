"""The other processes of a run: when one of them ends or fails, all end, with one line.

Without this, they would wait in a collective until its time-out, and not know for whom. Each
process says once per second in the store of torch.distributed that it is alive. The first process
watches all others, and they watch the first one. What a process fails with, and who has ended, is
written there too, the verdict, and read by all.

The store is that of torchrun, or else of the first process, on MASTER_ADDR and MASTER_PORT.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from makemoe import process
from makemoe.cli.board import Board
from makemoe.errors import UsageError

if TYPE_CHECKING:
    import subprocess

FIRST = "0.0"
"""The first process: its machine, and its number there."""

ALL = "all"
"""Key of the list of processes."""

BEAT_S = 1.0
SILENT_S = 60.0
"""A process that has been silent for so long has ended, or cannot be reached."""

BROKEN_S = 4.0
"""The same, once a connection between two processes has failed."""

PAUSED_S = 5.0  # so late, a thread wakes up only if its process stood still

JOIN_S = 600.0
"""How long the others wait for the first process to start."""

GONE = "has ended, or cannot be reached"

LINGER_S = 2.5 * BEAT_S
"""How long the process that has the store stays after a failure, so that the others can read it."""

VERDICT_S = 4 * BROKEN_S
"""How long a process whose connection has failed waits to learn who has ended."""

current: "Others | None" = None
"""Those of the command that is running."""

_commands = 0


class Verdict(NamedTuple):
    """Why all processes end.

    Attributes:
        who: the process that failed or ended.
        what: its error; or what became of it, as the end of a sentence that begins with `who`.
        status: the exit status of all.
        failed: whether `what` is its error.
    """

    who: str
    what: str
    status: int
    failed: bool

    def line(self, resume: str = "") -> str:
        """What is printed."""
        if self.failed:
            return f"makemoe: error in {self.who}: {self.what}"
        return f"makemoe: error: {self.who} {self.what}{resume}"


class Others:
    """Watches the other processes while a command runs; a context.

    Args:
        clean_up: called before this process ends because of another.
        resume: says how to resume the run, if it can be.
    """

    def __init__(self, clean_up: Callable[[], None], resume: Callable[[], str]) -> None:
        global _commands
        _commands += 1
        self.clean_up, self.resume = clean_up, resume
        self.id, self.name = f"{process.machine()}.{process.local_rank()}", process.name()
        self.is_first = process.is_first()
        self.children: Callable[[], Sequence[subprocess.Popen[Any]]] = lambda: ()
        self.broken, self.over = threading.Event(), threading.Event()
        self.ending = threading.Lock()
        self.board = Board(f"makemoe/{_commands}", self.id)
        self.beats, self.reached_at = 0, time.monotonic()
        self.was_reached = self.is_refused = False
        self.heard: dict[str, tuple[int | str, float]] = {}

    def __enter__(self) -> "Others":
        global current
        current = self
        if is_started_together():
            self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Say goodbye, unless this process fails: then `fail` says why."""
        if kind is None or issubclass(kind, SystemExit):
            self.leave()

    def leave(self) -> None:
        """Tell the others that this process has ended as it should."""
        global current
        current = None
        self.over.set()
        if not self.beats:
            return
        if signal.getsignal(signal.SIGTERM) == self.terminated:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.board.ask(lambda: self.beat("bye"))
        deadline = time.monotonic() + LINGER_S
        # They end at the same moment; without the store, they would take this for a failure.
        while self.is_first and self.board.ask(self.is_missed) and time.monotonic() < deadline:
            time.sleep(BEAT_S / 20)
        self.board.close()

    def is_missed(self) -> bool:
        """Whether another process has not said goodbye yet."""
        ids = {*self.board.words(ALL)} - {self.id}
        return any(self.board.has(id) and self.board.get(id)[0] != "bye" for id in ids)

    def start(self) -> None:
        """Begin to watch.

        Raises:
            UsageError: if the first process cannot have a store at its port.
        """
        if self.beats:
            return
        if is_started_together() and self.is_first and not process.has_store():
            self.board.open()
        self.beats = 1
        if process.is_elastic():
            with suppress(ValueError):  # not in the main thread: the caller handles signals
                signal.signal(signal.SIGTERM, self.terminated)
        for work in (self.talk, self.guard):
            threading.Thread(target=work, daemon=True, name="others").start()

    def terminated(self, number: int, frame: FrameType | None) -> None:
        """End, after SIGTERM outside of training; but first let `look` find out whether it must.

        torchrun sends it to all processes as soon as one has ended.
        """
        self.broken.set()
        last = threading.Timer(BROKEN_S + 4 * BEAT_S, self.end, [128 + number])
        last.daemon = True
        last.start()

    # -- what other processes are told, and asked

    def agree(self, settings: Mapping[str, Any]) -> None:
        """Compare settings with the first process's.

        Raises:
            UsageError: naming one that differs.
        """
        theirs = self.of_first("settings", lambda: dict(settings))
        for name, value in settings.items():
            if theirs.get(name) != value:
                raise UsageError(
                    f"{name} is {value} here and {theirs.get(name)} in the first process: start "
                    "all processes of a run alike"
                )

    def of_first(self, key: str, value: Callable[[], Any]) -> Any:
        """A plain value that the first process works out, and all others wait for.

        Whoever has it has said that it is alive. So the first process knows all that it trains
        with, and they know it.

        Raises:
            UsageError: if the first process has not been there for long.
        """
        if not is_started_together() or not self.beats:
            return value()
        if self.is_first:
            found = value()
            with self.board.lock:
                self.speak()
                self.board.set(key, found)
            return found
        deadline = time.monotonic() + JOIN_S
        while self.was_reached or time.monotonic() < deadline:
            if answer := self.board.ask(lambda: self.answer(key)):
                return answer[0]
            time.sleep(BEAT_S / 10)
        raise UsageError(
            f"the first process, MASTER_ADDR {os.environ['MASTER_ADDR']}, has not answered for "
            f"{JOIN_S:.0f} s: start it, or give its address"
        )

    def answer(self, key: str) -> list[Any]:
        """The value of the first process in a list, which is empty if there is none yet."""
        if not self.board.has(key):
            return []
        self.speak()
        return [self.board.get(key)]

    def started(self) -> int:
        """How often the processes have been started, this time included; 0: it is not known."""
        if self.beats:
            self.board.ask(self.board.reached)
        return self.board.start

    def fail(self, message: str, status: int) -> None:
        """End this process with an error, and the others too; return if there are no others."""
        if not self.beats:
            return
        verdict = Verdict(self.name, message, status, True)
        if self.board.ask(lambda: self.board.claim("verdict", verdict)) is False:
            time.sleep(VERDICT_S)  # another one was faster: wait to be ended
        if not self.ending.acquire(blocking=False):
            time.sleep(VERDICT_S)  # a thread is ending this process
        if self.may_tell():
            is_first = process.is_first_here()
            which = "" if is_first else f" in {self.name}"
            say(f"makemoe: error{which}: {message}", below=not is_first)
        self.end(status)

    def await_verdict(self) -> None:
        """Wait to be ended after a connection has failed; return if it cannot be found out why."""
        if self.beats:
            self.broken.set()
            time.sleep(VERDICT_S)

    # -- the threads

    def talk(self) -> None:
        """At once, and then once per second: say that this process is alive, look at the others."""
        awake_at = time.monotonic()
        while True:
            awake_at, paused_s = woken(awake_at)
            self.heard = {id: (beats, at + paused_s) for id, (beats, at) in self.heard.items()}
            try:
                with self.board.lock:
                    if self.over.is_set():
                        return
                    self.look()
            except (RuntimeError, OSError) as error:
                self.board.close()
                self.is_refused = isinstance(error, ConnectionRefusedError)
            else:
                self.reached_at, self.was_reached, self.is_refused = time.monotonic(), True, False
            if self.over.wait(BEAT_S):
                return

    def guard(self) -> None:
        """Once per second: look at what can be seen without the store, which may not answer."""
        awake_at = time.monotonic()
        while not self.over.wait(BEAT_S):
            awake_at, paused_s = woken(awake_at)
            self.reached_at += paused_s
            for number, child in enumerate(self.children(), 1):
                if child.poll():  # it has failed, and could not say why
                    time.sleep(BEAT_S)  # this process may fail for the same reason, and say it
                    who = process.name(number)
                    self.judge(Verdict(who, ended_how(child.poll()), 1, False))
            silent_s, is_broken = time.monotonic() - self.reached_at, self.broken.is_set()
            patience_s = BROKEN_S if is_broken or self.is_refused else SILENT_S
            # Once a connection is broken, there has been a store: who refuses now has ended.
            was_there = self.was_reached or (is_broken and self.is_refused)
            if was_there and silent_s > patience_s:
                who = f"the first process, on {os.environ['MASTER_ADDR']},"
                self.end_with(Verdict(who, GONE, 1, False))

    def look(self) -> None:
        """Take part once; RuntimeError or OSError if the store does not answer."""
        self.beat()
        if self.board.has("verdict"):
            verdict = Verdict(*self.board.get("verdict"))
            if not (verdict.failed and verdict.who == self.name):
                self.end_with(verdict)
        if self.broken.is_set():
            self.board.set("broken", True)
        elif self.board.has("broken"):
            self.broken.set()
        for id in {*(self.board.words(ALL) if self.is_first else [FIRST])} - {self.id}:
            if self.board.has(id):
                self.hear(id, *self.board.get(id))

    def hear(self, id: str, beats: int | str, who: str) -> None:
        """Note how often a process has spoken; judge it if it has been silent for long."""
        before, since = self.heard.get(id, (0, 0.0))
        if beats != before:
            since = time.monotonic()
        self.heard[id] = beats, since
        silent_s = time.monotonic() - since
        if beats != "bye" and silent_s > (BROKEN_S if self.broken.is_set() else SILENT_S):
            self.judge(Verdict(who, GONE, 1, False))

    def speak(self) -> None:
        """Say that this process is alive, unless it has before: then `look` does."""
        if self.beats == 1:
            self.beat()

    def beat(self, beats: int | str | None = None) -> None:
        """Say that this process is alive."""
        if self.beats == 1:
            self.board.add(ALL, self.id)
        self.beats += 1
        self.board.set(self.id, [beats or self.beats, self.name])

    def judge(self, verdict: Verdict) -> None:
        """End all processes, this one included."""
        self.board.ask(lambda: self.board.claim("verdict", verdict))
        self.end_with(verdict)

    def end_with(self, verdict: Verdict) -> None:
        """End this process, which may be waiting for another; one process per machine says why."""
        if not self.ending.acquire(blocking=False):
            return
        if self.may_tell():
            say(readable(verdict.line(self.resume())), below=True)
        self.end(verdict.status)

    def may_tell(self) -> bool:
        """Whether no other process on this machine has said why all end."""
        key = f"told/{process.machine()}"
        is_ours = self.board.ask(lambda: self.board.claim(key, self.id))
        if is_ours is None:  # the first process is gone, and with it the store
            return process.local_rank() == (1 if process.machine() == 0 else 0)
        return bool(is_ours)

    def end(self, status: int) -> None:
        """End this process and those it has started."""
        with suppress(Exception):
            self.clean_up()
        if self.is_first and not process.has_store():
            time.sleep(LINGER_S)  # it has the store
        for child in self.children():
            with suppress(OSError):
                child.kill()
        sys.stdout.flush()
        os._exit(status)


def of_first(key: str, value: Callable[[], Any]) -> Any:
    """See `Others.of_first`; without other processes, the value."""
    return value() if current is None else current.of_first(key, value)


def is_restarted() -> bool:
    """Whether this job may have begun its run before; only the first process needs to know."""
    if process.attempt() or process.is_named():
        return True
    return current is not None and current.started() > 1


def is_started_together() -> bool:
    """Whether the processes of this run were started side by side, on one machine or several.

    Otherwise the first one starts the others later, with its own settings.
    """
    has_address = all(os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT"))
    is_launched = process.is_elastic() or process.is_slurm()
    several = os.environ.get("WORLD_SIZE", "") != "1"
    return has_address and several and (is_launched or process.is_first_here())


def woken(before: float) -> tuple[float, float]:
    """The time, and for how long since `before` this process, and so all, stood still (Ctrl-Z)."""
    passed_s = time.monotonic() - before
    return before + passed_s, passed_s if passed_s > PAUSED_S else 0.0


def ended_how(status: int | None) -> str:
    """What became of a process, from its exit status."""
    if status is not None and status < 0:
        with suppress(ValueError):
            return f"was killed by {signal.Signals(-status).name}"
    return f"has ended with status {status}"


def say(line: str, below: bool) -> None:
    """Print an error; on a terminal, `below` the line that the progress bar of another part has."""
    begin = "\n" if below and sys.stderr.isatty() else ""
    print(f"{begin}{line}", file=sys.stderr, flush=True)


def readable(line: str) -> str:
    """A line as it may be printed: what it tells comes from another process."""
    from makemoe.cli.failures import readable as escaped

    return escaped(line)
