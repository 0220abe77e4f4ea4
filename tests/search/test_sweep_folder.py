"""The folder of a sweep: whose trials it holds, and which of its workers live."""

import errno
import os
from pathlib import Path

import pytest

from makemoe import locks
from makemoe.search import sweep_folder
from makemoe.search.sweep_folder import Alive, lives

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="without flock nobody is seen")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / sweep_folder.WORKERS).mkdir()
    return tmp_path


def test_a_worker_of_this_machine_lives_as_long_as_its_process(folder: Path) -> None:
    with Alive(folder, "a"):
        assert lives(folder, "a") is True
        assert lives(folder, "b") is None
    assert lives(folder, "a") is None  # it has ended in peace, and has given its trial back
    killed = os.fork()
    if not killed:
        Alive(folder, "c").__enter__()
        os._exit(0)
    os.waitpid(killed, 0)
    assert lives(folder, "c") is False


def test_whether_a_worker_of_another_machine_lives_is_not_known(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Alive(folder, "a"):
        monkeypatch.setattr("platform.node", lambda: "elsewhere")
        assert lives(folder, "a") is None
        monkeypatch.undo()
        assert lives(folder, "a") is True


def test_without_locks_no_worker_is_taken_for_dead(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOSYS, "no flock here")

    monkeypatch.setattr(locks.fcntl, "flock", unknown)
    with Alive(folder, "a"):
        assert lives(folder, "a") is None
