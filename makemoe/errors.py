"""What a user can get wrong, and the exit status it ends with.

The command line prints such an error as one line and nothing else; what it says of any other
exception is decided in `makemoe/cli/failures.py`.
"""

import errno

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
DISK_FAULTS = FULL | {
    *(errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG),
}
"""What a file system may refuse for, and a user can do something about."""


class MakeMoEError(Exception):
    """Base of every error that is told to the user in one line."""

    exit_status = 1


class UsageError(MakeMoEError, ValueError):
    """An option or a setting that cannot be: sizes, names, combinations of them."""

    exit_status = 2


class DataError(MakeMoEError):
    """A text that cannot be read, fetched, encoded or trained on."""


class CheckpointError(MakeMoEError):
    """A checkpoint that cannot be read, trusted or written."""


class WriteError(CheckpointError):
    """A file of a run that the disk does not take; what helps is added where the folder is known.

    Attributes:
        is_full: whether space is what is missing.
    """

    def __init__(self, what: str, error: Exception) -> None:
        # torch reports a short write as a RuntimeError.
        number = getattr(error, "errno", None)
        reason = getattr(error, "strerror", None) or "the disk took only a part of it (full?)"
        super().__init__(f"cannot write {what}: {reason}")
        self.is_full = number is None or number in FULL
