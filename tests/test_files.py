"""Files that are replaced whole or not at all."""

import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from makemoe.files import new_folder, remove_partial, replacing


def test_a_file_is_replaced_when_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("fault", [OSError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, fault: type[BaseException]
) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise fault

    with pytest.raises(fault):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_who_may_read_a_file_is_what_the_users_mask_says(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "a") as file:
            file.write(b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    a, b, longer = ".a.ckpt.12345678.partial", ".b.12345678.partial", ".b.2.12345678.partial"
    for name in (a, b, longer, "a.ckpt", "mine.partial", ".hidden"):
        (tmp_path / name).touch()
    remove_partial(tmp_path, of="b")
    assert not (tmp_path / b).exists()
    assert (tmp_path / a).exists()
    assert (tmp_path / longer).exists()
    old, new, written = (f".{name}.12345678.partial" for name in ("old", "new", "written"))
    for name, ages_s in ((old, (3600, 3600)), (new, (0, 3600)), (written, (3600, 0))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").touch()
        for path, age_s in zip((tmp_path / name, tmp_path / name / "a"), ages_s, strict=True):
            os.utime(path, (time.time() - age_s,) * 2)
    remove_partial(tmp_path)
    for name in (new, written):
        assert (tmp_path / name / "a").exists()
        shutil.rmtree(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == [".hidden", "a.ckpt", "mine.partial"]


def test_a_file_that_a_living_process_writes_stays(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as file:
        file.write(b"new")
        remove_partial(tmp_path)
    assert (tmp_path / "a").read_text() == "new"


def test_what_a_process_left_that_died_while_writing_is_removed(tmp_path: Path) -> None:
    writes = (
        "import os, pathlib, signal\n"
        "from makemoe.files import replacing\n"
        "with replacing(pathlib.Path('a')):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", writes], cwd=tmp_path)
    assert len(os.listdir(tmp_path)) == 1
    remove_partial(tmp_path)
    assert os.listdir(tmp_path) == []


# -- folders


def test_a_folder_appears_when_the_block_ends_well(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a") as folder:
        (folder / "file").write_text("new")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a" / "file").read_text() == "new"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("fault", [OSError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_no_folder(tmp_path: Path, fault: type[BaseException]) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "a") as folder:
            (folder / "file").write_text("half")
            raise fault

    with pytest.raises(fault):
        fail()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("b")])
def test_a_folder_replaces_nothing(tmp_path: Path, make: Callable[[Path], None]) -> None:
    def write() -> None:
        with new_folder(tmp_path / "a") as folder:
            (folder / "file").write_text("new")
            make(tmp_path / "a")

    with pytest.raises(FileExistsError, match="a"):
        write()
    assert os.listdir(tmp_path) == ["a"]
    assert not (tmp_path / "a" / "file").exists()
