"""What a user can get wrong, and the exit status it ends with.

The command line prints such an error as one line and nothing else; what it says of any other
exception is decided in `makemoe/cli/failures.py`.
"""


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
