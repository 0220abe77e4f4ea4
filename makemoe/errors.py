"""Errors a user can fix, and the exit status of each.

The command line prints such an error as one line and nothing else. `makemoe/cli/failures.py`
decides what it prints for any other exception.
"""

import errno
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
DISK_FAULTS = FULL | {
    *(errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG),
}
"""Error numbers of a file system that a user can do something about."""


IN_PYTHON: ContextVar[bool] = ContextVar("in_python", default=False)

ARGUMENTS = {"ckpt_path": "path", "run.root": "root"}
"""Options whose argument in Python has another name."""


@contextmanager
def in_python() -> Iterator[None]:
    """Within this context, messages name arguments instead of options of the command line."""
    before = IN_PYTHON.set(True)
    try:
        yield
    finally:
        IN_PYTHON.reset(before)


def setting(option: str, value: str) -> str:
    """An option with its value, as its user writes it: `--trust mine`, or `trust='mine'`."""
    if IN_PYTHON.get():
        return f"{ARGUMENTS.get(option, option)}={value!r}"
    return f"--{option} {shlex.quote(value)}"


class MakeMoEError(Exception):
    """Base class of errors that are reported to the user in one line."""

    exit_status = 1


class UsageError(MakeMoEError, ValueError):
    """An invalid option or setting: a size, a name, or a combination."""

    exit_status = 2


class MissingPackageError(MakeMoEError):
    """A package that an option needs and that is not installed."""

    exit_status = 2


class DataError(MakeMoEError):
    """A text that cannot be read, downloaded, encoded or trained on."""


class CheckpointError(MakeMoEError):
    """A checkpoint that cannot be read, trusted or written."""


class NotFiniteError(MakeMoEError):
    """A loss, weights or logits that are not finite; code that knows a good checkpoint adds it.

    Attributes:
        kept: checkpoints from before, by step.
    """

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.kept: dict[int, str] = {}

    def __str__(self) -> str:
        what = super().__str__()
        if not self.kept:
            return what
        step = max(self.kept)
        return f"{what}; the last good checkpoint is {self.kept[step]} of step {step}"


class WriteError(CheckpointError):
    """A file of a run that cannot be written; code that knows the folder adds the fix.

    Attributes:
        is_full: whether the disk is full.
    """

    def __init__(self, what: str, error: Exception) -> None:
        # torch reports a short write as a RuntimeError.
        number = getattr(error, "errno", None)
        reason = getattr(error, "strerror", None) or "only a part was written (disk full?)"
        super().__init__(f"cannot write {what}: {reason}")
        self.is_full = number is None or number in FULL
        self._made_of = what, error

    def __reduce__(self) -> tuple[type["WriteError"], tuple[str, Exception]]:
        # The other processes of a run are told of it.
        return type(self), self._made_of
