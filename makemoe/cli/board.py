"""Plain values that the processes of a run write down for each other, whatever else they do.

They are in the store of torch.distributed: that of torchrun, or else of the first process, at
MASTER_ADDR and MASTER_PORT. The store of torchrun outlives the processes that it starts again, so
they write and read under the number of their start. They agree on it here: torchrun's own count is
that of a machine, and machines that start again for different reasons count differently.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from makemoe import process
from makemoe.errors import UsageError

ANSWER_S = 5.0
"""How long to wait for the store."""

CONNECT_S = 15.0
"""How long to wait for torch to connect to a store that answers. It looks up the names of both
ends, which takes 5 s or 10 s where no name server answers."""


class Board:
    """Values by key. Whatever is asked raises OSError or RuntimeError if there is no answer.

    Args:
        name: of the board, the same in all processes.
        id: of this process.

    Attributes:
        lock: held by the thread that uses it; the other one uses `ask`.
        start: number of this start of the processes, from 1; 0: not known yet.
    """

    def __init__(self, name: str, id: str) -> None:
        self.name, self.id = name, id
        self.lock = threading.RLock()
        self.start = 0
        self.store: Any = None
        # That of torchrun stays where it is; a restarted run trains with another one.
        self.address = address() if process.has_store() else None

    def open(self) -> None:
        """Make the store, in the first process.

        Raises:
            UsageError: if there can be none at this port.
        """
        self.store = own_store()

    def close(self) -> None:
        """Leave the store; what is asked next connects again."""
        self.store = None

    def ask(self, work: Callable[[], Any]) -> Any:
        """What `work` returns, beside another thread; None if the store does not answer."""
        if self.lock.acquire(timeout=ANSWER_S):
            try:
                with suppress(RuntimeError, OSError):
                    return work()
            finally:
                self.lock.release()
        return None

    def set(self, key: str, value: Any) -> None:
        """Write a value."""
        self.reached().set(self.at(key), json.dumps(value))

    def has(self, key: str) -> bool:
        """Whether a value has been written."""
        return bool(self.reached().check([self.at(key)]))

    def get(self, key: str) -> Any:
        """A value that has been written."""
        return json.loads(self.reached().get(self.at(key)))

    def claim(self, key: str, value: Any) -> bool:
        """Write a value unless there is another one; whether it is the one there now."""
        text = json.dumps(value)
        found: bytes = self.reached().compare_set(self.at(key), "", text)
        return found.decode() == text

    def add(self, key: str, word: str) -> None:
        """Add a word to a list."""
        self.reached().append(self.at(key), f"{word} ")

    def words(self, key: str) -> list[str]:
        """The words of a list."""
        text: bytes = self.reached().get(self.at(key))
        return text.decode().split()

    def reached(self) -> Any:
        """The store, once this process knows the number of its start."""
        if self.store is None:
            self.store = connected(*(self.address or address()))
        if not self.start:
            self.start = self.joined()
        return self.store

    def joined(self) -> int:
        """The number of this start: that of the newest one in which this process's seat is free.

        A process that is started again finds its seat taken. The first one to do so opens the
        next start.
        """
        starts, own = f"{self.name}/starts", f"{os.getpid()} {time.time_ns()}"
        number = int(self.store.compare_set(starts, "", "1"))
        while self.store.compare_set(self.at(f"seat/{self.id}", number), "", own) != own.encode():
            number = int(self.store.compare_set(starts, str(number), str(number + 1)))
        return number

    def at(self, key: str, start: int = 0) -> str:
        """Where a value of a start is in the store; 0: of this one, which `reached` finds out."""
        return f"{self.name}/{start or self.start}/{key}"


def own_store() -> Any:
    """The store of the first process, which torch.distributed uses later too."""
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    try:
        return patient(host, port, is_master=True, multi_tenant=True)
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"MASTER_PORT {port} cannot be used on this machine, MASTER_ADDR {host}: "
            f"{reason(error)}; choose another port, or the first machine's address"
        ) from error


def address() -> tuple[str, str]:
    """The store's host and port; empty while they are not known."""
    return os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")


def connected(host: str, port: str) -> Any:
    """A connection to the store; OSError if there is none."""
    import socket

    if not (host and port):
        raise OSError("the address is not known yet")
    # First without torch, which would print that it fails.
    socket.create_connection((host, port), ANSWER_S).close()
    return patient(host, port)


def patient(host: str, port: str, **options: bool) -> Any:
    """A store of torch, or a connection to one, that may take long to connect but not to answer."""
    # At the top, it would slow down every start.
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    longest = timedelta(seconds=CONNECT_S)
    store = TCPStore(host, int(port), wait_for_workers=False, timeout=longest, **options)
    store.set_timeout(timedelta(seconds=ANSWER_S))
    return store


def reason(error: Exception) -> str:
    """Why torch has no store, in words."""
    text = str(error)
    return "it is taken" if "EADDRINUSE" in text or "address already in use" in text else text
