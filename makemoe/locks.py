"""A lock on a file: one process holds it, and the system releases it when that process dies.

It uses flock, not a library that falls back to lock files: a killed process leaves those behind.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

POLL_S = 0.01

_held: set[int] = set()


def _close_in_child() -> None:
    """Close locks in a forked process, such as a data loader, which may outlive its parent."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


class Lock:
    """An exclusive lock on the file at `path`, which is created if it does not exist.

    Attributes:
        made: whether taking the lock created the file.
        enforced: whether others are locked out; false if the file system has no flock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.made = self.enforced = False
        self._descriptor: int | None = None

    def take(self, patience_s: float = 0.0) -> bool:
        """Try to take the lock; True if it is held now. Without flock it always succeeds.

        Args:
            patience_s: how long to try, in seconds.

        Raises:
            OSError: if the file cannot be created or opened.
        """
        deadline = time.monotonic() + patience_s
        while True:
            descriptor = self._open()
            free = _try_lock(descriptor, exclusive=True)
            if free is not False and self._is_current(descriptor):
                self._descriptor, self.enforced = descriptor, free is True
                _held.add(descriptor)
                return True
            os.close(descriptor)
            if free is False:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(POLL_S)

    def release(self, remove: bool) -> None:
        """Release the lock.

        Args:
            remove: delete the file first, while no other process can hold the lock.
        """
        if self._descriptor is None:
            return
        if remove:
            with suppress(OSError):
                self.path.unlink()
        _held.discard(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = None

    def _open(self) -> int:
        """Create or open the file; do not follow a link."""
        flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            descriptor = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return os.open(self.path, flags | os.O_CREAT, 0o666)
        self.made = True
        return descriptor

    def _is_current(self, descriptor: int) -> bool:
        """Whether the path still names this file: the previous holder may have deleted it."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False


def is_held(path: Path) -> bool:
    """Whether a process holds the lock at `path`; creates nothing.

    It takes a shared lock for an instant; a process that waits for the lock waits longer than that.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        return _try_lock(descriptor, exclusive=False) is False
    finally:
        os.close(descriptor)


@contextmanager
def holding(descriptor: int) -> Iterator[None]:
    """Lock an open file, where the system can, even beyond its closing: it `is_held` for others."""
    if sys.platform == "win32":  # it does not rename a file that is open anywhere
        yield
        return
    own = os.dup(descriptor)
    try:
        _try_lock(own, exclusive=True)
        yield
    finally:
        os.close(own)


def _try_lock(descriptor: int, exclusive: bool) -> bool | None:
    """Whether the lock was acquired; None if the file system has no flock."""
    if sys.platform == "win32":
        return None
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the second on some file systems
        return False
    except OSError:
        return None
    return True
