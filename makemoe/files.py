"""Reads regular files only, and writes files atomically."""

import contextlib
import errno
import glob
import os
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from makemoe.locks import holding, is_held

PARTIAL = ".partial"
"""Suffix of a file that is being written, or that a killed process left behind."""

LIVE_S = 600
"""For so long after its last change, a partial folder may be one that is being written."""

STANDARD_INPUT = "-"
"""Stands for standard input in place of a file name."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: as from `open`, and for a folder, a pipe or a device, which could block or never
            end.
    """
    # Non-blocking, because opening a pipe waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError(errno.EINVAL, "Not a regular file", os.fspath(path))


def read_whole(path: str | os.PathLike[str], most: int) -> bytes:
    """Read a whole regular file.

    Raises:
        OSError: as from `open_regular`, and for a file of more than `most` bytes.
    """
    with open_regular(path) as file:
        return _at_most(file, most, os.fspath(path))


def read_standard_input(most: int) -> bytes:
    """Read all of standard input.

    Raises:
        OSError: for more than `most` bytes, and if there is no standard input.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise OSError(errno.EBADF, "Standard input is closed", "-")
    return _at_most(sys.stdin.buffer, most, "-")


def _at_most(file: BinaryIO, most: int, name: str) -> bytes:
    try:
        content = file.read(most + 1)
    except ValueError as error:  # closed without Python's knowledge
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), name) from error
    if len(content) > most:
        raise OSError(errno.EFBIG, f"Larger than {most >> 20} MiB", name)
    return content


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that replaces `path` if the block succeeds; if it fails, nothing is left behind."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}{PARTIAL}"
    try:
        with contextlib.ExitStack() as until_renamed:
            with temporary.open("xb") as file:
                until_renamed.enter_context(holding(file.fileno()))
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # the name the user knows
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears at `path` if the block succeeds; if it fails, nothing is left behind.

    Raises:
        OSError: if something is at `path` already, and as from writing.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}{PARTIAL}"
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        _sync_folder(temporary)
        if os.path.lexists(path):  # an empty folder would be replaced
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        os.rename(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # the name the user knows
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_partial(name: str) -> bool:
    """Whether the name is that of a partial file."""
    return name.startswith(".") and name.endswith(PARTIAL)


def remove_partial(folder: Path, of: str | None = None) -> None:
    """Remove partial files and folders of killed processes.

    A file that a living process writes stays, such as that of `consolidate --to`, which takes no
    lock of the folder. So does a folder that was changed a moment ago: it may be that of an export.

    Args:
        folder: where they are.
        of: the name of the file or folder that was to be; None: any.
    """
    name = "*" if of is None else f"{glob.escape(of)}.{'[0-9a-f]' * 8}"
    for leftover in folder.glob(f".{name}{PARTIAL}"):
        if leftover.is_dir() and not leftover.is_symlink():
            if time.time() - last_change(leftover) > LIVE_S:
                shutil.rmtree(leftover, ignore_errors=True)
        elif leftover.is_symlink() or not is_held(leftover):
            leftover.unlink(missing_ok=True)


def last_change(folder: Path) -> float:
    """When a folder or something in it was changed last, in seconds since 1970."""
    times = [0.0]
    for path in (folder, *folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return max(times)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure, on systems that support it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
