"""Standard input, output and error: there, whatever the shell has closed."""

import os
import sys


def open_closed() -> bool:
    """Open standard streams that are closed on the null device; whether the output was closed.

    Python has None for them, and the next file that is opened, a checkpoint say, would get their
    number.
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


def close_output() -> None:
    """Let what is left for standard output go, so that Python's flush at exit does not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
