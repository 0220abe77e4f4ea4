"""Locks that a kill releases."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from makemoe.locks import Lock, is_held

HOLD = """
import os, sys, time
from pathlib import Path
from makemoe.locks import Lock
lock = Lock(Path("lock"))
assert lock.take()
{more}
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@contextmanager
def holder(more: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock."""
    program = HOLD.format(more=more)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as p:
        assert p.stdout is not None
        assert p.stdout.readline()
        yield p
        p.kill()


def test_one_process_holds_it_until_it_is_killed() -> None:
    lock = Lock(Path("lock"))
    with holder() as process:
        assert is_held(Path("lock"))
        assert not lock.take()
        process.kill()
        process.wait()
        assert not is_held(Path("lock"))
        assert lock.take()
    assert is_held(Path("lock"))
    lock.release(remove=True)
    assert not os.listdir()


def test_a_forked_process_does_not_hold_it_on() -> None:
    # The fork has begun to run before its parent says that it holds the lock.
    fork = """
r, w = os.pipe()
if not os.fork(): os.write(w, b"."), time.sleep(60)
os.read(r, 1)
"""
    with holder(fork) as process:
        forked = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        process.kill()
        process.wait()
        assert Path(f"/proc/{forked}").exists()
        assert not is_held(Path("lock"))
        os.kill(forked, signal.SIGKILL)


def test_asking_creates_nothing_and_lets_others_have_it() -> None:
    assert not is_held(Path("lock"))
    assert not os.listdir()
    Path("lock").touch()
    assert not is_held(Path("lock"))
    lock = Lock(Path("lock"))
    assert lock.take()
    assert not lock.made
    lock.release(remove=False)


def test_a_file_that_was_deleted_by_its_holder_is_not_locked() -> None:
    # Both processes open the file; the one that holds it deletes it and lets go.
    first, second = Lock(Path("lock")), Lock(Path("lock"))
    assert first.take()
    unlocked = second._open
    second._open = lambda: [unlocked(), first.release(remove=True)][0]  # type: ignore
    assert second.take()
    assert second.made
    third = Lock(Path("lock"))
    assert not third.take()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_flock_it_is_always_there(
    monkeypatch: pytest.MonkeyPatch, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("makemoe.locks.fcntl.flock", raising(number))
    first, second = Lock(Path("lock")), Lock(Path("lock"))
    assert first.take()
    assert second.take()
    assert not first.enforced
    assert (first.made, second.made) == (True, False)
    assert not is_held(Path("lock"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
def test_a_lock_that_another_has_is_not_taken_whatever_the_system_calls_that(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("makemoe.locks.fcntl.flock", raising(number))
    assert not Lock(Path("lock")).take()
    assert is_held(Path("lock"))


def test_a_link_is_not_followed() -> None:
    Path("lock").symlink_to("elsewhere")
    with pytest.raises(OSError, match="lock"):
        Lock(Path("lock")).take()
    assert not Path("elsewhere").exists()


def raising(number: int) -> Callable[..., None]:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return flock
