"""Makes sure that standard input, output and error are open, even if the shell has closed them."""

import io
import os
import sys


def open_closed() -> bool:
    """Connect closed standard streams to the null device; return whether the output was closed.

    Otherwise Python has None for them, and the next file to be opened, such as a checkpoint, would
    get their number.
    """
    output_closed = sys.stdout is None
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number: this one, since those before it are open.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    return output_closed


def show_any_text() -> None:
    """Write characters that the output's encoding lacks as escapes, as Python does for errors."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def close_output() -> None:
    """Discard the remaining output, so that Python's flush at exit does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
